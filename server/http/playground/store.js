/**
 * The gallery on this device: pictures and what made them, in IndexedDB, the oldest dropped beyond a bound.
 *
 * Nothing of it leaves the browser. It knows no elements of the page.
 */

const DATABASE = "schnell";
const PICTURES = "pictures";
export const MAX_ENTRIES = 500;

/**
 * @typedef {object} Inputs pictures that an entry was made from
 * @property {Blob} image
 * @property {Blob | null} mask_image
 */
/**
 * @typedef {object} Entry a finished picture
 * @property {number} id
 * @property {number} createdMs
 * @property {Blob} picture
 * @property {number} width
 * @property {number} height
 * @property {import("./request.js").Settings} settings of this picture alone
 * @property {Record<string, number>} timings seconds of its request by stage
 * @property {string} model
 * @property {Inputs | null} inputs
 */

export class Store {
  #database;

  /** @param {IDBDatabase} database */
  constructor(database) {
    this.#database = database;
  }

  /** @returns {Promise<Store>} */
  static async open() {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(PICTURES, { keyPath: "id", autoIncrement: true });
    };
    return new Store(await settled(request));
  }

  /**
   * All entries, the newest first.
   * @returns {Promise<Entry[]>}
   */
  async all() {
    return (await settled(this.#pictures("readonly").getAll())).reverse();
  }

  /**
   * Keep an entry; returns its id and the ids of those that had to go for it.
   * @param {Omit<Entry, "id">} entry
   * @returns {Promise<{id: number, dropped: number[]}>}
   */
  async add(entry) {
    const dropped = await this.#dropOldest(MAX_ENTRIES - 1);
    for (;;) {
      try {
        return { id: Number(await settled(this.#pictures("readwrite").add(entry))), dropped };
      } catch (error) {
        const left = await this.#count();
        if (!(error instanceof DOMException) || error.name !== "QuotaExceededError" || left === 0) {
          throw error;
        }
        dropped.push(...(await this.#dropOldest(Math.floor(left * 0.9))));
      }
    }
  }

  /**
   * Put back an entry that was removed, at its place.
   * @param {Entry} entry
   */
  async restore(entry) {
    await settled(this.#pictures("readwrite").put(entry));
  }

  /** @param {number} id */
  async remove(id) {
    await settled(this.#pictures("readwrite").delete(id));
  }

  async clear() {
    await settled(this.#pictures("readwrite").clear());
  }

  /** @returns {Promise<number>} */
  #count() {
    return settled(this.#pictures("readonly").count());
  }

  /**
   * Leave no more than `most` entries.
   * @param {number} most
   */
  async #dropOldest(most) {
    const excess = (await this.#count()) - most;
    if (excess <= 0) {
      return [];
    }
    const pictures = this.#pictures("readwrite");
    const ids = /** @type {number[]} */ (await settled(pictures.getAllKeys(null, excess)));
    await settled(pictures.delete(IDBKeyRange.upperBound(ids[ids.length - 1])));
    return ids;
  }

  /** @param {IDBTransactionMode} mode */
  #pictures(mode) {
    return this.#database.transaction(PICTURES, mode).objectStore(PICTURES);
  }
}

/**
 * @template Result
 * @param {IDBRequest<Result>} request
 * @returns {Promise<Result>}
 */
function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
