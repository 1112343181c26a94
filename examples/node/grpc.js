// Classifies images in one stream, then detects the objects in the first one.
//
//   npm install
//   node grpc.js localhost:8001 ../cat.jpg more.jpg …

import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const PROTO = fileURLToPath(new URL("../../proto/convmlp/v1/vision.proto", import.meta.url));
const DEADLINE_MS = 10_000;
const ATTEMPTS = 4;
const MAX_IN_FLIGHT = 16; // images sent and not yet answered

const definition = loader.loadSync(PROTO, {
  includeDirs: [fileURLToPath(new URL("../../proto", import.meta.url))],
  keepCase: true,
  enums: String,
  defaults: true,
});
const { convmlp } = grpc.loadPackageDefinition(definition);

const [address = "localhost:8001", ...paths] = process.argv.slice(2);
const vision = new convmlp.v1.Vision(address, grpc.credentials.createInsecure(), {
  "grpc.max_send_message_length": 64 * 2 ** 20,
  "grpc.max_receive_message_length": 64 * 2 ** 20,
  "grpc.keepalive_time_ms": 30_000,
});

// A unary call with a deadline. It is retried if the service is starting or at capacity.
async function call(method, request) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await new Promise((resolve, reject) => {
        const options = { deadline: Date.now() + DEADLINE_MS };
        vision[method](request, options, (error, reply) => (error ? reject(error) : resolve(reply)));
      });
    } catch (error) {
      const retryable = [grpc.status.UNAVAILABLE, grpc.status.RESOURCE_EXHAUSTED].includes(error.code);
      if (!retryable || attempt === ATTEMPTS) throw error;
      await sleep(250 * 2 ** attempt * (0.5 + Math.random()));
    }
  }
}

// All images in one call. Replies arrive as they are ready, each with its request's id. A bad image is an error in its
// own reply.
async function classifyAll(files) {
  const stream = vision.ClassifyStream({ deadline: Date.now() + DEADLINE_MS });
  const labels = new Map();
  let free = MAX_IN_FLIGHT;
  let wake = () => {};
  const sending = (async () => {
    for (const [id, file] of files.entries()) {
      while (free === 0) await new Promise((resolve) => (wake = resolve));
      free--;
      stream.write({ id: String(id), image: await readFile(file), top_k: 3 });
    }
    stream.end();
  })();
  for await (const reply of stream) {
    free++;
    wake();
    labels.set(files[Number(reply.id)], reply.error ? `error: ${reply.error.message}` : describe(reply.labels));
  }
  await sending;
  return labels;
}

function describe(labels) {
  return labels.map(({ label, score }) => `${label} ${(100 * score).toFixed(1)} %`).join(", ");
}

try {
  const results = await classifyAll(paths);
  for (const path of paths) console.log(`${path}: ${results.get(path)}`);
  const found = await call("Detect", { image: await readFile(paths[0]), score_threshold: 0.5 });
  for (const { label, score, box } of found.detections) {
    const corners = [box.xmin, box.ymin, box.xmax, box.ymax].map(Math.round);
    console.log(`${paths[0]}: ${label} ${score.toFixed(2)} at ${corners.join(", ")}`);
  }
} catch (error) {
  console.error(`${grpc.status[error.code] ?? "error"}: ${error.details ?? error.message}`);
  process.exitCode = 1;
} finally {
  vision.close();
}
