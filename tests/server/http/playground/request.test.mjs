import assert from "node:assert/strict";
import { test } from "node:test";

import { expectedPictures, fieldsOf, fileName, settingsOf, settingsOfPicture } from "../../../../server/http/playground/request.js";

const TEXTS = {
  prompt: "a cat",
  negative_prompt: "",
  width: "256",
  height: "512",
  num_inference_steps: "4",
  seed: "0",
  num_images: "2",
  output_format: "png",
  output_quality: "80",
  guidance_scale: " ",
  priority: "",
  deadline_ms: "",
  max_sequence_length: "",
};

test("what is empty is left to the model, and numbers are numbers", () => {
  assert.deepEqual(settingsOf(TEXTS), {
    prompt: "a cat",
    width: 256,
    height: 512,
    num_inference_steps: 4,
    seed: 0,
    num_images: 2,
    output_format: "png",
  });
});

test("what is entered is asked for", () => {
  const more = { auto_steps: "yes", guidance_scale: "3.5", output_format: "jpeg", embed_prompt: "yes", priority: "low" };
  const settings = settingsOf({ ...TEXTS, ...more });
  assert.equal(settings.num_inference_steps, "auto");
  assert.equal(settings.guidance_scale, 3.5);
  assert.equal(settings.output_quality, 80);
  assert.equal(settings.embed_prompt, true);
  assert.equal(settings.priority, "low");
});

test("a picture of several is asked for again by its own seed and the steps that it had", () => {
  const settings = settingsOf({ ...TEXTS, auto_steps: "yes" });
  const { seed, num_images, num_inference_steps } = settingsOfPicture(settings, 7, 3);
  assert.deepEqual([seed, num_images, num_inference_steps], [7, 1, 3]);
});

test("a picture that is extended has no size beside its borders", () => {
  const outpaint = { left: 16, right: 0, top: 0, bottom: 0 };
  assert.ok("width" in fieldsOf(settingsOf(TEXTS)));
  const fields = fieldsOf({ ...settingsOf(TEXTS), outpaint });
  assert.deepEqual(["width" in fields, "height" in fields, fields.outpaint], [false, false, outpaint]);
});

test("files are called after the beginning of the prompt and the seed", () => {
  const name = (prompt, type = "image/png") => fileName({ prompt, seed: 42 }, type);
  assert.equal(name("A red circle, on blue!"), "a-red-circle-on-blue-42.png");
  assert.equal(name("Größe ../../etc/passwd", "image/jpeg"), "größe-etc-passwd-42.jpg");
  assert.equal(name("…", "image/webp"), "picture-42.webp");
  assert.ok(name("word ".repeat(40)).length <= 60);
});

test("nonsense in the number of pictures does not fill the page", () => {
  const counts = [undefined, NaN, -3, 0, 1, 2.5, 8, 9, 1e12];
  assert.deepEqual(
    counts.map((count) => expectedPictures({ ...settingsOf(TEXTS), num_images: count })),
    [1, 1, 1, 1, 1, 2, 8, 8, 8],
  );
});
