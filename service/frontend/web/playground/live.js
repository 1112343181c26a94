// What the service does now, from its own metrics. They are read while this part of the page is shown.

import { element, make } from "./dom.js";
import { between, parse } from "./metrics.js";
import { plot } from "./plot.js";
import { call } from "./service.js";

const EVERY_MS = 2000;
const SPAN_S = 300;

const PLOTS = [
  ["Requests per second", "/s", [
    { name: "answered", value: ({ answered }) => answered, style: "first" },
    { name: "failed or rejected", value: ({ failed }) => failed, style: "second" },
  ]],
  ["Latency, ms", "ms", [
    { name: "p50", value: ({ p50 }) => (p50 === null ? null : 1000 * p50), style: "first" },
    { name: "p99", value: ({ p99 }) => (p99 === null ? null : 1000 * p99), style: "second" },
  ]],
  ["Queue", "images", [{ name: "waiting", value: ({ queued }) => queued, style: "first" }]],
  ["Mean batch", "images", [{ name: "mean", value: ({ batch }) => batch, style: "first" }]],
];

export class Live {
  constructor() {
    this.points = [];
    this.last = null;
    this.timer = null;
  }

  start() {
    if (this.timer === null) this.scrape();
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
  }

  async scrape() {
    this.timer = setTimeout(() => this.scrape(), EVERY_MS);
    if (document.hidden) return;
    try {
      const samples = parse(await (await call("metrics")).text());
      const now = performance.now() / 1000;
      if (this.last) this.points.push({ at: now, ...between(this.last.samples, samples, now - this.last.at) });
      this.last = { samples, at: now };
      this.points = this.points.filter(({ at }) => now - at <= SPAN_S);
      element("live-problem").textContent = this.points.length ? "" : "Measuring…";
      this.show(now);
    } catch (error) {
      this.last = null;
      element("live-problem").textContent = `${error.title ?? "The metrics cannot be read"}. ${error.detail ?? error.message}`;
    }
  }

  show(now) {
    const points = this.points.map((point) => ({ ...point, s: point.at - now }));
    element("plots").replaceChildren(...PLOTS.map(([title, unit, series]) => {
      const { picture, last } = plot(title, unit, points, series, SPAN_S);
      const legend = make("p", { className: "legend" }, ...series.map(({ style }, at) => make("span", { className: style }, last[at])));
      return make("figure", { className: "card" }, make("figcaption", {}, title), picture, legend);
    }));
  }
}
