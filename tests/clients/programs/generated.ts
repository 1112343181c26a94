// Prints what a client that OpenAPI Generator's typescript-fetch generated makes of the service's answers.
//
//   node generated.js URL PICTURE OTHER_FILE
import { readFileSync } from "node:fs";
import { Configuration, ModelsApi, PredictionsApi, ResponseError } from "./client";

const [url, picture, other] = process.argv.slice(2);

async function main(): Promise<void> {
  const configuration = new Configuration({ basePath: url });
  const predictions = new PredictionsApi(configuration);
  const body = new Blob([readFileSync(picture)]);
  const classified = (await predictions.classify({ body })).results[0];
  const detected = (await predictions.detect({ body })).results[0];
  const segmented = (await predictions.segment({ body })).results[0];
  const failed = await predictions.classify({ body: new Blob([readFileSync(other)]) }).then(
    () => "",
    async (error: ResponseError) => (await error.response.json()).detail,
  );
  const { models } = await new ModelsApi(configuration).listModels();
  console.log(
    JSON.stringify({
      labels: classified.labels?.map((row) => row.label),
      detections: detected.detections?.map((row) => row.label),
      segments: segmented.segments?.map((row) => row.label),
      error: failed,
      models: models.map((model) => model.name),
    }),
  );
}

main();
