// A plot of one or two series over time, as SVG.

import { draw } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [360, 130, 44, 18, 8];

// The next of 1, 2 and 5 times a power of ten.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= value);
}

/** `points`: [{s, …}], s being seconds before now, 0 or less. `series`: [{name, value: point → number or null, style}]. */
export function plot(title, unit, points, series, spanS) {
  const values = series.flatMap(({ value }) => points.map(value)).filter((value) => value !== null);
  const top = roundUp(Math.max(...values, 0) || 1);
  const x = (s) => LEFT + (1 + s / spanS) * (WIDTH - LEFT - 4);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const number = (value) => (value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(2))));
  const text = (content, attributes) => draw("text", { class: "tick", ...attributes }, content);
  const last = series.map(({ name, value }) => {
    const latest = points.length ? value(points.at(-1)) : null;
    return `${name} ${latest === null ? "none" : `${number(latest)}${unit.startsWith("/") ? unit : ` ${unit}`}`}`;
  });
  const picture = draw(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${last.join(", ")}` },
    ...[0, top / 2, top].map((value) => draw("line", { class: "grid", x1: LEFT, x2: WIDTH - 4, y1: y(value), y2: y(value) })),
    ...[0, top / 2, top].map((value) => text(number(value), { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" })),
    text(`−${Math.round(spanS / 60)} min`, { x: LEFT, y: HEIGHT - 3 }),
    text("now", { x: WIDTH - 4, y: HEIGHT - 3, "text-anchor": "end" }),
  );
  for (const { value, style } of series) {
    let path = "";
    let drawing = false;
    for (const point of points) {
      const at = value(point);
      if (at !== null) path += `${drawing ? "L" : "M"}${x(point.s).toFixed(1)} ${y(at).toFixed(1)}`;
      drawing = at !== null;
    }
    picture.append(draw("path", { class: `series ${style}`, d: path || "M0 0" }));
  }
  return { picture, last };
}
