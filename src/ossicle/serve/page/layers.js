// The similarity of speech and text in each layer: a chart of two lines, and a table.

import { draw, make } from "./dom.js";

const HEIGHT = 168;
const LEFT = 30;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 26;

/** Add a chart of two values of every layer to `place`. Its `draw` fits it to the width. */
export function layerChart(place, { layers, map_layer: best }, title, own, other) {
  const box = make("div", { class: "plot" });
  const last = layers.length - 1;
  const legend = make("p", { class: "legend" }, make("span", { class: "own" }, "this transcript"), make("span", { class: "other" }, "other sentences"));
  place.append(make("figure", {}, make("figcaption", {}, title), box, legend));
  const values = layers.flatMap((row) => [row[own], row[other]]);
  const low = Math.min(0, Math.floor(Math.min(...values) * 2) / 2);

  const paint = () => {
    const width = Math.floor(box.clientWidth);
    if (!width) return;
    const x = (layer) => LEFT + (layer / Math.max(last, 1)) * (width - LEFT - RIGHT);
    const y = (value) => TOP + ((1 - value) / (1 - low)) * (HEIGHT - TOP - BOTTOM);
    const label = `${title}, layers 0 to ${last}. At layer ${best}: ${layers[best][own].toFixed(2)} for this transcript, ${layers[best][other].toFixed(2)} for other sentences.`;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": label });
    for (let value = low; value <= 1; value += 0.5) {
      svg.append(draw("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
      svg.append(draw("text", { class: "tick", x: LEFT - 8, y: y(value), "text-anchor": "end", "dominant-baseline": "central" }, value.toFixed(1)));
    }
    for (const layer of ticks(last))
      svg.append(draw("text", { class: "tick", x: x(layer), y: HEIGHT - 6, "text-anchor": "middle" }, String(layer)));
    const line = (name) => layers.map((row) => `${x(row.layer).toFixed(1)},${y(row[name]).toFixed(1)}`).join(" ");
    svg.append(draw("polyline", { class: "line other", points: line(other) }), draw("polyline", { class: "line own", points: line(own) }));
    box.replaceChildren(svg);
  };
  return { draw: paint };
}

function ticks(last) {
  const step = Math.max(1, Math.round(last / 5));
  const found = Array.from({ length: Math.floor(last / step) + 1 }, (_, i) => i * step).filter((layer) => last - layer >= step / 2);
  return [...found, last];
}

/** Return the similarities as a table. */
export function layerTable({ layers }) {
  const heads = ["Layer", "Tokens, this", "Tokens, other", "Means, this", "Means, other"];
  const rows = layers.map((row) =>
    make("tr", {}, make("th", { scope: "row" }, String(row.layer)), ...["token_matched", "token_other", "matched", "other"].map((name) => make("td", {}, row[name].toFixed(2)))),
  );
  return make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...rows));
}
