// Where the time of a request went, as a bar.

import { element, make } from "./dom.js";

const NAMES = { decode: "decode and resize", queue: "wait for the device", infer: "network", post: "postprocess", other: "other in the service", travel: "upload, network, browser" };

export function showTimeline({ stages, batch }, elapsedMs, models) {
  const { total, ...parts } = stages;
  if (total === undefined) return;
  const named = Object.values(parts).reduce((sum, ms) => sum + ms, 0);
  parts.other = Math.max(0, total - named);
  parts.travel = Math.max(0, elapsedMs - total);
  const whole = Object.values(parts).reduce((sum, ms) => sum + ms, 0);
  const text = (stage, ms) => `${NAMES[stage] ?? stage} ${ms.toFixed(1)} ms`;
  const shown = Object.entries(parts).filter(([, ms]) => ms > 0);
  element("timeline").replaceChildren(...shown.map(([stage, ms]) => {
    const piece = make("span", { className: `stage-${stage}`, title: text(stage, ms) });
    piece.style.setProperty("--share", String(ms / whole));
    return piece;
  }));
  element("timeline").ariaLabel = shown.map(([stage, ms]) => text(stage, ms)).join(", ");
  element("timing-legend").replaceChildren(...shown.map(([stage, ms]) => make("li", { className: `stage-${stage}` }, text(stage, ms))));
  element("total").textContent = `${elapsedMs.toFixed(0)} ms, of which ${total.toFixed(0)} ms in the service`;
  const ran = models.map((model) => `${model.name} in ${model.precision} on ${model.device}`).join("; ");
  const together = batch === null ? "" : batch === 1 ? " The batch held this picture alone." : ` The batch held ${batch} pictures.`;
  element("ran").textContent = `${ran}.${together}`;
  element("timings").hidden = false;
}
