// Where the words are in the speech tokens of a clip, and the similarity of speech and text by layer.

import { analysis } from "./api.js";
import { cut } from "./audio.js";
import { announce, byId, make, show } from "./dom.js";
import { layerChart, layerTable } from "./layers.js";
import { TokenMap, tokenTable } from "./tokenmap.js";

const MOST_S = 30; // the server's limit

export class Inside {
  #map;

  constructor(clip, play) {
    Object.assign(this, { clip, play });
    byId("figures").replaceChildren();
    show(false, "figures");
    show(true, "look");
    byId("inside-state").textContent = "";
  }

  /** Offer the analysis of a transcript, or of its beginning if the recording is long. */
  offer({ text, segments }) {
    show(Boolean(text), "inside");
    this.part = { clip: this.clip, text };
    if (!(this.clip.duration > MOST_S)) return;
    const first = segments.filter(({ end }) => end <= MOST_S);
    show(first.length > 0, "look");
    if (first.length) {
      const end = first.at(-1).end;
      this.part = { clip: cut(this.clip, 0, end), text: first.map((segment) => segment.text.trim()).join(" ") };
      byId("inside-state").textContent = `Of the first ${Math.round(end)} seconds.`;
    } else byId("inside-state").textContent = `Only recordings of up to ${MOST_S} seconds can be looked into.`;
  }

  async look() {
    byId("inside-state").textContent = "Comparing speech and text in every layer";
    let found;
    try {
      found = await analysis(this.part.clip, this.part.text);
    } finally {
      byId("inside-state").textContent = "";
    }
    show(false, "look");
    show(true, "figures");
    this.#fill(found);
    announce("The token map and the similarities are below.");
    byId("figures").focus();
  }

  /** Move the cursor of the map to a position in seconds. */
  at(seconds) {
    this.#map?.at(seconds);
  }

  #fill(found) {
    const place = make("div", { class: "map" });
    this.#map = new TokenMap(place, found, (seconds) => this.play(seconds));
    const chart = make("div", { class: "charts" });
    byId("figures").setAttribute("tabindex", "-1");
    byId("figures").replaceChildren(
      make("h3", {}, "Which speech token is which word"),
      make("p", { class: "explain" }, mapText(found)),
      this.#layers(found),
      place,
      details("The speech tokens as a table", tokenTable(found)),
      make("h3", {}, "How similar speech and text are"),
      make("p", { class: "explain" }, "Cosine similarity in each layer, beside the average of sentences that nobody said. Only the distance between the two lines means something: in many layers all texts are alike."),
      chart,
      details("The similarities as a table", layerTable(found)),
    );
    const charts = [
      layerChart(chart, found, "Nearest tokens", "token_matched", "token_other"),
      layerChart(chart, found, "Means of all tokens", "matched", "other"),
    ];
    new ResizeObserver(() => [this.#map, ...charts].forEach((figure) => figure.draw())).observe(byId("figures"));
  }

  #layers({ maps, map_layer: best }) {
    const choose = (layer) => this.#map.choose(layer);
    const options = maps.map(({ layer }) =>
      make("label", {}, make("input", { type: "radio", name: "layer", value: layer, checked: layer === best, onchange: () => choose(layer) }), make("span", {}, String(layer))),
    );
    return make("fieldset", { class: "layers" }, make("legend", {}, "Layer"), ...options);
  }
}

function mapText({ speech_tokens: tokens, words, prompt_tokens: prompt, map_layer: best, duration_s: seconds }) {
  const before = prompt ? ` ${prompt} learned vectors come before them and are left out.` : "";
  return (
    `${tokens.length} speech tokens for ${words.length} words in ${seconds.toFixed(1)} seconds. Each mark is a speech token; the stronger it is, ` +
    `the more of the token belongs to the word.${before} In layer ${best}, this transcript stands out most from other sentences.`
  );
}

const details = (summary, table) => make("details", {}, make("summary", {}, summary), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": summary }, table));
