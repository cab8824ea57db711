// Replicate's official client for Node, unchanged: node replicate.mjs URL
import assert from "node:assert/strict";
import Replicate from "replicate";
import { picture, sizeOf } from "./outcomes.mjs";

const MODEL = "black-forest-labs/flux-schnell";
const SMALL = { prompt: "a red circle", megapixels: "0.25", num_inference_steps: 1 };
const LONG = { prompt: "a tree", num_inference_steps: 12, num_outputs: 4 };
const replicate = new Replicate({ auth: "r8_unused", baseUrl: `${process.argv[2]}/v1` });

// run: blocks, and gives files of data: addresses
const [first, second] = await replicate.run(MODEL, { input: { ...SMALL, num_outputs: 2 } });
const bytes = Buffer.from(await (await first.blob()).arrayBuffer());
assert.equal(bytes.subarray(8, 12).toString(), "WEBP");
assert.notEqual(first.url().href, second.url().href);

// a picture as input: uploaded, named, and the size of the answer
const input = { ...SMALL, image: picture, prompt_strength: 0.5, output_format: "png" };
const [edited] = await replicate.run(MODEL, { input });
assert.deepEqual(sizeOf(Buffer.from(await (await edited.blob()).arrayBuffer())), [256, 272]);
const file = await replicate.files.create(new Blob([picture], { type: "image/png" }));
assert.equal((await replicate.files.get(file.id)).content_type, "image/png");
assert.ok(await replicate.files.delete(file.id));

// run: polls
const states = [];
await replicate.run(
  MODEL,
  { input: SMALL, wait: { mode: "poll", interval: 50 } },
  (prediction) => states.push(prediction.status),
);
assert.equal(states.at(-1), "succeeded");

// stream: the log, files, the end
const events = [];
for await (const event of replicate.stream(MODEL, { input: { ...SMALL, num_outputs: 2 } })) events.push(event);
assert.deepEqual(events.map(({ event }) => event), ["logs", "output", "output", "done"]);
const streamed = Buffer.from(await (await events[1].data.blob()).arrayBuffer());
assert.equal(streamed.subarray(8, 12).toString(), "WEBP");

// a wait that runs out, then cancel
const started = await replicate.predictions.create({ version: MODEL, input: LONG, wait: 1 });
assert.equal(started.status, "starting");
assert.equal((await replicate.predictions.cancel(started.id)).status, "canceled");
assert.equal((await replicate.predictions.get(started.id)).status, "canceled");

// a list, page by page
const ids = [];
for await (const page of replicate.paginate(replicate.predictions.list)) {
  ids.push(...page.map((prediction) => prediction.id));
}
assert.equal(ids[0], started.id);

// bad input
await assert.rejects(replicate.run(MODEL, { input: { ...SMALL, num_outputs: 9 } }), /num_outputs/);

// descriptions and the secret
const model = await replicate.models.get("black-forest-labs", "flux-schnell");
assert.ok(model.latest_version.openapi_schema.components.schemas.Input.properties.prompt);
assert.match((await replicate.webhooks.default.secret.get()).key, /^whsec_/);
console.log("ok");
