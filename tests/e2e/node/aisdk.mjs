// The Vercel AI SDK's providers for OpenAI and what is compatible: node aisdk.mjs URL; prints JSON.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";
import { attempt, clear, kindOf, picture, sizeOf } from "./outcomes.mjs";

const baseURL = `${process.argv[2]}/v1`;
const providers = {
  openai: createOpenAI({ baseURL, apiKey: "unused" }),
  compatible: createOpenAICompatible({ name: "schnell", baseURL, apiKey: "unused" }),
};

const pictures = async (provider, request) => {
  const model = providers[provider].imageModel("flux-schnell");
  const { images } = await generateImage({ model, prompt: "a cat", size: "256x256", maxRetries: 0, ...request });
  return images.map(each => kindOf(each.uint8Array));
};

const edited = async provider => {
  const model = providers[provider].imageModel("flux-schnell");
  const prompt = { text: "a cat", images: [picture], mask: clear };
  const { image } = await generateImage({ model, prompt, maxRetries: 0 });
  return sizeOf(image.uint8Array);
};

const outcomes = {};
for (const provider of Object.keys(providers)) {
  outcomes[provider] = {
    one: await attempt(() => pictures(provider, {})),
    several: await attempt(() => pictures(provider, { n: 3 })),
    edited: await attempt(() => edited(provider)),
    bad: await attempt(() => pictures(provider, { size: "100x100" })),
    left: await attempt(() => pictures(provider, { size: "1536x1536", abortSignal: AbortSignal.timeout(200) })),
  };
}
console.log(JSON.stringify(outcomes));
