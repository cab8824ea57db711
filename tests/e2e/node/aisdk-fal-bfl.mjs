// The Vercel AI SDK with two of its providers: node aisdk-fal-bfl.mjs URL; prints what happened as JSON.
import { createBlackForestLabs } from "@ai-sdk/black-forest-labs";
import { createFal } from "@ai-sdk/fal";
import { generateImage } from "ai";
import { attempt, kindOf, picture } from "./outcomes.mjs";

const server = process.argv[2];
globalThis.AI_SDK_LOG_WARNINGS = false;
const models = {
  fal: createFal({ apiKey: "unused", baseURL: `${server}/fal/run` }).image("fal-ai/flux/schnell"),
  bfl: createBlackForestLabs({ apiKey: "unused", baseURL: `${server}/bfl/v1`, pollIntervalMillis: 50 })
    .image("flux-pro-1.1"),
};

const pictures = async (provider, request) => {
  const { images } = await generateImage({
    model: models[provider], prompt: "a cat", size: "256x272", seed: 5, maxRetries: 0, ...request,
  });
  return images.map(each => kindOf(each.uint8Array));
};

const outcomes = {};
for (const provider of Object.keys(models)) {
  outcomes[provider] = {
    one: await attempt(() => pictures(provider, {})),
    several: await attempt(() => pictures(provider, { n: 3 })),
    edited: await attempt(() => pictures(provider, { prompt: { text: "a cat", images: [picture] } })),
    bad: await attempt(() => pictures(provider, { size: undefined, seed: -1 })),
  };
}
console.log(JSON.stringify(outcomes));
