/** What can be done with a finished picture, as buttons: the same under a run and in the lightbox. */

import { ROOT } from "./api.js";
import { save } from "./bytes.js";
import { element, iconButton } from "./elements.js";
import { notice } from "./notices.js";
import { fileName } from "./request.js";
import { INPUT_FILES, LANGUAGES } from "./snippets.js";

/** @typedef {import("./store.js").Entry} Entry */
/**
 * @typedef {object} Actions
 * @property {(entry: Entry) => void} open
 * @property {(entry: Entry) => void} reuse
 * @property {(entry: Entry) => void} vary
 * @property {(entry: Entry) => void} startFrom
 * @property {(entry: Entry) => void} remove
 * @property {(entry: Entry) => string} urlOf an address of the picture on this page
 * @property {() => boolean} keyed whether the server asks for a key
 */

/**
 * @param {Entry} entry
 * @param {Actions} actions
 * @returns {HTMLElement[]}
 */
export function actionButtons(entry, actions) {
  return [
    iconButton("reuse", "Reuse settings", () => actions.reuse(entry)),
    iconButton("variations", "Variations", () => actions.vary(entry)),
    iconButton("image", "Start from it", () => actions.startFrom(entry)),
    iconButton("download", "Download", () => save(entry.picture, fileName(entry.settings, entry.picture.type))),
    copyButtons(entry, actions),
  ];
}

/**
 * @param {Entry} entry
 * @param {Actions} actions
 */
function copyButtons(entry, actions) {
  const buttons = LANGUAGES.map(({ name, write }) => {
    const copy = () => copyText(write(callOf(entry, actions)), name, entry);
    return element("button", { type: "button", className: "button", onclick: copy }, name);
  });
  const label = element("span", { className: "copy-label" }, "Copy as");
  return element("div", { className: "copy", role: "group", "aria-label": "Copy as" }, label, ...buttons);
}

/**
 * @param {Entry} entry
 * @param {Actions} actions
 * @returns {import("./snippets.js").Call}
 */
function callOf({ settings, inputs }, actions) {
  return {
    url: ROOT.href.replace(/\/$/, ""),
    settings,
    inputs: inputNames(inputs),
    keyed: actions.keyed(),
  };
}

/**
 * @param {import("./store.js").Inputs | null} inputs
 * @returns {("image" | "mask_image")[]}
 */
function inputNames(inputs) {
  return inputs === null ? [] : inputs.mask_image ? ["image", "mask_image"] : ["image"];
}

/**
 * @param {string} text
 * @param {string} language
 * @param {Entry} entry
 */
async function copyText(text, language, { inputs }) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
  } else {
    copySelected(text); // browsers have no clipboard for pages that came over plain HTTP from elsewhere
  }
  const names = inputNames(inputs);
  const reads = names.map((name) => INPUT_FILES[name]).join(" and ");
  const saveInputs = () => names.forEach((name) => save(/** @type {Blob} */ (inputs?.[name]), INPUT_FILES[name]));
  if (names.length === 0) {
    notice(`Copied as ${language}`);
  } else {
    notice(`Copied as ${language}. It reads ${reads}`, { label: "Save", act: saveInputs });
  }
}

/** @param {string} text */
function copySelected(text) {
  const area = element("textarea", { value: text, className: "unseen" });
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
