// The waveform: live while recording, and with a moving cursor while playing.

import { byId, clock, show } from "./dom.js";

const BAR = 2;
const GAP = 1;
const QUIETEST = 0.02; // height of a bar of silence

/** Draws a clip, plays it, and reports the position in seconds to `onTime`. */
export class Player {
  #audio = new Audio();
  #canvas = byId("canvas");
  #peaks = [];
  #live = false;
  #frame = 0;
  #duration = 0;
  #url = "";

  constructor(onTime) {
    this.onTime = onTime;
    const seek = byId("seek");
    byId("play").addEventListener("click", () => this.toggle());
    seek.addEventListener("input", () => this.seek(Number(seek.value)));
    seek.addEventListener("keydown", (event) => this.#arrow(event));
    for (const name of ["play", "pause", "ended"]) this.#audio.addEventListener(name, () => this.#changed());
    this.#audio.addEventListener("loadedmetadata", () => this.#measured());
    new ResizeObserver(() => this.#resize()).observe(byId("wave"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#paint());
  }

  /** Begin to draw a recording in progress. */
  record() {
    this.#audio.pause();
    this.#live = true;
    this.#peaks = [];
    show(true, "player");
    byId("player").classList.add("live");
    this.#resize();
  }

  /** Add the peak (0 to 1) of the newest stretch of sound. */
  level(peak) {
    this.#peaks.push(Math.sqrt(peak)); // speech seldom comes near full scale
    this.#paint();
  }

  /** Show a clip, at its beginning. */
  load(clip) {
    this.#audio.pause();
    this.#live = false;
    URL.revokeObjectURL(this.#url);
    this.#url = this.#audio.src = URL.createObjectURL(clip.blob);
    this.samples = clip.samples;
    this.#duration = clip.duration ?? 0;
    byId("player").classList.remove("live");
    byId("wave").classList.toggle("unknown", !clip.samples);
    show(true, "player");
    this.#measured();
    this.#resize();
  }

  /** Hide the player. */
  clear() {
    this.#audio.pause();
    this.#live = false;
    show(false, "player");
  }

  /** Move to a position in seconds. */
  seek(seconds) {
    this.#audio.currentTime = Math.max(0, Math.min(seconds, this.#duration));
    this.#position();
  }

  /** Play from a position in seconds. */
  playFrom(seconds) {
    this.seek(seconds);
    this.#audio.play().catch(() => {}); // a format that the browser cannot play
  }

  toggle() {
    if (this.#audio.paused) this.#audio.play().catch(() => {});
    else this.#audio.pause();
  }

  /** Arrows move by a second, and by a quarter in short clips: the steps of the mouse are finer. */
  #arrow(event) {
    const side = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (!side) return;
    event.preventDefault();
    this.seek((this.#audio.currentTime || 0) + side * (this.#duration < 10 ? 0.25 : 1));
  }

  #measured() {
    if (!this.#duration && Number.isFinite(this.#audio.duration)) this.#duration = this.#audio.duration;
    byId("seek").max = this.#duration;
    byId("length").textContent = this.#duration ? clock(this.#duration) : "";
    this.#position();
  }

  #changed() {
    const playing = !this.#audio.paused && !this.#audio.ended;
    byId("play").setAttribute("aria-label", playing ? "Pause" : "Play");
    byId("play").classList.toggle("playing", playing);
    cancelAnimationFrame(this.#frame);
    const step = () => {
      this.#position();
      if (playing) this.#frame = requestAnimationFrame(step);
    };
    step();
  }

  #position() {
    const seconds = this.#audio.currentTime || 0;
    const seek = byId("seek");
    seek.value = seconds;
    seek.setAttribute("aria-valuetext", `${clock(seconds)} of ${clock(this.#duration)}`);
    byId("now").textContent = clock(seconds);
    this.#paint();
    this.onTime(seconds);
  }

  #resize() {
    const { width, height } = this.#canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    this.#canvas.width = Math.round(width * ratio);
    this.#canvas.height = Math.round(height * ratio);
    if (!this.#live) this.#peaks = peaksOf(this.samples, Math.floor(width / (BAR + GAP)));
    this.#paint();
  }

  #paint() {
    const pen = this.#canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    const style = getComputedStyle(this.#canvas);
    const [strong, pale] = ["--accent", "--wave"].map((name) => style.getPropertyValue(name).trim());
    const { width, height } = this.#canvas;
    pen.clearRect(0, 0, width, height);
    const step = (BAR + GAP) * ratio;
    const bars = Math.floor(width / step);
    const peaks = this.#live ? this.#peaks.slice(-bars) : this.#peaks;
    const played = this.#duration ? this.#audio.currentTime / this.#duration : 0;
    peaks.forEach((peak, i) => {
      pen.fillStyle = this.#live || (i + 0.5) / peaks.length < played ? strong : pale;
      const tall = Math.max(QUIETEST, peak) * height;
      pen.fillRect(i * step, (height - tall) / 2, BAR * ratio, tall);
    });
    if (!this.#live && this.samples && this.#duration) {
      pen.fillStyle = strong;
      pen.fillRect(Math.min(played * width, width - ratio), 0, Math.max(1, ratio), height);
    }
  }
}

/** Return the largest value of each of `count` stretches, so that the loudest of all has the height 1. */
function peaksOf(samples, count) {
  if (!samples || count < 1) return [];
  const peaks = Array.from({ length: count }, (_, i) => {
    let peak = 0;
    const end = Math.floor(((i + 1) * samples.length) / count);
    for (let at = Math.floor((i * samples.length) / count); at < end; at++) peak = Math.max(peak, Math.abs(samples[at]));
    return peak;
  });
  const top = Math.max(...peaks, 0.05); // silence stays flat
  return peaks.map((peak) => peak / top);
}
