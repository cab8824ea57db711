/**
 * Server-sent events from a response that is read with fetch, since EventSource can neither POST nor send a key.
 *
 * Follows "Interpreting an event stream" of the HTML standard; ids and retry times, which the API does not
 * send, are left out.
 */

/** @typedef {{name: string, data: any}} ServerEvent */

/** Takes text in whatever pieces it comes, and gives events as they are complete. */
export class EventParser {
  #rest = "";
  #name = "";
  #data = /** @type {string[]} */ ([]);

  /**
   * @param {string} text
   * @returns {Generator<ServerEvent>}
   */
  *take(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        yield* this.#dispatch();
      } else {
        this.#field(line);
      }
    }
  }

  *#dispatch() {
    if (this.#data.length > 0) {
      yield { name: this.#name || "message", data: JSON.parse(this.#data.join("\n")) };
    }
    this.#name = "";
    this.#data = [];
  }

  /** @param {string} line */
  #field(line) {
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") {
      this.#name = value;
    } else if (field === "data") {
      this.#data.push(value);
    }
  }
}

/**
 * The events of a body, until it ends.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<ServerEvent>}
 */
export async function* eventsOf(body) {
  const parser = new EventParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      yield* parser.take(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops listening ends the work
  }
}
