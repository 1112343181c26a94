#!/usr/bin/env bash
# @huggingface/inference 4.13.30 drops the parameters of imageClassification and objectDetection.
#
# Both methods take `parameters` (`top_k`, `threshold`), by their types and their documentation. The client sends the
# bytes of the image alone, as it must without parameters, and no parameter reaches the server: there is no error, and a
# caller gets the server's defaults. imageSegmentation sends JSON with `inputs` and `parameters`, and so does Hugging Face's
# client for Python for all three.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts @huggingface/inference@4.13.30
cat > ask.mjs <<'NODE'
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { InferenceClient } from "@huggingface/inference";

const bodies = [];
const server = createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  bodies.push(Buffer.concat(chunks).toString("latin1"));
  response.setHeader("Content-Type", "application/json").end("[]");
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const endpointUrl = `http://127.0.0.1:${server.address().port}`;
const client = new InferenceClient("", { endpointUrl });
const inputs = new Blob(["the image"]);

await client.imageClassification({ inputs, parameters: { top_k: 1 } });
await client.objectDetection({ inputs, parameters: { threshold: 0.9 } });
await client.imageSegmentation({ inputs, parameters: { threshold: 0.9 } });
server.close();
const [classified, detected, segmented] = bodies;
console.log({ classified, detected, segmented });
assert.equal(classified, "the image", "imageClassification sends parameters now");
assert.equal(detected, "the image", "objectDetection sends parameters now");
assert.equal(JSON.parse(segmented).parameters.threshold, 0.9);
NODE
node ask.mjs
