/**
 * One request from the moment it is sent until its pictures are kept: progress, waiting, trying again, ending.
 *
 * How it looks is `run_view.js`.
 */

import { blobOf, dataUriOf } from "./bytes.js";
import { Failure } from "./failure.js";
import { advanced, notBegun } from "./progress.js";
import { MAX_PREVIEWS, expectedPictures, fieldsOf, settingsOfPicture } from "./request.js";
import { RunView } from "./run_view.js";

/** @typedef {import("./store.js").Entry} Entry */
/** @typedef {import("./store.js").Inputs} Inputs */
/**
 * @typedef {object} Listeners
 * @property {(entry: Omit<Entry, "id">) => Promise<Entry>} onPicture a picture is finished: keep it
 * @property {(failure: Failure) => boolean} onFailure true if it was shown at the field that is wrong
 * @property {(run: Run) => void} onEnd
 * @property {import("./actions.js").Actions} actions
 */

const LOADING_RETRY_S = 1;

export class Run {
  #api;
  #settings;
  #inputs;
  #listeners;
  #view;
  #aborter = new AbortController();
  ended = false;

  /**
   * @param {import("./api.js").Api} api
   * @param {import("./request.js").Settings} settings
   * @param {Inputs | null} inputs
   * @param {Listeners} listeners
   */
  constructor(api, settings, inputs, listeners) {
    this.#api = api;
    this.#settings = settings;
    this.#inputs = inputs;
    this.#listeners = listeners;
    this.#view = new RunView(settings, { cancel: () => this.cancel(), actions: listeners.actions });
  }

  get element() {
    return this.#view.element;
  }

  /** End it; the server stops working on it as soon as the connection is closed. */
  cancel() {
    this.#aborter.abort();
    this.#end();
    this.#view.leave();
  }

  /** Send it, again and again where that may help, and keep what comes. */
  async start() {
    const body = { ...fieldsOf(this.#settings), ...(await encoded(this.#inputs)), previews: MAX_PREVIEWS };
    while (!this.ended) {
      try {
        await this.#keep(await this.#follow(body));
        this.#end();
      } catch (error) {
        if (!this.ended && !(await this.#mayTryAgain(error))) {
          this.#end();
        }
      }
    }
  }

  /**
   * Follow the stream; returns the answer at its end.
   * @param {Record<string, unknown>} body
   */
  async #follow(body) {
    let progress = notBegun(expectedPictures(this.#settings));
    this.#view.show(progress);
    for await (const event of this.#api.generate(body, this.#aborter.signal)) {
      if (event.name === "done") {
        return event.data;
      }
      progress = advanced(progress, event);
      this.#view.show(progress);
    }
    throw new Error("a stream ends with its answer");
  }

  /** @param {any} answer */
  async #keep({ images, timings, model, num_inference_steps: steps }) {
    /** @type {Entry[]} */
    const entries = [];
    for (const image of images.reverse()) {
      const entry = await this.#listeners.onPicture({
        createdMs: Date.now(),
        picture: blobOf(image.b64_json, image.content_type),
        width: image.width,
        height: image.height,
        settings: settingsOfPicture(this.#settings, image.seed, steps),
        timings,
        model,
        inputs: this.#inputs,
      });
      entries.unshift(entry); // kept last, the first picture is the newest: the gallery shows it first
    }
    this.#view.finish(entries);
  }

  /**
   * Say what went wrong; true once it is to be tried again.
   * @param {unknown} error
   */
  async #mayTryAgain(error) {
    if (!(error instanceof Failure)) {
      this.#view.fail("Something went wrong on this page; its console has the reason.");
      throw error;
    }
    if (error.code === "not_ready") {
      this.#view.wait("The model is being loaded");
      return this.#passed(error.retryAfterS ?? LOADING_RETRY_S);
    }
    if (error.retryable) {
      return this.#view.offerRetry(error.message, error.retryAfterS ?? 0);
    }
    if (this.#listeners.onFailure(error)) {
      this.element.remove(); // the focus is at the field
    } else {
      this.#view.fail(error.message);
    }
    return false;
  }

  /**
   * True after some seconds, false as soon as it is cancelled.
   * @param {number} seconds
   * @returns {Promise<boolean>}
   */
  #passed(seconds) {
    return new Promise((resolve) => {
      setTimeout(() => resolve(true), seconds * 1000);
      this.#aborter.signal.addEventListener("abort", () => resolve(false), { once: true });
    });
  }

  #end() {
    if (!this.ended) {
      this.ended = true;
      this.#listeners.onEnd(this);
    }
  }
}

/**
 * @param {Inputs | null} inputs
 * @returns {Promise<Record<string, string>>}
 */
async function encoded(inputs) {
  if (inputs === null) {
    return {};
  }
  const { image, mask_image: mask } = inputs;
  return { image: await dataUriOf(image), ...(mask ? { mask_image: await dataUriOf(mask) } : {}) };
}
