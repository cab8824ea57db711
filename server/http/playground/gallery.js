/**
 * The gallery: what the store has, as a grid that arrows move through.
 *
 * An address of a picture lives as long as its entry; whoever shows it asks for it here.
 */

import { byId, element } from "./elements.js";
import { notice } from "./notices.js";

/** @typedef {import("./store.js").Entry} Entry */

export class Gallery {
  #store;
  #onOpen;
  #grid = byId("gallery");
  /** @type {Entry[]} the newest first */
  #entries = [];
  /** @type {Map<number, string>} */
  #urls = new Map();

  /**
   * @param {import("./store.js").Store | null} store null where the browser keeps nothing
   * @param {(entry: Entry) => void} onOpen
   */
  constructor(store, onOpen) {
    this.#store = store;
    this.#onOpen = onOpen;
    this.#grid.addEventListener("keydown", (event) => this.#move(event));
    byId("clear-gallery").addEventListener("click", () => this.#confirmClearing());
    byId("confirm-no").addEventListener("click", () => confirmDialog().close());
    byId("confirm-yes").addEventListener("click", () => this.#clear());
  }

  /** Show what was kept. */
  async load() {
    this.#entries = (await this.#store?.all()) ?? [];
    this.#grid.replaceChildren(...this.#entries.map((entry) => this.#thumb(entry)));
    this.#count();
  }

  /** @returns {readonly Entry[]} */
  get entries() {
    return this.#entries;
  }

  /** @param {Entry} entry */
  urlOf(entry) {
    const known = this.#urls.get(entry.id);
    const url = known ?? URL.createObjectURL(entry.picture);
    this.#urls.set(entry.id, url);
    return url;
  }

  /**
   * Keep a picture.
   * @param {Omit<Entry, "id">} made
   * @returns {Promise<Entry>}
   */
  async add(made) {
    const { id, dropped } = (await this.#stored(made)) ?? { id: this.#unstoredId(), dropped: [] };
    const entry = { ...made, id };
    dropped.forEach((each) => this.#forget(each));
    this.#insert(entry);
    return entry;
  }

  /** @param {Omit<Entry, "id">} made */
  async #stored(made) {
    try {
      return await this.#store?.add(made);
    } catch {
      notice("This browser has no room for the picture: it is gone when the page is closed");
      return null;
    }
  }

  /** An id above all that there are, and below that which the store gives next. */
  #unstoredId() {
    return (this.#entries[0]?.id ?? 0) + 2 ** -20;
  }

  /** @param {Entry} entry */
  async remove(entry) {
    await this.#store?.remove(entry.id);
    const place = this.#entries.findIndex(({ id }) => id === entry.id);
    const hadFocus = this.#grid.children[place]?.contains(document.activeElement);
    this.#forget(entry.id);
    if (hadFocus) {
      this.#focus(Math.min(place, this.#entries.length - 1));
    }
    notice("Deleted", { label: "Undo", act: () => this.#restore(entry) });
  }

  /** @param {Entry} entry */
  async #restore(entry) {
    await this.#store?.restore(entry);
    this.#insert(entry);
  }

  /** @param {Entry} entry */
  #insert(entry) {
    const newer = this.#entries.filter(({ id }) => id > entry.id).length;
    this.#entries.splice(newer, 0, entry);
    this.#grid.insertBefore(this.#thumb(entry), this.#grid.children[newer] ?? null);
    this.#count();
  }

  /** @param {number} id */
  #forget(id) {
    const place = this.#entries.findIndex((entry) => entry.id === id);
    if (place < 0) {
      return;
    }
    this.#entries.splice(place, 1);
    this.#grid.children[place].remove();
    this.#revoke(id);
    this.#count();
  }

  /** @param {number} id */
  #revoke(id) {
    URL.revokeObjectURL(this.#urls.get(id) ?? "");
    this.#urls.delete(id);
  }

  #confirmClearing() {
    const count = this.#entries.length;
    byId("confirm-words").textContent =
      count === 1 ? "The picture is deleted from this browser." : `${count} pictures are deleted from this browser.`;
    confirmDialog().showModal();
  }

  async #clear() {
    confirmDialog().close();
    await this.#store?.clear();
    this.#entries.forEach(({ id }) => this.#revoke(id));
    this.#entries = [];
    this.#grid.replaceChildren();
    this.#count();
  }

  #count() {
    const count = this.#entries.length;
    byId("gallery-count").textContent = count === 0 ? "" : String(count);
    byId("gallery-empty").hidden = count > 0;
    byId("clear-gallery").hidden = count === 0;
    const first = this.#grid.querySelector(".thumb");
    if (first instanceof HTMLElement && !this.#grid.querySelector('.thumb[tabindex="0"]')) {
      first.tabIndex = 0;
    }
  }

  /** @param {Entry} entry */
  #thumb(entry) {
    const { prompt, seed } = entry.settings;
    const image = element("img", { src: this.urlOf(entry), alt: "", loading: "lazy", decoding: "async" });
    const button = element("button", { type: "button", className: "thumb", title: prompt, tabIndex: -1 }, image);
    button.setAttribute("aria-label", `${prompt}, seed ${seed}`);
    button.addEventListener("click", () => this.#onOpen(entry));
    button.addEventListener("focus", () => this.#roam(button));
    button.addEventListener("keydown", (event) => {
      if (event.key === "Delete" || event.key === "Backspace") {
        this.remove(entry);
      }
    });
    return element("li", {}, button);
  }

  /**
   * One of them is reached with Tab: that which had the focus last.
   * @param {HTMLElement} button
   */
  #roam(button) {
    this.#grid.querySelector('.thumb[tabindex="0"]')?.setAttribute("tabindex", "-1");
    button.tabIndex = 0;
  }

  /** @param {KeyboardEvent} event */
  #move(event) {
    const columns = getComputedStyle(this.#grid).gridTemplateColumns.split(" ").length;
    const last = this.#entries.length - 1;
    const place = [...this.#grid.children].findIndex((item) => item.contains(document.activeElement));
    /** @type {Record<string, number>} */
    const targets = {
      ArrowLeft: place - 1,
      ArrowRight: place + 1,
      ArrowUp: place - columns,
      ArrowDown: place + columns,
      Home: 0,
      End: last,
    };
    const target = targets[event.key];
    if (target !== undefined && target >= 0 && target <= last) {
      event.preventDefault();
      this.#focus(target);
    }
  }

  /** @param {number} place */
  #focus(place) {
    const button = this.#grid.children[place]?.querySelector("button") ?? byId("stage");
    /** @type {HTMLElement} */ (button).focus();
  }
}

function confirmDialog() {
  return /** @type {HTMLDialogElement} */ (byId("confirm"));
}
