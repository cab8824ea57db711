/** How a request looks while it runs and after: its pictures side by side, each with what it is doing. */

import { actionButtons } from "./actions.js";
import { byId, element, iconButton } from "./elements.js";
import { announce } from "./notices.js";
import { canvasSize, NO_OUTPAINT } from "./outpaint.js";
import { fractionOf, predictedOf, summaryOf, wordsOf } from "./progress.js";
import { expectedPictures } from "./request.js";
import { secondsText } from "./units.js";

/** @typedef {import("./progress.js").Progress} Progress */
/** @typedef {import("./store.js").Entry} Entry */
/** @typedef {{picture: HTMLButtonElement, image: HTMLImageElement, bar: HTMLProgressElement, words: HTMLElement}} Tile */

export class RunView {
  #tiles;
  #actions;
  #state = element("p", { className: "run-state" });
  #cancel;
  #foot = element("div", { className: "actions" });
  element;

  /**
   * @param {import("./request.js").Settings} settings
   * @param {{cancel: () => void, actions: import("./actions.js").Actions}} options
   */
  constructor(settings, { cancel, actions }) {
    this.#actions = actions;
    const size = canvasSize(settings, settings.outpaint ?? NO_OUTPAINT);
    this.#tiles = Array.from({ length: expectedPictures(settings) }, (_, index) => tile(size, settings.seed + index));
    this.#cancel = iconButton("close", "Cancel", cancel);
    const rows = element("div", { className: "tiles" }, ...this.#tiles.map(({ figure }) => figure));
    rows.dataset.count = String(this.#tiles.length);
    rows.style.setProperty("--ratio", String(size.width / size.height));
    rows.style.setProperty("--natural", `${size.width * 2}px`);
    this.element = element(
      "article",
      { className: "run", "aria-label": settings.prompt, "aria-busy": "true" },
      element("header", { className: "run-head" }, element("p", { className: "quoted" }, settings.prompt), this.#cancel),
      element(
        "div",
        { className: "run-body" },
        rows,
        element("footer", { className: "run-foot" }, this.#state, this.#foot),
      ),
    );
  }

  /** @param {Progress} progress */
  show(progress) {
    const predictedS = predictedOf(progress);
    const about = predictedS === null ? "" : `, about ${secondsText(predictedS)} in all`;
    this.#foot.replaceChildren();
    this.#say(`${summaryOf(progress)}${about}`);
    progress.forEach((picture, number) => {
      const { image, bar, words, picture: frame } = this.#tiles[number];
      bar.value = fractionOf(picture);
      words.textContent = wordsOf(picture);
      if (picture.preview) {
        image.src = `data:${picture.preview.type};base64,${picture.preview.base64}`;
        frame.dataset.shows = "preview";
      }
    });
    if (progress.every(({ steps }) => steps === 0)) {
      announce(this.#state.textContent ?? "");
    }
  }

  /**
   * Show the finished pictures.
   * @param {Entry[]} entries in the order of their tiles
   */
  finish(entries) {
    entries.forEach((entry, number) => {
      const { picture, image, bar, words } = this.#tiles[number];
      image.src = this.#actions.urlOf(entry);
      image.alt = entry.settings.prompt;
      picture.dataset.shows = "picture";
      picture.disabled = false;
      picture.setAttribute("aria-label", `Open: ${entry.settings.prompt}, seed ${entry.settings.seed}`);
      picture.addEventListener("click", () => this.#actions.open(entry));
      bar.remove();
      words.remove();
    });
    const [{ timings }] = entries;
    const predicted = timings.predicted_s === undefined ? "" : `, ${secondsText(timings.predicted_s)} predicted`;
    this.#stop(`Done in ${secondsText(timings.total_s)}${predicted}`);
    announce(entries.length === 1 ? "The picture is done" : `${entries.length} pictures are done`);
    if (entries.length === 1) {
      this.#foot.replaceChildren(...actionButtons(entries[0], this.#actions));
    }
  }

  /**
   * Say why nothing happens at the moment.
   * @param {string} words
   */
  wait(words) {
    this.#say(words);
    announce(words);
    for (const { words: line } of this.#tiles) {
      line.textContent = "waiting";
    }
  }

  /** @param {string} message */
  fail(message) {
    this.#stop(message);
    this.element.classList.add("failed");
    this.#state.setAttribute("role", "alert");
    this.#foot.replaceChildren(iconButton("close", "Dismiss", () => this.leave()));
  }

  /**
   * Offer to try again, not before `afterS`; true once it is time and wished.
   * @param {string} message
   * @param {number} afterS
   * @returns {Promise<boolean>}
   */
  offerRetry(message, afterS) {
    this.#say(message);
    announce(message);
    this.element.classList.add("failed");
    return new Promise((resolve) => {
      const done = (/** @type {boolean} */ again) => {
        clearInterval(timer);
        this.element.classList.remove("failed");
        this.#foot.replaceChildren();
        resolve(again);
      };
      const countdown = new Countdown(afterS, () => done(true));
      const timer = setInterval(() => countdown.tick(), 1000);
      this.#foot.replaceChildren(countdown.button);
      this.#cancel.addEventListener("click", () => done(false), { once: true });
    });
  }

  /** Go; who was in it is on the stage then. */
  leave() {
    this.#passOn(this.element);
    this.element.remove();
  }

  /** @param {HTMLElement} leaving */
  #passOn(leaving) {
    if (leaving.contains(document.activeElement)) {
      byId("stage").focus({ preventScroll: true });
    }
  }

  /** @param {string} words */
  #say(words) {
    this.#state.textContent = words;
  }

  /** @param {string} words */
  #stop(words) {
    this.#say(words);
    this.#passOn(this.#cancel);
    this.#cancel.remove();
    this.element.removeAttribute("aria-busy");
    for (const { bar, words: line } of this.#tiles) {
      bar.remove();
      line.remove();
    }
  }
}

/** A button that waits for its time: pressed before, it acts by itself when the time has come. */
class Countdown {
  #left;
  #act;
  #armed = false;
  button;

  /**
   * @param {number} seconds
   * @param {() => void} act
   */
  constructor(seconds, act) {
    this.#left = seconds;
    this.#act = act;
    this.button = element("button", { type: "button", className: "button", onclick: () => this.#press() });
    this.#show();
  }

  tick() {
    this.#left = Math.max(0, this.#left - 1);
    if (this.#armed && this.#left === 0) {
      this.#act();
    }
    this.#show();
  }

  #press() {
    if (this.#left === 0) {
      this.#act();
      return;
    }
    this.#armed = !this.#armed;
    this.button.setAttribute("aria-pressed", String(this.#armed));
    this.#show();
  }

  #show() {
    const when = this.#left === 0 ? "" : ` in ${this.#left} s`;
    this.button.textContent = this.#armed ? `Tries again${when}` : `Try again${when}`;
  }
}

/**
 * @param {import("./sizes.js").Size} size
 * @param {number} seed
 * @returns {Tile & {figure: HTMLElement}}
 */
function tile({ width, height }, seed) {
  const image = element("img", { alt: "", decoding: "async" });
  const bar = element("progress", { max: 1, value: 0, "aria-label": `Progress of seed ${seed}` });
  const words = element("figcaption", {}, "sent");
  const picture = element("button", { type: "button", className: "picture", disabled: true }, image);
  picture.setAttribute("aria-label", `Picture with seed ${seed}`);
  const figure = element("figure", { className: "tile" }, picture, words, bar);
  figure.style.aspectRatio = `${width} / ${height}`;
  return { figure, picture, image, bar, words };
}
