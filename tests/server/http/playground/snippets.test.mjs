import assert from "node:assert/strict";
import { test } from "node:test";

import { bodyOf, curl, javascript, python } from "../../../../server/http/playground/snippets.js";

const SETTINGS = {
  prompt: "a cat",
  width: 256,
  height: 256,
  num_inference_steps: 4,
  seed: 7,
  num_images: 1,
  output_format: "png",
};
const CALL = { url: "http://here", settings: SETTINGS, inputs: [], keyed: false };

test("a program sends what decides the picture and nothing else", () => {
  assert.deepEqual(bodyOf(SETTINGS), { prompt: "a cat", width: 256, height: 256, num_inference_steps: 4, seed: 7 });
  assert.equal(bodyOf({ ...SETTINGS, output_format: "jpeg" }).output_format, "jpeg");
});

test("a key is never written into a program, and named only where one is asked for", () => {
  for (const write of [curl, python, javascript]) {
    assert.doesNotMatch(write(CALL), /Authorization/);
    assert.match(write({ ...CALL, keyed: true }), /Authorization.*SCHNELL_API_KEY/);
  }
});
