// The picture with its answers, drawn on a canvas.

import { fillMask } from "./rle.js";

const LONGEST_SAVED = 4096;
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

const levels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

/** Black or white, whichever is easier to read on a colour. */
function textOn(colour) {
  const [red, green, blue] = levels(colour).map((level) => (level / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.3 ? "#000000" : "#ffffff";
}

export class Stage {
  /** `frame`: an element that has an image and a canvas upon it; `isShown`: whether an item is visible. */
  constructor(frame, isShown) {
    this.frame = frame;
    this.image = frame.querySelector("img");
    this.canvas = frame.querySelector("canvas");
    this.context = this.canvas.getContext("2d");
    this.isShown = isShown;
    this.items = [];
    this.layers = new Map();
    this.opacity = 0.5;
    this.highlighted = null;
  }

  /**
   * Show a picture, with the items on it, and give whether the browser knows its format.
   * An image is decoded in the size on the screen, by threads of the browser; a canvas would decode all of it.
   */
  async show(blob, alt = "") {
    const url = URL.createObjectURL(blob);
    const listening = new AbortController();
    const known = await new Promise((resolve) => {
      for (const event of ["load", "error"]) {
        this.image.addEventListener(event, () => resolve(event === "load"), { signal: listening.signal });
      }
      Object.assign(this.image, { src: url, alt });
    });
    listening.abort();
    URL.revokeObjectURL(url);
    this.frame.hidden = !known;
    if (known) this.fit();
    return known;
  }

  /** Draw in the size in which the picture is shown, in pixels of the screen. */
  fit() {
    const [width, height] = [this.image.clientWidth, this.image.clientHeight].map((side) => Math.max(1, Math.round(side * devicePixelRatio)));
    if (width === this.canvas.width && height === this.canvas.height) return;
    Object.assign(this.canvas, { width, height });
    this.layers.clear();
    this.draw();
  }

  /**
   * What `draw` draws from now on.
   * `items`: {label, colour, score, box or null, mask or null, image: {width, height}}.
   */
  setItems(items) {
    this.items = items;
    this.layers.clear();
    this.highlighted = null;
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
      return this.layer(item).pixels[row * this.canvas.width + column] !== 0;
    });
    return hits.sort((one, other) => one.area - other.area)[0] ?? null;
  }

  layer(item) {
    if (!this.layers.has(item)) this.layers.set(item, maskLayer(item, this.canvas.width, this.canvas.height));
    return this.layers.get(item);
  }

  draw() {
    const { width, height } = this.canvas;
    this.context.clearRect(0, 0, width, height);
    this.drawItems(this.context, width, height, devicePixelRatio, (item) => this.layer(item));
  }

  /** A PNG of the picture with what is shown, in the picture's size, or of LONGEST_SAVED pixels. */
  drawing() {
    const { image } = this;
    const scale = Math.min(1, LONGEST_SAVED / Math.max(image.naturalWidth, image.naturalHeight));
    const [width, height] = [image.naturalWidth, image.naturalHeight].map((side) => Math.max(1, Math.round(side * scale)));
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0, width, height);
    const unit = Math.max(1, Math.max(width, height) / 640);
    this.drawItems(context, width, height, unit, (item) => maskLayer(item, width, height));
    return canvas.convertToBlob({ type: "image/png" });
  }

  // `unit`: pixels of the canvas for one of a stylesheet; `layerOf`: of an item with a mask.
  drawItems(context, width, height, unit, layerOf) {
    const shown = this.items.filter((item) => this.isShown(item));
    for (const item of shown.filter(({ mask }) => mask)) {
      const faded = this.highlighted !== null && this.highlighted !== item;
      context.globalAlpha = faded ? this.opacity / 4 : this.highlighted === item ? Math.max(this.opacity, 0.6) : this.opacity;
      context.drawImage(layerOf(item).canvas, 0, 0);
    }
    // The best one is drawn last, above the others.
    for (const item of shown.filter(({ box }) => box).reverse()) {
      context.globalAlpha = this.highlighted !== null && this.highlighted !== item ? 0.25 : 1;
      drawBox(context, item, width, height, this.highlighted === item ? 4 * unit : 2.5 * unit, 13 * unit);
    }
    context.globalAlpha = 1;
  }
}

// The mask of an item in its colour, as pixels row by row (0 outside) and as a canvas.
function maskLayer(item, width, height) {
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const [red, green, blue] = levels(item.colour);
  fillMask(pixels, width, height, item.mask, (255 << 24) | (blue << 16) | (green << 8) | red);
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return { pixels, canvas };
}

function drawBox(context, { box, image, colour, label, score }, canvasWidth, canvasHeight, line, size) {
  const [kx, ky] = [canvasWidth / image.width, canvasHeight / image.height];
  const [left, top] = [box.xmin * kx, box.ymin * ky];
  context.lineWidth = line;
  context.strokeStyle = colour;
  context.strokeRect(left, top, (box.xmax - box.xmin) * kx, (box.ymax - box.ymin) * ky);
  const text = `${label} ${score.toFixed(2)}`;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const width = context.measureText(text).width + size * 0.8;
  const height = size * 1.5;
  const x = Math.max(0, Math.min(left, canvasWidth - width));
  const y = top >= height ? top - height : top;
  context.fillStyle = colour;
  context.fillRect(x, y, width, height);
  context.fillStyle = textOn(colour);
  context.textBaseline = "middle";
  context.fillText(text, x + size * 0.4, y + height * 0.52);
}
