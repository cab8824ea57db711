/**
 * The server at this moment: the line at the top of the page, and the panel with curves.
 *
 * `GET /v1/status` is asked while somebody can see the answer, and more often while the model is being loaded.
 */

import { byId, element } from "./elements.js";
import { Failure } from "./failure.js";
import { announce } from "./notices.js";
import { Sparkline } from "./sparkline.js";
import { showStages } from "./stages.js";
import { secondsText } from "./units.js";

const PERIOD_MS = 2000;
const LOADING_PERIOD_MS = 700;
const REMEMBERED = 60;

/** @typedef {{label: string, value: HTMLElement, curve: Sparkline}} Meter */

export class Machine {
  #api;
  #onReady;
  #state = "loading";
  #inView = true;
  #looking = false;
  #timer = 0;
  #meters = {
    backlog: meter("Backlog", 1),
    predicted: meter("A picture now", 0.5),
    latency: meter("Latency, p50 · p95", 0.5),
    pictures: meter("Waiting and running", 4),
  };

  /**
   * @param {import("./api.js").Api} api
   * @param {(status: any) => Promise<void>} onReady called with each status while a model is loaded
   */
  constructor(api, onReady) {
    this.#api = api;
    this.#onReady = onReady;
    const rows = Object.values(this.#meters).map(({ label, value, curve }) =>
      element("div", { className: "meter" }, element("span", { className: "meter-label" }, label), value, curve.element),
    );
    byId("meters").append(...rows);
    new IntersectionObserver(([entry]) => {
      this.#inView = entry.isIntersecting;
      this.#again(0);
    }).observe(byId("machine"));
    document.addEventListener("visibilitychange", () => this.#again(0));
    this.look();
  }

  /** Ask now, unless an answer is on its way. */
  async look() {
    clearTimeout(this.#timer);
    if (this.#looking) {
      return;
    }
    this.#looking = true;
    try {
      await this.#show(await this.#api.status());
    } catch (error) {
      this.#fail(error);
    } finally {
      this.#looking = false;
    }
    this.#again(this.#state === "ready" ? PERIOD_MS : LOADING_PERIOD_MS);
  }

  /** @param {number} delayMs */
  #again(delayMs) {
    clearTimeout(this.#timer);
    const seen = document.visibilityState === "visible" && (this.#inView || this.#state !== "ready");
    if (seen && this.#state !== "locked") {
      this.#timer = window.setTimeout(() => this.look(), delayMs);
    }
  }

  /** @param {any} status */
  async #show(status) {
    const { state, model, queue } = status;
    const loaded = model !== null && state === "ready";
    this.#say(loaded ? "ready" : state === "draining" ? "draining" : "loading", wordsOf(status));
    if (model !== null) {
      byId("machine-model").textContent = describe(status);
      this.#measure(queue, status.recent.latencies);
    }
    if (loaded) {
      await this.#onReady(status);
    }
  }

  /**
   * @param {any} queue
   * @param {Record<string, {p50_s: number, p95_s: number}>} latencies
   */
  #measure(queue, latencies) {
    const { backlog, predicted, latency, pictures } = this.#meters;
    const [waiting, running] = [total(queue.waiting), total(queue.running)];
    set(backlog, queue.backlog_s, `${secondsText(queue.backlog_s)} of ${secondsText(queue.limit_s)}`);
    set(predicted, queue.predicted_s ?? 0, queue.predicted_s === null ? "–" : secondsText(queue.predicted_s));
    const both = latencies.total ? [latencies.total.p50_s, latencies.total.p95_s] : [];
    set(latency, both[0] ?? 0, both.length ? both.map(secondsText).join(" · ") : "–");
    set(pictures, waiting + running, `${waiting} · ${running}`);
    byId("stages").hidden = both.length === 0;
    showStages(byId("stages"), (stage) => latencies[stage]?.p50_s);
  }

  /** @param {unknown} error */
  #fail(error) {
    if (!(error instanceof Failure)) {
      throw error;
    }
    if (error.code === "invalid_api_key") {
      this.#say("locked", "It asks for a key");
    } else {
      this.#say("gone", error.code === "unreachable" ? "The server is gone. Looking again" : error.message);
    }
  }

  /**
   * @param {string} state
   * @param {string} words
   */
  #say(state, words) {
    if (state !== this.#state) {
      announce(words); // not each of the seconds that it is busy for
    }
    this.#state = state;
    const line = byId("state");
    line.dataset.state = state;
    if (line.textContent !== words) {
      line.textContent = words;
    }
  }
}

/** @param {any} status */
function wordsOf({ state, model, queue }) {
  if (state === "draining") {
    return "The server is being stopped";
  }
  if (model === null || state !== "ready") {
    return "The model is being loaded";
  }
  return queue.backlog_s > 2 ? `Busy: ${secondsText(queue.backlog_s)} of work` : "Ready";
}

/** @param {any} status */
function describe({ model, workers }) {
  const numbers = model.quantize === "none" ? model.dtype : model.quantize;
  return [model.name, numbers, ...(workers.length > 1 ? [`${workers.length} workers`] : [])].join(" · ");
}

/**
 * @param {string} label
 * @param {number} floor
 * @returns {Meter}
 */
function meter(label, floor) {
  const value = element("span", { className: "meter-value" }, "–");
  return { label, value, curve: new Sparkline({ length: REMEMBERED, floor }) };
}

/**
 * @param {Meter} meter
 * @param {number} number
 * @param {string} words
 */
function set({ value, curve }, number, words) {
  curve.add(number);
  value.textContent = words;
}

/** @param {Record<string, number>} counts */
function total(counts) {
  return Object.values(counts).reduce((sum, count) => sum + count, 0);
}
