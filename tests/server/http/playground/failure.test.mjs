import assert from "node:assert/strict";
import { test } from "node:test";

import { failureOf } from "../../../../server/http/playground/failure.js";

test("a failure has the field that is wrong, and when to come back", async () => {
  const error = { code: "overloaded", message: "the backlog is 31.0 s", param: null, retryable: true };
  const response = Response.json({ error }, { status: 429, headers: { "Retry-After": "7" } });
  const failure = await failureOf(response);
  assert.deepEqual([failure.code, failure.message, failure.retryAfterS], ["overloaded", "The backlog is 31.0 s.", 7]);
  const wrong = { code: "invalid_request", message: "seed is -1; allowed: from 0", param: "seed", retryable: false };
  const other = await failureOf(Response.json({ error: wrong }, { status: 422 }));
  assert.deepEqual([other.param, other.message, other.retryable], ["seed", "seed is -1; allowed: from 0.", false]);
});

test("what is between the page and the server may answer in any shape", async () => {
  for (const body of ["<h1>Bad gateway</h1>", "", "null", "{}"]) {
    const failure = await failureOf(new Response(body, { status: 502 }));
    assert.deepEqual([failure.code, failure.retryable], ["unexpected", true]);
    assert.match(failure.message, /502/);
  }
});
