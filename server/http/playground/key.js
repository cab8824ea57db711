/**
 * The API key: asked for when the server wants one, kept in memory, and on the device only if that is wished.
 *
 * It is sent to the server that the page came from and to nobody else.
 */

import { byId } from "./elements.js";
import { remember, remembered } from "./remembered.js";

const STORED = "schnell.key";

export class Keys {
  #onChange;
  #dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  #form = /** @type {HTMLFormElement} */ (byId("key-form"));
  #input = /** @type {HTMLInputElement} */ (byId("key"));
  #remember = /** @type {HTMLInputElement} */ (byId("remember-key"));
  #button = byId("key-button");
  /** @type {string | null} */
  #current = remembered(STORED);
  /** @type {Promise<boolean> | null} what several callers wait for at once */
  #asking = null;
  /** @type {(given: boolean) => void} */
  #answer = () => {};

  /** @param {() => void} onChange another key is known, or none */
  constructor(onChange) {
    this.#onChange = onChange;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#take(this.#input.value.trim());
    });
    this.#dialog.addEventListener("close", () => this.#answer(false));
    byId("key-cancel").addEventListener("click", () => this.#dialog.close());
    byId("forget-key").addEventListener("click", () => this.#forget());
    this.#button.addEventListener("click", () => this.#show(""));
    this.#button.hidden = this.#current === null;
  }

  /** The key to send, null while none is known. */
  get current() {
    return this.#current;
  }

  /**
   * Ask the person for a key; false if none is given.
   * @param {string | null} tried the key that was refused
   * @param {string} message
   * @returns {Promise<boolean>}
   */
  ask(tried, message) {
    if (tried !== this.#current) {
      return Promise.resolve(this.#current !== null); // given while this request was under way
    }
    this.#button.hidden = false;
    this.#asking ??= new Promise((resolve) => {
      this.#answer = resolve;
      this.#show(tried === null ? "" : message);
    }).finally(() => (this.#asking = null));
    return this.#asking;
  }

  /** @param {string} message */
  #show(message) {
    byId("key-error").textContent = message;
    this.#input.value = this.#current ?? "";
    this.#input.toggleAttribute("aria-invalid", message !== "");
    byId("forget-key").hidden = this.#current === null;
    this.#remember.checked = remembered(STORED) !== null;
    this.#dialog.showModal();
    this.#input.select();
  }

  /** @param {string} key */
  #take(key) {
    if (key === "") {
      byId("key-error").textContent = "Paste a key, or close this.";
      return;
    }
    this.#current = key;
    remember(STORED, this.#remember.checked ? key : null);
    this.#answer(true);
    this.#dialog.close();
    this.#onChange();
  }

  #forget() {
    this.#current = null;
    remember(STORED, null);
    this.#dialog.close();
    this.#onChange();
  }
}
