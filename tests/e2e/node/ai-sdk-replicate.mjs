// The Vercel AI SDK with its Replicate provider, unchanged: node ai-sdk-replicate.mjs URL
import assert from "node:assert/strict";
import { createReplicate } from "@ai-sdk/replicate";
import { clear, picture, sizeOf } from "./outcomes.mjs";
import { experimental_generateImage as generateImage } from "ai";

const replicate = createReplicate({ apiToken: "r8_unused", baseURL: `${process.argv[2]}/v1` });
const { images } = await generateImage({
  model: replicate.image("black-forest-labs/flux-schnell"),
  prompt: "a red circle",
  n: 2,
  aspectRatio: "16:9",
  seed: 1,
  providerOptions: { replicate: { megapixels: "0.25", num_inference_steps: 1 } },
});
assert.equal(images.length, 2);
assert.ok(images.every((image) => image.mediaType === "image/webp" && image.uint8Array.length > 100));

const { image } = await generateImage({
  model: replicate.image("black-forest-labs/flux-schnell"),
  prompt: { text: "a red circle", images: [picture], mask: clear },
  providerOptions: { replicate: { num_inference_steps: 1, output_format: "png" } },
});
assert.deepEqual(sizeOf(image.uint8Array), [256, 272]);
console.log("ok");
