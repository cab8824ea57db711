// @huggingface/inference: node huggingface.mjs URL; prints what happened as JSON.
import { InferenceClient } from "@huggingface/inference";
import { attempt, kindOf, picture as sent, sizeOf } from "./outcomes.mjs";

const client = new InferenceClient("hf_unused", { endpointUrl: `${process.argv[2]}/hf` });
const small = { width: 256, height: 256, num_inference_steps: 1, seed: 5 };

const picture = async (request, options) => {
  const blob = await client.textToImage({ inputs: "a cat", ...request }, { outputType: "blob", ...options });
  return { type: blob.type, kind: kindOf(await blob.arrayBuffer()) };
};

const edited = async parameters => {
  const inputs = new Blob([sent], { type: "image/png" });
  return sizeOf(await (await client.imageToImage({ inputs, parameters })).arrayBuffer());
};

const leaving = new AbortController();
setTimeout(() => leaving.abort(), 200);

console.log(JSON.stringify({
  defaults: await attempt(() => picture({})),
  parameters: await attempt(() => picture({ parameters: small })),
  webp: await attempt(() => picture({ parameters: { ...small, output_format: "webp" } })),
  edited: await attempt(() => edited({ prompt: "a cat", num_inference_steps: 2 })),
  editedWithoutWords: await attempt(() => edited()),
  bad: await attempt(() => picture({ parameters: { ...small, width: 100 } })),
  left: await attempt(() => picture(
    { parameters: { width: 1536, height: 1536, num_inference_steps: 12 } }, { signal: leaving.signal },
  )),
}));
