// openai-node: node openai.mjs URL; prints what happened as JSON.
import OpenAI from "openai";
import { attempt, kindOf } from "./outcomes.mjs";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "unused", maxRetries: 0 });
const small = { model: "flux-schnell", prompt: "a cat", size: "256x256", steps: 1 };

const pictures = async (request, options) => {
  const { data } = await client.images.generate({ ...small, ...request }, options);
  return data.map(each => kindOf(Buffer.from(each.b64_json ?? each.url.split(",")[1], "base64")));
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
  bad: await attempt(() => pictures({ size: "100x100" })),
  left: await attempt(() => pictures({ size: "1536x1536", steps: 12 }, { signal: leaving.signal })),
}));
