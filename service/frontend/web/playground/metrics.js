// Prometheus' text format, and the growth of counters and histograms between two scrapes.

/** Samples by name: [{labels, value}]. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const [, name, labels = "", value] = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line) ?? [];
    if (!name) continue;
    const found = {};
    for (const [, label, text] of labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) found[label] = text;
    if (!samples.has(name)) samples.set(name, []);
    samples.get(name).push({ labels: found, value: value === "+Inf" ? Infinity : Number(value) });
  }
  return samples;
}

export function sum(samples, name, matches = () => true) {
  return (samples.get(name) ?? []).reduce((total, { labels, value }) => (matches(labels) ? total + value : total), 0);
}

/** Growth of a counter; a counter that fell began anew. */
export function growth(before, after, name, matches) {
  const [from, to] = [sum(before, name, matches), sum(after, name, matches)];
  return to >= from ? to - from : to;
}

/** A quantile of what a histogram counted between two scrapes, by linear interpolation in its bucket; null for nothing. */
export function quantile(before, after, name, share, matches) {
  const bounds = new Map();
  for (const [samples, sign] of [[after, 1], [before, -1]]) {
    for (const { labels, value } of samples.get(`${name}_bucket`) ?? []) {
      if (matches && !matches(labels)) continue;
      const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
      bounds.set(bound, (bounds.get(bound) ?? 0) + sign * value);
    }
  }
  const buckets = [...bounds].sort(([one], [other]) => one - other);
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!(total > 0)) return null;
  let [lower, below] = [0, 0];
  for (const [bound, count] of buckets) {
    if (count >= share * total) {
      if (bound === Infinity) return lower;
      return lower + ((bound - lower) * (share * total - below)) / Math.max(count - below, 1e-9);
    }
    [lower, below] = [bound, count];
  }
  return lower;
}

/** What the service did between two scrapes, `seconds` apart. */
export function between(before, after, seconds) {
  const ok = ({ outcome }) => outcome === "ok";
  const batches = growth(before, after, "convmlp_batch_size_count");
  return {
    answered: growth(before, after, "convmlp_requests_total", ok) / seconds,
    failed: growth(before, after, "convmlp_requests_total", ({ outcome }) => outcome !== "ok") / seconds,
    p50: quantile(before, after, "convmlp_request_duration_seconds", 0.5, ({ outcome }) => outcome === undefined || outcome === "ok"),
    p99: quantile(before, after, "convmlp_request_duration_seconds", 0.99, ({ outcome }) => outcome === undefined || outcome === "ok"),
    queued: sum(after, "convmlp_queue_depth"),
    batch: batches > 0 ? growth(before, after, "convmlp_batch_size_sum") / batches : null,
  };
}
