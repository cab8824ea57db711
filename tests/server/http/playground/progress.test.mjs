import assert from "node:assert/strict";
import { test } from "node:test";

import {
  advanced,
  fractionOf,
  notBegun,
  predictedOf,
  summaryOf,
  wordsOf,
} from "../../../../server/http/playground/progress.js";

const queued = (image, position, predicted_s) => ({ name: "queued", data: { image, position, predicted_s } });
const step = (image, done, steps = 4) => ({ name: "step", data: { image, step: done, steps } });
const after = (count, ...events) => events.reduce(advanced, notBegun(count));

test("one picture is followed from the queue to the last step", () => {
  const events = [queued(0, 3, 1.25), step(0, 1), step(0, 4)];
  const told = events.map((_, index) => summaryOf(after(1, ...events.slice(0, index + 1))));
  assert.deepEqual(told, ["Waiting: 3 pictures before it", "Step 1 of 4", "Decoding"]);
  assert.equal(predictedOf(after(1, ...events)), 1.25);
});

test("several pictures are added up, and each says what it does itself", () => {
  const progress = after(2, queued(0, 0, 0.5), queued(1, 1, 0.8), step(0, 2));
  assert.equal(summaryOf(progress), "Step 2 of 8 in all");
  assert.deepEqual(progress.map(wordsOf), ["step 2 of 4", "1 before it"]);
  assert.equal(predictedOf(progress), 0.8);
  assert.equal(summaryOf(advanced(advanced(progress, step(0, 4)), step(1, 4))), "Decoding");
});

test("steps begin again where a worker died", () => {
  const progress = after(1, step(0, 3), step(0, 1));
  assert.equal(summaryOf(progress), "Step 1 of 4");
});

test("a bar grows with the steps and is full only at the end", () => {
  const fractions = [1, 2, 3, 4].map((done) => fractionOf(after(1, step(0, done))[0]));
  assert.deepEqual(fractions, fractions.toSorted());
  assert.ok(fractions[0] > 0 && fractions[3] < 1);
  assert.equal(fractionOf(notBegun(1)[0]), 0);
});

test("the latest preview of a picture is the one to show, and other events change nothing", () => {
  const shown = (base64) => ({ name: "preview", data: { image: 1, b64_json: base64, content_type: "image/png" } });
  const progress = after(2, shown("a"), shown("b"), { name: "unknown", data: { image: 1 } });
  assert.deepEqual(progress.map(({ preview }) => preview), [null, { base64: "b", type: "image/png" }]);
});
