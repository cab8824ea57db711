/**
 * The API key: asked for when the server wants one, kept in memory, and on the device only if that is wished.
 *
 * It is sent to the server that the page came from and to nobody else.
 */

import { byId } from "./elements.js";

const STORED = "schnell.key";

export class Keys {
  #dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  #form = /** @type {HTMLFormElement} */ (byId("key-form"));
  #input = /** @type {HTMLInputElement} */ (byId("key"));
  #remember = /** @type {HTMLInputElement} */ (byId("remember-key"));
  #button = byId("key-button");
  /** @type {string | null} */
  #current = localStorage.getItem(STORED);
  /** @type {Promise<boolean> | null} what several callers wait for at once */
  #asking = null;
  /** @type {(given: boolean) => void} */
  #answer = () => {};

  constructor() {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#take(this.#input.value.trim());
    });
    this.#dialog.addEventListener("close", () => this.#answer(false));
    byId("key-cancel").addEventListener("click", () => this.#dialog.close());
    byId("forget-key").addEventListener("click", () => this.#forget());
    this.#button.addEventListener("click", () => this.#show(""));
    this.#showState();
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
    this.#remember.checked = localStorage.getItem(STORED) !== null;
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
    if (this.#remember.checked) {
      localStorage.setItem(STORED, key);
    } else {
      localStorage.removeItem(STORED);
    }
    this.#answer(true);
    this.#dialog.close();
    this.#showState();
  }

  #forget() {
    this.#current = null;
    localStorage.removeItem(STORED);
    this.#dialog.close();
    this.#showState();
  }

  #showState() {
    this.#button.hidden = this.#current === null;
  }
}
