// Classifies pictures in one stream, then finds what is in the first of them.
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
const IN_HAND = 16; // pictures that are sent and not answered yet

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

// A unary call with a deadline. What may succeed later (the service starts, or is full) is tried again.
async function call(method, request) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await new Promise((resolve, reject) => {
        const options = { deadline: Date.now() + DEADLINE_MS };
        vision[method](request, options, (error, reply) => (error ? reject(error) : resolve(reply)));
      });
    } catch (error) {
      const later = [grpc.status.UNAVAILABLE, grpc.status.RESOURCE_EXHAUSTED].includes(error.code);
      if (!later || attempt === ATTEMPTS) throw error;
      await sleep(250 * 2 ** attempt * (0.5 + Math.random()));
    }
  }
}

// Every picture in one call. Replies come as they are ready, each with its request's id; a bad picture is an
// error in its own reply.
async function classifyAll(files) {
  const stream = vision.ClassifyStream({ deadline: Date.now() + DEADLINE_MS });
  const labels = new Map();
  let free = IN_HAND;
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
  const answers = await classifyAll(paths);
  for (const path of paths) console.log(`${path}: ${answers.get(path)}`);
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
