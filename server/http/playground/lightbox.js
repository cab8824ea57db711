/** One picture in full, with what made it and what can be done with it; arrows go through the gallery. */

import { actionButtons } from "./actions.js";
import { byId, element, iconButton } from "./elements.js";
import { showStages } from "./stages.js";
import { bytesText, secondsText, timeText } from "./units.js";

/** @typedef {import("./store.js").Entry} Entry */

export class Lightbox {
  #gallery;
  #actions;
  #dialog = /** @type {HTMLDialogElement} */ (byId("lightbox"));
  #image = /** @type {HTMLImageElement} */ (byId("lightbox-image"));
  /** @type {Entry | null} */
  #entry = null;

  /**
   * @param {import("./gallery.js").Gallery} gallery
   * @param {import("./actions.js").Actions} actions
   */
  constructor(gallery, actions) {
    this.#gallery = gallery;
    this.#actions = actions;
    byId("lightbox-close").addEventListener("click", () => this.close());
    byId("lightbox-back").addEventListener("click", () => this.#step(-1));
    byId("lightbox-on").addEventListener("click", () => this.#step(1));
    this.#dialog.addEventListener("keydown", (event) => this.#key(event));
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) {
        this.close();
      }
    });
  }

  /** @param {Entry} entry */
  open(entry) {
    this.#show(entry);
    if (!this.#dialog.open) {
      this.#dialog.showModal();
    }
  }

  close() {
    this.#dialog.close();
  }

  /** @param {Entry} entry */
  #show(entry) {
    this.#entry = entry;
    const { settings, timings } = entry;
    this.#image.src = this.#actions.urlOf(entry);
    this.#image.alt = settings.prompt;
    this.#image.width = entry.width;
    this.#image.height = entry.height;
    byId("lightbox-prompt").textContent = settings.prompt;
    const remove = iconButton("trash", "Delete", () => this.#remove(), { className: "danger-text" });
    byId("lightbox-actions").replaceChildren(...actionButtons(entry, this.#actions), remove);
    byId("lightbox-facts").replaceChildren(
      ...factsOf(entry).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
    );
    showStages(byId("lightbox-stages"), (stage) => timings[`${stage}_s`]);
    const place = this.#place();
    /** @type {HTMLButtonElement} */ (byId("lightbox-back")).disabled = place <= 0;
    /** @type {HTMLButtonElement} */ (byId("lightbox-on")).disabled = place >= this.#gallery.entries.length - 1;
    this.#holdFocus();
  }

  /** Keys go to what has the focus: where that is gone or has no more to do, the focus stays inside. */
  #holdFocus() {
    const held = document.activeElement;
    if (this.#dialog.open && (!this.#dialog.contains(held) || held?.matches(":disabled"))) {
      byId("lightbox-close").focus();
    }
  }

  #place() {
    return this.#gallery.entries.findIndex(({ id }) => id === this.#entry?.id);
  }

  /** @param {number} by */
  #step(by) {
    const next = this.#gallery.entries[this.#place() + by];
    if (next) {
      this.#show(next);
    }
  }

  #remove() {
    const place = this.#place();
    const entry = /** @type {Entry} */ (this.#entry);
    this.#actions.remove(entry);
    const next = this.#gallery.entries.filter(({ id }) => id !== entry.id)[Math.max(0, place)];
    if (next) {
      this.#show(next);
    } else {
      this.close();
    }
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      event.preventDefault();
      this.#step(step);
    } else if (event.key === "Delete") {
      this.#remove();
    }
  }
}

/**
 * @param {Entry} entry
 * @returns {[string, string][]}
 */
function factsOf({ settings, timings, width, height, picture, model, createdMs }) {
  /** @type {[string, string | undefined][]} */
  const facts = [
    ["Size", `${width} × ${height}`],
    ["Seed", String(settings.seed)],
    ["Steps", String(settings.num_inference_steps)],
    ["Guidance", settings.guidance_scale?.toString()],
    ["Negative", settings.negative_prompt],
    ["Strength", settings.strength?.toString()],
    ["LoRA", settings.loras?.map(({ name, scale }) => `${name} × ${scale}`).join(", ")],
    ["File", `${picture.type.replace("image/", "").toUpperCase()}, ${bytesText(picture.size)}`],
    ["Model", model],
    ["Made", timeText(createdMs)],
    ["Took", `${secondsText(timings.total_s)}${predicted(timings)}`],
  ];
  return facts.flatMap(([name, value]) => (value ? [[name, value]] : []));
}

/** @param {Record<string, number>} timings */
function predicted({ predicted_s: seconds }) {
  return seconds === undefined ? "" : ` (${secondsText(seconds)} predicted)`;
}
