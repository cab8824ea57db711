import assert from "node:assert/strict";
import { test } from "node:test";

import { EventParser, eventsOf } from "../../../../server/http/playground/event_stream.js";

const STREAM = 'event: queued\ndata: {"image":0}\n\n: keep-alive\n\nevent: step\ndata: {"text":\ndata: "ü"}\n\ndata: 1\n\n';
const EVENTS = [
  { name: "queued", data: { image: 0 } },
  { name: "step", data: { text: "ü" } },
  { name: "message", data: 1 },
];

test("events are the same however the text is cut", () => {
  for (const size of [1, 2, 3, 7, STREAM.length]) {
    const parser = new EventParser();
    const found = [];
    for (let start = 0; start < STREAM.length; start += size) {
      found.push(...parser.take(STREAM.slice(start, start + size)));
    }
    assert.deepEqual(found, EVENTS, `in pieces of ${size}`);
  }
});

test("lines may end as they do anywhere", () => {
  for (const ending of ["\n", "\r\n", "\r"]) {
    const parser = new EventParser();
    const found = [...parser.take(`${STREAM}\n`.replaceAll("\n", ending)), ...parser.take("\n")];
    assert.deepEqual(found, EVENTS, JSON.stringify(ending));
  }
});

test("what is not finished is no event", () => {
  assert.deepEqual([...new EventParser().take('event: done\ndata: {"image":0}\n')], []);
});

test("a character that comes in two pieces is whole, and who stops listening ends the body", async () => {
  const bytes = new TextEncoder().encode(STREAM);
  const cut = bytes.indexOf(0xc3) + 1;
  let cancelled = false;
  const body = new ReadableStream({
    start(controller) {
      controller.enqueue(bytes.slice(0, cut));
      controller.enqueue(bytes.slice(cut));
    },
    cancel() {
      cancelled = true;
    },
  });
  const found = [];
  for await (const event of eventsOf(body)) {
    found.push(event);
    if (found.length === EVENTS.length) {
      break;
    }
  }
  assert.deepEqual(found, EVENTS);
  assert.ok(cancelled);
});
