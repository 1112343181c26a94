// Classifies images over HTTP, with Node's built-in fetch.
//
//   node rest.js http://localhost:8000 ../cat.jpg more.jpg …

import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";

const DEADLINE_MS = 10_000;
const ATTEMPTS = 4;

const [url = "http://localhost:8000", ...paths] = process.argv.slice(2);

// The result for one image. A request is retried after the service's Retry-After.
async function predict(task, image) {
  for (let attempt = 1; ; attempt++) {
    const response = await fetch(`${url}/${task}`, {
      method: "POST",
      body: image,
      headers: { "X-Request-Timeout-Ms": String(DEADLINE_MS) },
      signal: AbortSignal.timeout(DEADLINE_MS + 2_000),
    });
    if (response.ok) return (await response.json()).results[0];
    const problem = await response.json(); // application/problem+json, RFC 9457
    const retryAfter = response.headers.get("retry-after");
    if (retryAfter === null || attempt === ATTEMPTS) throw new Error(`${problem.title}: ${problem.detail}`);
    await sleep(1000 * Number(retryAfter) * (1 + Math.random() / 4));
  }
}

for (const path of paths) {
  try {
    const { labels } = await predict("classify", await readFile(path));
    console.log(`${path}: ${labels.map(({ label, score }) => `${label} ${(100 * score).toFixed(1)} %`).join(", ")}`);
  } catch (error) {
    console.error(`${path}: ${error.message}`);
    process.exitCode = 1;
  }
}
