// The token map: words from top to bottom, time from left to right, one mark for each share of a speech token.

import { draw, make } from "./dom.js";

const ROW = 20;
const LOW_ROW = 15; // of long texts
const MANY_WORDS = 40;
const AXIS = 24;
const LABEL = 92;
const LONGEST_LABEL = 12;
const LEAST_SHARE = 0.03;
const LEAST_WIDTH = 4;

export class TokenMap {
  #cursor;
  #labels = [];
  #now = 0;

  constructor(place, found, play) {
    Object.assign(this, { place, found, play });
    this.layer = found.map_layer;
    this.spans = spread(found.speech_tokens);
  }

  /** Show the map of another layer. */
  choose(layer) {
    this.layer = layer;
    this.draw();
  }

  draw() {
    const { words, speech_tokens: tokens, maps, duration_s: duration } = this.found;
    const width = Math.floor(this.place.clientWidth);
    if (!width) return;
    const row = words.length > MANY_WORDS ? LOW_ROW : ROW;
    const height = words.length * row + AXIS;
    const { shares } = maps.find(({ layer }) => layer === this.layer);
    this.nearest = tokens.map((_, m) => shares.reduce((best, row, w) => (row[m] > shares[best][m] ? w : best), 0));
    this.x = (seconds) => LABEL + (seconds / duration) * (width - LABEL - 1);
    const name = `Token map of layer ${this.layer}: ${tokens.length} speech tokens and ${words.length} words. The table below has its values.`;
    const svg = draw("svg", { class: row < ROW ? "low" : null, viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": name });
    this.#labels = words.map((word, w) => {
      const middle = (w + 0.5) * row;
      svg.append(draw("line", { class: "rule", x1: LABEL, x2: width, y1: middle, y2: middle }));
      return draw("text", { class: "word", x: LABEL - 12, y: middle, "text-anchor": "end", "dominant-baseline": "central" }, short(word));
    });
    svg.append(...this.#labels, ...this.#marks(shares, row), ...this.#axis(duration, height, width));
    this.#cursor = draw("line", { class: "cursor", y1: 0, y2: height - AXIS });
    svg.append(this.#cursor);
    svg.addEventListener("click", (event) => {
      const x = event.clientX - svg.getBoundingClientRect().left;
      if (x > LABEL) this.play(((x - LABEL) / (width - LABEL)) * duration);
    });
    this.place.replaceChildren(svg);
    this.at(this.#now);
  }

  /** Move the cursor to a position in seconds, and point out the word that is spoken there. */
  at(seconds) {
    this.#now = seconds;
    if (!this.#cursor) return;
    const x = this.x(Math.min(seconds, this.found.duration_s));
    this.#cursor.setAttribute("x1", x);
    this.#cursor.setAttribute("x2", x);
    const token = seconds > 0 ? this.spans.findLastIndex(([start]) => start <= seconds) : -1;
    this.#labels.forEach((label, w) => label.classList.toggle("spoken", token >= 0 && this.nearest[token] === w));
  }

  #marks(shares, height) {
    return shares.flatMap((ofWord, w) =>
      ofWord.flatMap((share, m) => {
        if (share < LEAST_SHARE) return [];
        const [from, to] = this.spans[m].map(this.x);
        const wide = Math.max(to - from - 1, LEAST_WIDTH);
        return [draw("rect", { class: "mark", x: (from + to - wide) / 2, y: w * height + 3, width: wide, height: height - 6, rx: 1.5, opacity: share.toFixed(2) })];
      }),
    );
  }

  #axis(duration, height, width) {
    const step = [0.5, 1, 2, 5, 10].find((each) => ((width - LABEL) * each) / duration > 56) ?? 10;
    const ticks = Array.from({ length: Math.floor(duration / step) + 1 }, (_, i) => i * step);
    return ticks.map((seconds) => draw("text", { class: "tick", x: this.x(seconds), y: height - 5, "text-anchor": seconds ? "middle" : "start" }, `${seconds} s`));
  }
}

/** Return [start, end] of each token; those that share a window share its time. */
function spread(tokens) {
  const spans = [];
  for (let first = 0; first < tokens.length; ) {
    const { start_s: start, end_s: end } = tokens[first];
    let next = first;
    while (next < tokens.length && tokens[next].start_s === start) next++;
    const each = (end - start) / (next - first);
    for (let i = 0; i < next - first; i++) spans.push([start + i * each, start + (i + 1) * each]);
    first = next;
  }
  return spans;
}

const short = (word) => (word.length > LONGEST_LABEL ? `${word.slice(0, LONGEST_LABEL - 1)}…` : word);

/** Return the speech tokens as a table. */
export function tokenTable({ speech_tokens: tokens, words }) {
  const spelled = tokens.some(({ heard }) => heard !== null);
  const heads = ["From", ...(spelled ? ["Spelled"] : []), "Word", "Share"];
  const rows = tokens.map(({ start_s: start, heard, word, share }) =>
    make("tr", {}, ...[`${start.toFixed(2)} s`, ...(spelled ? [heard ?? ""] : []), words[word], `${Math.round(share * 100)} %`].map((cell) => make("td", {}, cell))),
  );
  return make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...rows));
}
