// An answer in lists: labels with bars, detections and segments that highlight what they name.

import { element, make, percent } from "./dom.js";

const TITLES = { classify: "Labels", detect: "Detections", segment: "Segments" };

/** The drawable parts of the answers by task. `palettes`: of the models, likewise; `colourOf`: as `colours` gives it. */
export function itemsOf(answers, palettes, colourOf) {
  const items = [];
  for (const [name, answer] of Object.entries(answers)) {
    const palette = palettes[name];
    for (const detection of answer.detections ?? []) {
      const { xmin, ymin, xmax, ymax } = detection.box;
      const area = (xmax - xmin) * (ymax - ymin);
      items.push({ ...detection, name, kind: "detect", image: answer.image, area, colour: colourOf(detection, palette) });
    }
    for (const segment of answer.segments ?? []) {
      items.push({ ...segment, name, kind: "segment", image: answer.image, box: null, colour: colourOf(segment, palette) });
    }
  }
  return items;
}

/** Show the lists. `shown`: whether an item is visible now; `highlight`: called with an item, or null. */
export function showAnswers(answers, items, shown, highlight) {
  element("answers").replaceChildren(...Object.entries(answers).map(([name, answer]) => {
    const title = make("h3", {}, TITLES[name] ?? name);
    if (answer.error) return make("div", {}, title, make("p", { className: "bad" }, `${answer.error.title}. ${answer.error.detail}`));
    if (answer.labels) return make("div", {}, title, labels(answer.labels));
    const mine = items.filter((item) => item.name === name && shown(item));
    const list = make("ul", { className: "items" }, ...mine.map((item) => make("li", {}, itemButton(item, highlight))));
    return make("div", {}, title, mine.length ? list : make("p", { className: "soft" }, "nothing found"));
  }));
}

function labels(given) {
  return make("ul", { className: "bars" }, ...given.map(({ label, score }) => {
    const bar = make("span", { className: "bar" });
    bar.style.setProperty("--share", String(score));
    return make("li", {}, make("span", {}, label), make("span", { className: "number" }, percent(score)), bar);
  }));
}

function itemButton(item, highlight) {
  const swatch = make("span", { className: "swatch" });
  swatch.style.setProperty("--colour", item.colour);
  const figure = item.kind === "detect" ? percent(item.score) : percent(item.area / (item.image.width * item.image.height));
  const more = item.kind === "detect"
    ? `${["xmin", "ymin", "xmax", "ymax"].map((side) => item.box[side].toFixed(0)).join(", ")} px`
    : `of the picture; confidence ${percent(item.confidence)}`;
  const button = make("button", { type: "button", className: "item" },
    swatch, make("span", {}, item.label), make("span", { className: "number" }, figure), make("span", { className: "soft" }, more));
  for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => highlight(item));
  for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => highlight(null));
  return button;
}

/** In one sentence, for those who cannot see the picture. */
export function inWords(answers, items, shown) {
  const parts = [];
  for (const [name, answer] of Object.entries(answers)) {
    if (answer.error) parts.push(`${name} failed`);
    else if (answer.labels) parts.push(answer.labels.length ? `most likely ${answer.labels[0].label}` : "no label");
    else {
      const mine = items.filter((item) => item.name === name && shown(item));
      const kinds = [...new Set(mine.map(({ label }) => label))].join(", ");
      const noun = answer.detections ? "detection" : "segment";
      parts.push(`${mine.length} ${noun}${mine.length === 1 ? "" : "s"}${kinds ? ` (${kinds})` : ""}`);
    }
  }
  return parts.join("; ");
}
