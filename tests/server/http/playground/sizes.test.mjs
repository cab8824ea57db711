import assert from "node:assert/strict";
import { test } from "node:test";

import {
  MAX_SIDE,
  MIN_SIDE,
  SHAPES,
  SIDE_MULTIPLE,
  coveringPart,
  fittingSize,
  nearestSide,
  placeOfPart,
  sizeOf,
} from "../../../../server/http/playground/sizes.js";

const allowed = (side) => side >= MIN_SIDE && side <= MAX_SIDE && side % SIDE_MULTIPLE === 0;

test("every shape at every model's area is a size that the API makes, and has about its ratio", () => {
  for (const area of [256 ** 2, 512 ** 2, 1024 ** 2]) {
    for (const { name, ratio } of SHAPES) {
      const { width, height } = sizeOf(ratio, area);
      assert.ok(allowed(width) && allowed(height), `${name} is ${width}x${height}`);
      assert.ok(Math.abs(width / height / ratio - 1) < 0.07, `${name} is ${width}x${height}`);
    }
  }
});

test("a shape has the pixels of the model's size where its short side allows it", () => {
  assert.deepEqual(sizeOf(1, 1024 ** 2), { width: 1024, height: 1024 });
  assert.deepEqual(sizeOf(16 / 9, 1024 ** 2), { width: 1360, height: 768 });
  assert.deepEqual(sizeOf(9 / 16, 256 ** 2), { width: 256, height: 448 });
});

test("what is typed goes to the nearest side, nonsense to the least", () => {
  const typed = [0, 250, 263, 264, 1000, 9999, NaN];
  assert.deepEqual(typed.map(nearestSide), [256, 256, 256, 272, 1008, 1536, 256]);
});

test("a picture of an allowed size stays as it is, another one becomes as large as the model likes", () => {
  assert.deepEqual(fittingSize({ width: 1024, height: 512 }, 256 ** 2), { width: 1024, height: 512 });
  assert.deepEqual(fittingSize({ width: 4000, height: 3000 }, 1024 ** 2), { width: 1184, height: 880 });
  assert.deepEqual(fittingSize({ width: 30, height: 30 }, 256 ** 2), { width: 256, height: 256 });
});

test("the middle of a picture is kept, and nothing is stretched", () => {
  const part = coveringPart({ width: 400, height: 200 }, { width: 256, height: 256 });
  assert.deepEqual(part, { x: 100, y: 0, width: 200, height: 200 });
});

test("what was painted on a part lies where that part is in another one", () => {
  const picture = { width: 400, height: 200 };
  const square = coveringPart(picture, { width: 256, height: 256 });
  const whole = coveringPart(picture, { width: 512, height: 256 });
  assert.deepEqual(placeOfPart(square, whole, { width: 512, height: 256 }), { x: 128, y: 0, width: 256, height: 256 });
  assert.deepEqual(placeOfPart(whole, square, { width: 256, height: 256 }), { x: -128, y: 0, width: 512, height: 256 });
});
