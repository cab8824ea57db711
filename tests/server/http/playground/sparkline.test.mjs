import assert from "node:assert/strict";
import { test } from "node:test";

import { pathOf } from "../../../../server/http/playground/sparkline.js";

test("a curve ends at the right, and what is too large ends at the top", () => {
  const frame = { width: 100, height: 10, length: 5, top: 2 };
  assert.equal(pathOf([0, 1, 4], frame), "M50.0 10.0L75.0 5.0L100.0 0.0");
  assert.equal(pathOf([], frame), "");
});
