// The picture with its answers, drawn on a canvas.

import { maskPixels } from "./rle.js";

const LONGEST_SIDE = 1600;
const COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#d6336c", "#5c7cfa", "#808000"];

/** The colour of a class: its model's, by index, or one by label in order of their first use. */
export function colours() {
  const given = new Map();
  return ({ label, index }, palette) => {
    if (palette?.[index]) return `#${palette[index].map((level) => level.toString(16).padStart(2, "0")).join("")}`;
    if (!given.has(label)) given.set(label, COLOURS[given.size % COLOURS.length]);
    return given.get(label);
  };
}

/** Black or white, whichever is easier to read on a colour. */
function textOn(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => (parseInt(colour.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.3 ? "#000000" : "#ffffff";
}

export class Stage {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.picture = null;
    this.items = [];
    this.opacity = 0.5;
    this.highlighted = null;
    this.isShown = () => true;
  }

  /** Show a picture alone. Raises where the browser does not know its format. */
  async show(blob) {
    const picture = await createImageBitmap(blob, { imageOrientation: "from-image" });
    const scale = Math.min(1, LONGEST_SIDE / Math.max(picture.width, picture.height));
    this.picture?.close?.();
    this.picture = picture;
    this.canvas.width = Math.max(1, Math.round(picture.width * scale));
    this.canvas.height = Math.max(1, Math.round(picture.height * scale));
    this.setItems([]);
  }

  /** `items`: {label, colour, score, box or null, mask or null, image: {width, height}}. */
  setItems(items) {
    this.items = items;
    this.layers = new Map();
    this.highlighted = null;
    this.draw();
  }

  highlight(item) {
    this.highlighted = item;
    this.draw();
  }

  /** The item at a point, in fractions of the picture; of several, the smallest. */
  at(x, y) {
    const hits = this.items.filter((item) => {
      if (!this.isShown(item)) return false;
      if (item.box) {
        const { width, height } = item.image;
        const { xmin, ymin, xmax, ymax } = item.box;
        return x * width >= xmin && x * width <= xmax && y * height >= ymin && y * height <= ymax;
      }
      const [column, row] = [Math.floor(x * this.canvas.width), Math.floor(y * this.canvas.height)];
      return this.layer(item).pixels[row * this.canvas.width + column] === 1;
    });
    return hits.sort((one, other) => one.area - other.area)[0] ?? null;
  }

  // The mask of an item, in its colour. It is decoded when it is first drawn.
  layer(item) {
    if (!this.layers.has(item)) {
      const { width, height } = this.canvas;
      const pixels = maskPixels(item.mask, width, height);
      const image = new ImageData(width, height);
      const [red, green, blue] = [1, 3, 5].map((at) => parseInt(item.colour.slice(at, at + 2), 16));
      const colours = new Uint32Array(image.data.buffer);
      const colour = (255 << 24) | (blue << 16) | (green << 8) | red;
      for (let at = 0; at < pixels.length; at++) if (pixels[at]) colours[at] = colour;
      const canvas = new OffscreenCanvas(width, height);
      canvas.getContext("2d").putImageData(image, 0, 0);
      this.layers.set(item, { pixels, canvas });
    }
    return this.layers.get(item);
  }

  draw() {
    const { context, canvas } = this;
    if (!this.picture) return;
    context.globalAlpha = 1;
    context.drawImage(this.picture, 0, 0, canvas.width, canvas.height);
    const shown = this.items.filter((item) => this.isShown(item));
    for (const item of shown.filter(({ mask }) => mask)) {
      const faded = this.highlighted !== null && this.highlighted !== item;
      context.globalAlpha = faded ? this.opacity / 4 : this.highlighted === item ? Math.max(this.opacity, 0.6) : this.opacity;
      context.drawImage(this.layer(item).canvas, 0, 0);
    }
    // The best one is drawn last, above the others.
    for (const item of shown.filter(({ box }) => box).reverse()) this.drawBox(item);
    context.globalAlpha = 1;
  }

  drawBox(item) {
    const { context, canvas } = this;
    const [kx, ky] = [canvas.width / item.image.width, canvas.height / item.image.height];
    // On a small screen, where the canvas is shown smaller than it is, labels stay readable.
    const unit = Math.max(canvas.width / (canvas.clientWidth || canvas.width), Math.max(canvas.width, canvas.height) / 640);
    const { xmin, ymin, xmax, ymax } = item.box;
    const [left, top, width, height] = [xmin * kx, ymin * ky, (xmax - xmin) * kx, (ymax - ymin) * ky];
    context.globalAlpha = this.highlighted !== null && this.highlighted !== item ? 0.25 : 1;
    context.lineWidth = (this.highlighted === item ? 4 : 2.5) * unit;
    context.strokeStyle = item.colour;
    context.strokeRect(left, top, width, height);
    const text = `${item.label} ${item.score.toFixed(2)}`;
    const size = 13 * unit;
    context.font = `600 ${size}px system-ui, sans-serif`;
    const textWidth = context.measureText(text).width + size * 0.8;
    const at = Math.max(0, Math.min(left, canvas.width - textWidth));
    const line = top >= size * 1.5 ? top - size * 1.5 : top;
    context.fillStyle = item.colour;
    context.fillRect(at, line, textWidth, size * 1.5);
    context.fillStyle = textOn(item.colour);
    context.textBaseline = "middle";
    context.fillText(text, at + size * 0.4, line + size * 0.78);
  }

  drawing() {
    return new Promise((resolve) => { this.canvas.toBlob(resolve, "image/png"); });
  }
}
