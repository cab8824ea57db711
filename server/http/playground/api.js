/**
 * The server, as the page calls it: the key goes along, and every failure is a `Failure`.
 *
 * A server that asks for a key is asked again once the person has given one.
 */

import { eventsOf } from "./event_stream.js";
import { failureInStream, failureOf, interrupted, unreachable } from "./failure.js";

/** @typedef {import("./event_stream.js").ServerEvent} ServerEvent */

/** Where the page is served from: a proxy may have put a path in front. */
export const ROOT = new URL("../", import.meta.url);

export class Api {
  #keys;

  /** @param {import("./key.js").Keys} keys */
  constructor(keys) {
    this.#keys = keys;
  }

  /**
   * What the server is doing.
   * @returns {Promise<any>}
   */
  async status() {
    return (await this.#fetch("v1/status")).json();
  }

  /**
   * LoRAs that may be asked for: of the models that are listed those that change another one.
   * @returns {Promise<{name: string}[]>}
   */
  async loras() {
    const { data } = await (await this.#fetch("v1/models")).json();
    return data.flatMap((/** @type {any} */ model) => (model.parent ? [{ name: model.id }] : []));
  }

  /**
   * Make pictures: events until `done`, whose data is the answer. Aborting ends the work on the server too.
   * @param {Record<string, unknown>} body
   * @param {AbortSignal} signal
   * @returns {AsyncGenerator<ServerEvent>}
   */
  async *generate(body, signal) {
    const response = await this.#fetch("v1/generate", {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
      body: JSON.stringify(body),
      signal,
    });
    try {
      for await (const event of eventsOf(/** @type {ReadableStream<Uint8Array>} */ (response.body))) {
        if (event.name === "error") {
          throw failureInStream(event.data);
        }
        yield event;
        if (event.name === "done") {
          return;
        }
      }
    } catch (error) {
      throw error instanceof TypeError ? interrupted() : error;
    }
    throw interrupted();
  }

  /**
   * @param {string} path
   * @param {RequestInit} options
   * @returns {Promise<Response>}
   */
  async #fetch(path, options = {}) {
    for (;;) {
      const key = this.#keys.current;
      const headers = { ...options.headers, ...(key === null ? {} : { Authorization: `Bearer ${key}` }) };
      const response = await fetch(new URL(path, ROOT), { ...options, headers, cache: "no-store" }).catch((error) => {
        throw error instanceof TypeError ? unreachable() : error;
      });
      if (response.ok) {
        return response;
      }
      const failure = await failureOf(response);
      if (failure.code !== "invalid_api_key" || !(await this.#keys.ask(key, failure.message))) {
        throw failure;
      }
    }
  }
}
