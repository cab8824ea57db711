// openai-node: node openai.mjs URL; prints what happened as JSON.
import OpenAI, { toFile } from "openai";
import { attempt, clear, kindOf, picture, sizeOf } from "./outcomes.mjs";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "unused", maxRetries: 0 });
const small = { model: "flux-schnell", prompt: "a cat", size: "256x256", steps: 1 };

const pictures = async (request, options) => {
  const { data } = await client.images.generate({ ...small, ...request }, options);
  return data.map(each => kindOf(Buffer.from(each.b64_json ?? each.url.split(",")[1], "base64")));
};

const edited = async (request) => {
  const image = await toFile(picture, "a.png", { type: "image/png" });
  const { data } = await client.images.edit({ prompt: "a cat", image, steps: 2, ...request });
  return data.map(each => sizeOf(Buffer.from(each.b64_json, "base64")));
};

const editStreamed = async () => {
  const image = await toFile(picture, "a.png", { type: "image/png" });
  const stream = await client.images.edit({ prompt: "a cat", image, stream: true, partial_images: 1, steps: 4 });
  const kinds = [];
  for await (const event of stream) kinds.push(event.type);
  return kinds.at(-1);
};

const streamed = async () => {
  const stream = await client.images.generate({ ...small, steps: 12, seed: 5, stream: true, partial_images: 2 });
  const events = [];
  for await (const event of stream) events.push(event);
  return { last: events.at(-1).type, kinds: [...new Set(events.map(each => kindOf(Buffer.from(each.b64_json, "base64"))))] };
};

const leaving = new AbortController();
setTimeout(() => leaving.abort(), 200);

console.log(JSON.stringify({
  one: await attempt(() => pictures({})),
  several: await attempt(() => pictures({ n: 3, output_format: "jpeg" })),
  address: await attempt(() => pictures({ response_format: "url" })),
  streamed: await attempt(streamed),
  unknown: await attempt(() => client.models.retrieve("dall-e-9")),
  models: await attempt(async () => (await client.models.list()).data.map(each => each.id)),
  model: await attempt(async () => (await client.models.retrieve("black-forest-labs/FLUX.1-schnell")).id),
  edited: await attempt(() => edited({ n: 2, strength: 0.5 })),
  masked: await attempt(async () => edited({ mask: await toFile(clear, "m.png", { type: "image/png" }) })),
  editStreamed: await attempt(editStreamed),
  noPicture: await attempt(async () => edited({ image: await toFile(Buffer.from("GIF89a"), "a.gif") })),
  bad: await attempt(() => pictures({ size: "100x100" })),
  left: await attempt(() => pictures({ size: "1536x1536", steps: 12 }, { signal: leaving.signal })),
}));
