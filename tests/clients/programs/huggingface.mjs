// Prints what the client makes of each task's answer, and the error for a file that is no picture.
//
//   node huggingface.mjs URL PICTURE OTHER_FILE
import { readFile } from "node:fs/promises";
import { InferenceClient } from "@huggingface/inference";

const [url, picture, other] = process.argv.slice(2);
const clientOf = (task) => new InferenceClient("", { endpointUrl: `${url}/compat/huggingface/${task}` });
const inputs = new Blob([await readFile(picture)], { type: "image/jpeg" });

// This client sends the bytes alone, without parameters; only of segmentation it sends JSON.
const classified = await clientOf("classify").imageClassification({ inputs });
const detected = await clientOf("detect").objectDetection({ inputs });
const segmented = await clientOf("segment").imageSegmentation({ inputs, parameters: { subtask: "semantic" } });
const failed = await clientOf("classify")
  .imageClassification({ inputs: new Blob([await readFile(other)]) })
  .then(() => "", (error) => error.message);

console.log(JSON.stringify({ classified, detected, segmented, failed }));
