// The conversation about a clip, and its translation.

import { chat, hear, spokenMessage } from "./api.js";
import { announce, byId, make, show } from "./dom.js";

const QUESTIONS = [
  "What is the first word of the sentence?",
  "What is the speaker talking about?",
  "Write it in capital letters.",
  "Summarise it in one sentence.",
];
const LANGUAGES = {
  en: "English", de: "German", fr: "French", es: "Spanish", it: "Italian", nl: "Dutch", pt: "Portuguese", pl: "Polish", cs: "Czech",
  sv: "Swedish", ru: "Russian", uk: "Ukrainian", tr: "Turkish", ar: "Arabic", fa: "Persian", hi: "Hindi", id: "Indonesian",
  ja: "Japanese", ko: "Korean", zh: "Chinese",
};

/** Fill the list of languages; the first choice is the browser's, unless it is English. */
export function fillLanguages() {
  const own = navigator.language.split("-")[0];
  const chosen = own in LANGUAGES && own !== "en" ? own : "de";
  const names = Object.entries(LANGUAGES).sort((a, b) => a[1].localeCompare(b[1]));
  byId("language").replaceChildren(...names.map(([code, name]) => make("option", { value: code, selected: code === chosen }, name)));
}

/** Show questions to click. */
export function fillQuestions(ask) {
  byId("chips").replaceChildren(
    ...QUESTIONS.map((text) => make("li", {}, make("button", { type: "button", class: "chip", onclick: () => ask(text) }, text))),
  );
}

/** Translate a clip into the language of the list. English has an endpoint of its own, which takes long recordings. */
export async function translate(clip, options) {
  const code = byId("language").value;
  const place = byId("translated");
  place.setAttribute("aria-busy", "true");
  place.setAttribute("lang", code);
  place.replaceChildren();
  const onText = (text) => place.replaceChildren(make("p", {}, text));
  try {
    if (code === "en") await hear(clip, "translations", { ...options, onText });
    else await chat([await spokenMessage(clip, `Translate the speech to ${LANGUAGES[code]}.`)], { ...options, onText });
  } finally {
    place.setAttribute("aria-busy", "false");
  }
  if (!place.textContent) place.replaceChildren(make("p", { class: "state" }, "The model answered nothing."));
}

/** Questions about one clip and their answers. */
export class Talk {
  #messages = [];

  constructor(clip) {
    this.clip = clip;
    byId("talk").replaceChildren();
    show(false, "forget");
  }

  /** Ask a question, and show the answer as it comes. After an error the question is taken back. */
  async ask(text, options) {
    const message = this.#messages.length ? { role: "user", content: text } : await spokenMessage(this.clip, text);
    const answer = make("p", { class: "answer", "aria-busy": "true" });
    const turn = make("li", { class: "turn" }, make("p", { class: "question" }, text), answer);
    byId("talk").append(turn);
    try {
      const said = await chat([...this.#messages, message], { ...options, onText: (so_far) => answer.replaceChildren(so_far) });
      this.#messages.push(message, { role: "assistant", content: said });
      if (!said) answer.replaceChildren(make("span", { class: "state" }, "The model answered nothing."));
      announce(`Answer: ${said}`);
      show(true, "forget");
    } catch (error) {
      turn.remove();
      throw error;
    } finally {
      answer.setAttribute("aria-busy", "false");
    }
  }
}
