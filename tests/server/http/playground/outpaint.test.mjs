import assert from "node:assert/strict";
import { test } from "node:test";

import {
  EDGES,
  NO_OUTPAINT,
  canvasSize,
  draggedPixels,
  fittingOutpaint,
  isExtended,
  mostOf,
  movedEdge,
} from "../../../../server/http/playground/outpaint.js";

const PICTURE = { width: 1024, height: 512 };

test("an edge moves in steps of 16 pixels, never inwards", () => {
  const moved = [7, 9, 100, -50, NaN].map((pixels) => movedEdge(PICTURE, NO_OUTPAINT, "left", pixels).left);
  assert.deepEqual(moved, [0, 16, 96, 0, 0]);
});

test("a canvas is never larger than what can be made, whichever edges are moved", () => {
  let outpaint = { ...NO_OUTPAINT };
  for (const edge of EDGES) {
    outpaint = movedEdge(PICTURE, outpaint, edge, 700);
  }
  assert.deepEqual(outpaint, { left: 512, right: 0, top: 704, bottom: 320 });
  assert.deepEqual(canvasSize(PICTURE, outpaint), { width: 1536, height: 1536 });
  assert.equal(mostOf(PICTURE, outpaint, "right"), 0);
});

test("a border stays with a picture of another size as far as there is room", () => {
  const wide = { left: 512, right: 0, top: 64, bottom: 0 };
  assert.deepEqual(fittingOutpaint({ width: 1504, height: 256 }, wide), { left: 32, right: 0, top: 64, bottom: 0 });
  assert.equal(isExtended(fittingOutpaint({ width: 1536, height: 1536 }, wide)), false);
});

test("handles are pulled outwards, on the screen's scale", () => {
  const pull = (edge, x, y) => draggedPixels(edge, { x: 0, y: 0 }, { x, y }, 2);
  assert.deepEqual([pull("left", -32, 5), pull("right", 32, 5), pull("top", 5, -32), pull("bottom", 5, 32)], [16, 16, 16, 16]);
});
