// The page: records or opens a clip, and hands it to its parts.

import * as api from "./api.js";
import { LONGEST_S, Recorder, readFile } from "./audio.js";
import { announce, byId, clock, show } from "./dom.js";
import { Inside } from "./inside.js";
import { ofException, ofMicrophone, ofNetwork } from "./problems.js";
import { Talk, fillLanguages, fillQuestions, translate } from "./talk.js";
import { Transcript } from "./transcript.js";
import { Player } from "./waveform.js";

const SILENT = 0.01; // a peak below this is no speech
const SILENT_S = 2;

let model = "";
let clip, transcript, talk, inside, recorder, again;
let work = new AbortController();
const player = new Player((seconds) => inside?.at(seconds));

function state(name) {
  document.body.dataset.state = name;
}

/** Show a problem below the part of the page where `button` is. `retry` is what "Try again" does. */
function report(error, retry, button) {
  if (error.name === "AbortError") return;
  const problem = ofException(error);
  again = retry;
  const part = button?.closest(".part > .body");
  if (part) part.append(byId("notice"));
  else document.querySelector(".listen").after(byId("notice"));
  byId("notice-title").textContent = problem.message;
  byId("notice-text").textContent = problem.advice;
  show(true, "notice");
  show(problem.kind === "key", "key-form");
  show(problem.kind === "again" && Boolean(retry), "again");
  byId("notice").scrollIntoView({ block: "nearest" });
  if (problem.kind === "key") byId("key").focus();
}

/** Run `task` with a busy button; a problem is reported, and can be tried again. */
async function attempt(button, task) {
  if (button?.getAttribute("aria-disabled") === "true") return;
  show(false, "notice");
  button?.setAttribute("aria-disabled", "true");
  const mine = work.signal;
  try {
    await task(mine);
  } catch (error) {
    if (!mine.aborted) report(error, () => attempt(button, task), button);
  } finally {
    button?.removeAttribute("aria-disabled");
  }
}

/** Stop everything that is still on its way, without a message. */
function abandon() {
  work.abort();
  work = new AbortController();
}

async function connect() {
  try {
    model = (await api.models())[0] ?? "";
    byId("model").textContent = model;
    byId("light").className = "light on";
    const found = await api.examples();
    fillExamples(found);
  } catch (error) {
    byId("light").className = "light off";
    byId("model").textContent = "No connection";
    report(error, connect);
    return;
  }
  show(false, "notice");
}

function fillExamples(found) {
  const items = found.map(({ id, text }) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "chip", textContent: text });
    button.addEventListener("click", () => attempt(button, async () => open(await readFile(await api.exampleFile(id)), text)));
    item.append(button);
    return item;
  });
  byId("examples-list").replaceChildren(...items);
  show(items.length > 0, "examples");
}

let opening = false; // until the reader has allowed the microphone
async function startRecording() {
  if (opening) return;
  show(false, "notice");
  opening = true;
  try {
    recorder = await Recorder.start(level, stopRecording);
  } catch (error) {
    report(ofMicrophone(error), startRecording);
    return;
  } finally {
    opening = false;
  }
  abandon();
  state("recording");
  player.record();
  show(false, "clip-name", "transcript", "translation", "questions", "inside");
  show(true, "timer");
  byId("record-label").textContent = "Stop";
  announce("Recording");
}

let heardAt = 0;
function level(peak, seconds) {
  player.level(peak);
  byId("timer-value").textContent = clock(seconds);
  if (peak > SILENT || seconds < heardAt) heardAt = seconds;
  const left = LONGEST_S - seconds;
  let said = "Press Stop when you have finished.";
  if (seconds - heardAt > SILENT_S) said = "No sound arrives. Is the microphone on?";
  else if (left < 30) said = `${Math.ceil(left)} s left`;
  if (byId("level-text").textContent === said) return;
  byId("level-text").textContent = said;
  announce(said);
}

async function stopRecording() {
  if (!recorder) return;
  const stopping = recorder;
  recorder = undefined;
  heardAt = 0;
  show(false, "timer");
  byId("record-label").textContent = "Record";
  try {
    const time = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    open(await stopping.stop(`Recording of ${time}`));
  } catch (error) {
    state("empty");
    player.clear();
    report(error);
  }
}

/** Show a clip and transcribe it. */
function open(opened, title) {
  abandon();
  clip = opened;
  state("clip");
  player.load(clip);
  const unseen = clip.samples ? "" : " (this browser cannot show it, the server may read it)";
  byId("clip-name").textContent = title ? `A generated voice says: ${title}` : clip.name + unseen;
  show(true, "clip-name");
  show(false, "translation", "questions", "inside");
  byId("translated").replaceChildren();
  talk = new Talk(clip);
  inside = new Inside(clip, (seconds) => player.playFrom(seconds));
  transcribe();
}

function transcribe() {
  return attempt(null, async (signal) => {
    const began = performance.now();
    const mine = (transcript = new Transcript(clip, model, (seconds) => player.playFrom(seconds)));
    state("streaming");
    byId("stop").onclick = () => {
      abandon();
      mine.finish(null);
      ready(mine);
    };
    try {
      await api.hear(clip, "transcriptions", {
        model,
        signal,
        onStart: () => mine.started(),
        onText: (text) => mine.write(text),
        onSegment: (segment) => mine.add(segment),
      });
    } catch (error) {
      if (!signal.aborted) {
        mine.fail();
        state("clip");
      }
      throw error;
    }
    mine.finish((performance.now() - began) / 1000);
    ready(mine);
  });
}

/** Offer what can be done with a transcript. */
function ready(heard) {
  state("clip");
  show(true, "translation", "questions");
  inside.offer(heard);
}

function ask(text) {
  const question = text.trim();
  if (!question) return byId("question").focus();
  return attempt(byId("ask"), async (signal) => {
    byId("question").value = "";
    try {
      await talk.ask(question, { model, signal });
    } catch (error) {
      byId("question").value = question;
      throw error;
    }
  });
}

async function openFile(file) {
  if (!file) return;
  if (recorder) await stopRecording();
  await attempt(byId("choose"), async () => open(await readFile(file)));
}

function listen(id, event, action) {
  byId(id).addEventListener(event, (happened) => {
    if (event === "submit") happened.preventDefault();
    action(happened);
  });
}

listen("record", "click", () => (recorder ? stopRecording() : startRecording()));
listen("choose", "click", () => byId("file").click());
listen("file", "change", ({ target }) => openFile(target.files[0]).finally(() => (target.value = "")));
listen("translate-form", "submit", () => attempt(byId("translate"), (signal) => translate(clip, { model, signal })));
listen("ask-form", "submit", () => ask(byId("question").value));
listen("forget", "click", () => (talk = new Talk(clip)) && byId("question").focus());
listen("copy", "click", () => attempt(byId("copy"), async () => (await navigator.clipboard.writeText(transcript.text), announce("Copied"))));
listen("look", "click", () => attempt(byId("look"), () => inside.look()));
listen("dismiss", "click", () => show(false, "notice"));
listen("again", "click", () => again?.());
listen("key-form", "submit", () => {
  api.keepKey(byId("key").value.trim());
  byId("key").value = "";
  show(false, "notice");
  (model ? Promise.resolve() : connect()).then(() => again !== connect && again?.());
});
for (const button of document.querySelectorAll("[data-download]"))
  button.addEventListener("click", () => attempt(button, () => transcript.download(button.dataset.download)));

let inPage = 0; // dragenter and dragleave come for every element
const hasFile = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => hasFile(event) && ++inPage && byId("drop").classList.add("shown"));
addEventListener("dragleave", (event) => hasFile(event) && --inPage <= 0 && byId("drop").classList.remove("shown"));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  inPage = 0;
  byId("drop").classList.remove("shown");
  openFile(event.dataTransfer.files[0]);
});
addEventListener("offline", () => report(ofNetwork(), connect));
addEventListener("online", connect);

byId("copy").hidden = !navigator.clipboard; // browsers offer it on secure pages only
fillLanguages();
fillQuestions(ask);
connect();
