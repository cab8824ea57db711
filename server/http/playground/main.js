/** Where the parts of the page meet: what is entered becomes a run, and what a run makes goes to the gallery. */

import { Api } from "./api.js";
import { Composer } from "./composer.js";
import { Editor } from "./editor.js";
import { byId, element } from "./elements.js";
import { Gallery } from "./gallery.js";
import { takeIn } from "./intake.js";
import { Keys } from "./key.js";
import { Lightbox } from "./lightbox.js";
import { Machine } from "./machine.js";
import { notice } from "./notices.js";
import { somePrompts } from "./prompts.js";
import { MAX_SEED } from "./request.js";
import { Run } from "./run.js";
import { Store } from "./store.js";

/** @typedef {import("./store.js").Entry} Entry */
/** @typedef {import("./store.js").Inputs} Inputs */
/** @typedef {import("./request.js").Settings} Settings */

const VARIATIONS = 4;
const SUGGESTIONS = 6;
const HEADER_HEIGHT = 52;
const STILL = matchMedia("(prefers-reduced-motion: reduce)");

const keys = new Keys(() => machine.look());
const api = new Api(keys);
const store = await Store.open().catch(() => null);
const gallery = new Gallery(store, (entry) => lightbox.open(entry));
/** @type {import("./actions.js").Actions} */
const actions = {
  open: (entry) => lightbox.open(entry),
  reuse,
  vary: ({ settings, inputs }) => {
    lightbox.close();
    const seed = Math.min(settings.seed + 1, MAX_SEED - VARIATIONS + 1);
    make({ ...settings, seed, num_images: VARIATIONS }, inputs);
  },
  startFrom: (entry) => startFrom(entry.picture),
  remove: (entry) => gallery.remove(entry),
  urlOf: (entry) => gallery.urlOf(entry),
  keyed: () => keys.current !== null,
};
const lightbox = new Lightbox(gallery, actions);
const editor = new Editor((size) => composer.showSize(size));
const composer = new Composer({
  onSubmit: async (settings) => make({ ...settings, ...editor.settings }, await editor.inputs()),
  onSize: (size) => editor.resize(size),
});
/** @type {Set<Run>} those on the stage */
const runs = new Set();
let learnt = "";
const machine = new Machine(api, learn);

byId("suggestions").append(...somePrompts(SUGGESTIONS, Math.random).map(suggestion));
takeIn(startFrom);
if (store === null) {
  notice("This browser keeps nothing for this page: the gallery is gone when it is closed");
}
await gallery.load();

/**
 * Send a request, and show it on the stage until the next one is finished with.
 * @param {Settings} settings
 * @param {Inputs | null} inputs
 */
function make(settings, inputs) {
  composer.forgetFailures();
  const before = [...runs].filter(({ ended }) => ended);
  before.forEach(({ element }) => element.remove());
  const run = new Run(api, settings, inputs, {
    onPicture: (made) => gallery.add(made),
    onFailure: (failure) => {
      const shown = composer.showFailure(failure);
      byId("stage").append(...(shown ? before.map(({ element }) => element) : []));
      return shown;
    },
    onEnd: () => machine.look(),
    actions,
  });
  before.forEach((each) => runs.delete(each));
  runs.add(run);
  byId("stage").prepend(run.element);
  reveal(run.element);
  run.start();
}

/** @param {Entry} entry */
async function reuse({ settings, inputs }) {
  lightbox.close();
  composer.fill(settings);
  if (inputs) {
    await editor.restore(inputs, settings);
  } else {
    editor.remove();
  }
  reveal(byId("composer"));
  byId("prompt").focus({ preventScroll: true });
}

/** @param {Blob} picture */
async function startFrom(picture) {
  lightbox.close();
  try {
    await editor.load(picture, composer.area);
  } catch {
    notice("This browser cannot read that file as a picture");
    return;
  }
  reveal(byId("editor"));
}

/**
 * Learn what the server has as soon as it is ready, and again when it serves another model.
 * @param {any} status
 */
async function learn({ model }) {
  if (learnt !== model.digest) {
    composer.learn(model);
    composer.offer(await api.loras());
    learnt = model.digest;
  }
}

/** @param {HTMLElement} place */
function reveal(place) {
  const { top } = place.getBoundingClientRect();
  if (top > HEADER_HEIGHT && top < innerHeight / 2) {
    return; // it is seen already
  }
  place.scrollIntoView({ block: "start", behavior: STILL.matches ? "auto" : "smooth" });
}

/** @param {string} prompt */
function suggestion(prompt) {
  const begin = () => {
    composer.prompt(prompt);
    composer.submit();
  };
  return element("li", {}, element("button", { type: "button", className: "button", onclick: begin }, prompt));
}
