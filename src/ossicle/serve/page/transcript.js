// The transcript as it arrives, and its downloads.

import { subtitles } from "./api.js";
import { announce, byId, clock, make, save, show } from "./dom.js";
import { srt, vtt } from "./subtitles.js";

/** What was heard of one clip. */
export class Transcript {
  text = "";
  segments = [];
  done = false;

  constructor(clip, model, seek) {
    Object.assign(this, { clip, model, seek });
    show(true, "transcript");
    show(false, "transcript-actions");
    show(true, "stop");
    byId("heard").replaceChildren();
    byId("heard").setAttribute("aria-busy", "true");
    this.state(`Sending ${size(clip.blob.size)}`);
  }

  state(text) {
    byId("state").textContent = text;
  }

  started() {
    this.state("Listening");
  }

  write(text) {
    this.text = text;
    this.#paint();
  }

  add({ start, end, text }) {
    this.segments.push({ start, end, text });
    this.#paint();
  }

  /** End the stream, with the whole text or with what had come. */
  finish(seconds) {
    this.done = seconds !== null;
    this.#close();
    this.#paint();
    const words = this.text.split(/\s+/).filter(Boolean).length;
    if (!words) this.state(this.done ? "No speech was heard." : "Stopped.");
    else this.state(`${words} ${words === 1 ? "word" : "words"}${this.done ? `, heard in ${seconds.toFixed(1)} s` : ", stopped"}`);
    show(words > 0, "transcript-actions");
    announce(words ? `Transcript: ${this.text}` : byId("state").textContent);
  }

  /** End after an error, without a transcript to use. */
  fail() {
    this.#close();
    this.state(this.text ? "The transcript is incomplete." : "No transcript.");
  }

  #close() {
    byId("heard").setAttribute("aria-busy", "false");
    show(false, "stop");
  }

  /** Segments with their times where several are known, and after them the text that has no segment yet. */
  #paint() {
    const heard = byId("heard");
    if (this.segments.length < 2) {
      heard.replaceChildren(make("p", {}, this.text));
      return;
    }
    const rows = this.segments.map(({ start, text }) =>
      make("p", { class: "segment" }, this.#time(start), text.trim()),
    );
    const known = this.segments.map(({ text }) => text.trim()).join(" ");
    const rest = this.done ? "" : this.text.slice(known.length).trim();
    heard.replaceChildren(...rows, ...(rest ? [make("p", { class: "segment" }, rest)] : []));
  }

  #time(start) {
    const label = `Play from ${clock(start)}`;
    return make("button", { type: "button", class: "stamp", "aria-label": label, onclick: () => this.seek(start) }, clock(start));
  }

  /** Save the transcript as txt, srt or vtt. The server is asked for times that did not come with the stream. */
  async download(form) {
    const name = `${this.clip.fileName.replace(/\.[^.]*$/, "")}.${form}`;
    const known = this.segments.length > 0;
    const text =
      form === "txt" ? `${this.text}\n`
      : known ? (form === "srt" ? srt : vtt)(this.segments)
      : await subtitles(this.clip, form, { model: this.model });
    save(text, name, form === "vtt" ? "text/vtt" : "text/plain");
  }
}

function size(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
