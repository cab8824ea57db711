/**
 * The picture that a request starts from: its part, its mask, and the canvas around it.
 *
 * It is cut to the size that is asked for here, in the browser, so that mask and picture have the same pixels
 * as what the model gets.
 */

import { Board } from "./board.js";
import { Brush } from "./brush.js";
import { byId } from "./elements.js";
import { Mask } from "./mask.js";
import { EDGES, NO_OUTPAINT, canvasSize, isExtended } from "./outpaint.js";
import { coveringPart, fittingSize, placeOfPart } from "./sizes.js";

/** @typedef {import("./sizes.js").Size} Size */
/** @typedef {import("./request.js").Settings} Settings */
/** @typedef {import("./store.js").Inputs} Inputs */

const DEFAULT_STRENGTH = 0.6; // the server's, and 1 where the canvas is extended: nothing is there yet
const TINT_ALPHA = 0.55;

export class Editor {
  #onSize;
  #canvas = /** @type {HTMLCanvasElement} */ (byId("canvas"));
  #board = new Board(() => this.#showExtents());
  #brush = new Brush({ mask: () => this.#mask, scale: () => this.#board.scale, onPaint: () => this.#draw() });
  #strength = input("strength");
  #preserve = input("preserve");
  #strengthChosen = false;
  /** @type {ImageBitmap | null} */
  #picture = null;
  /** @type {OffscreenCanvas | null} the part of the picture that is sent */
  #part = null;
  /** @type {Mask | null} */
  #mask = null;

  /** @param {(size: Size) => void} onSize */
  constructor(onSize) {
    this.#onSize = onSize;
    byId("remove-image").addEventListener("click", () => this.remove());
    byId("mask-undo").addEventListener("click", () => this.#change((mask) => mask.undo()));
    byId("mask-invert").addEventListener("click", () => this.#change((mask) => mask.invert()));
    byId("mask-clear").addEventListener("click", () => this.#change((mask) => mask.clear()));
    byId("editor").addEventListener("keydown", (event) => {
      const typing = event.target instanceof HTMLInputElement && event.target.type === "number";
      if (event.key === "z" && (event.ctrlKey || event.metaKey) && !typing) {
        event.preventDefault();
        this.#change((mask) => mask.undo());
      }
    });
    for (const edge of EDGES) {
      input(`extend-${edge}`).addEventListener("change", (event) => {
        this.#board.extend(edge, Number(/** @type {HTMLInputElement} */ (event.target).value));
      });
    }
    this.#strength.addEventListener("input", () => {
      this.#strengthChosen = true;
      this.#showStrength();
    });
  }

  get active() {
    return this.#picture !== null;
  }

  /** What of the settings is said here. */
  get settings() {
    if (!this.active) {
      return {};
    }
    const { outpaint } = this.#board;
    const keeps = isExtended(outpaint) || !this.#mask?.empty;
    return {
      strength: Number(this.#strength.value),
      ...(isExtended(outpaint) ? { outpaint } : {}),
      ...(keeps && !this.#preserve.checked ? { preserve: false } : {}),
    };
  }

  /**
   * The pictures that are sent.
   * @returns {Promise<Inputs | null>}
   */
  async inputs() {
    if (!this.#part || !this.#mask) {
      return null;
    }
    const image = await this.#part.convertToBlob({ type: "image/png" });
    return { image, mask_image: this.#mask.empty ? null : await this.#mask.toBlob() };
  }

  /**
   * Start from a picture; in its own size if that can be made, else in its shape with `area` pixels.
   * @param {Blob} file raises where the browser cannot read it
   * @param {number} area
   */
  async load(file, area) {
    const picture = await createImageBitmap(file, { imageOrientation: "from-image" });
    this.#strengthChosen = false;
    this.#preserve.checked = true;
    this.#open(picture, fittingSize(picture, area));
  }

  /**
   * Take up what a picture was made from.
   * @param {Inputs} inputs
   * @param {Settings} settings
   */
  async restore({ image, mask_image: mask }, settings) {
    this.#open(await createImageBitmap(image), settings);
    this.#strengthChosen = settings.strength !== undefined;
    this.#strength.value = String(settings.strength);
    this.#preserve.checked = settings.preserve ?? true;
    this.#board.outpaint = settings.outpaint ?? NO_OUTPAINT;
    this.#showStrength();
    if (mask) {
      const bitmap = await createImageBitmap(mask);
      this.#change((painted) => painted.load(bitmap, { x: 0, y: 0, width: settings.width, height: settings.height }));
    }
  }

  remove() {
    this.#picture = this.#part = this.#mask = null;
    byId("editor").hidden = true;
  }

  /**
   * Cut the picture to another size; what is painted stays on what it was painted on.
   * @param {Size} size
   */
  resize(size) {
    if (!this.#picture) {
      return;
    }
    const mask = new Mask(size);
    if (this.#part && this.#mask && !this.#mask.empty) {
      const [before, now] = [this.#part, size].map((each) => coveringPart(/** @type {Size} */ (this.#picture), each));
      mask.load(this.#mask.canvas, placeOfPart(before, now, size));
    }
    this.#part = cut(this.#picture, size);
    this.#mask = mask;
    this.#board.size = size;
    this.#brush.centre();
    this.#draw();
  }

  /**
   * @param {ImageBitmap} picture
   * @param {Size} size
   */
  #open(picture, { width, height }) {
    this.#picture = picture;
    this.#part = this.#mask = null;
    byId("editor").hidden = false;
    this.#board.outpaint = NO_OUTPAINT;
    this.resize({ width, height });
    this.#onSize({ width, height });
    this.#showStrength();
  }

  /** @param {(mask: Mask) => void} change */
  #change(change) {
    if (this.#mask) {
      change(this.#mask);
      this.#draw();
    }
  }

  /** Draw the picture, and what is painted as a veil over it. */
  #draw() {
    if (!this.#part || !this.#mask) {
      return;
    }
    const { width, height } = this.#canvas;
    const veil = new OffscreenCanvas(width, height);
    const tint = /** @type {OffscreenCanvasRenderingContext2D} */ (veil.getContext("2d"));
    tint.drawImage(this.#mask.canvas, 0, 0);
    tint.globalCompositeOperation = "source-in";
    tint.fillStyle = getComputedStyle(this.#canvas).getPropertyValue("color");
    tint.fillRect(0, 0, width, height);
    const context = /** @type {CanvasRenderingContext2D} */ (this.#canvas.getContext("2d"));
    context.drawImage(this.#part, 0, 0);
    context.globalAlpha = TINT_ALPHA;
    context.drawImage(veil, 0, 0);
    context.globalAlpha = 1;
    input("mask-undo").disabled = input("mask-clear").disabled = !this.#mask.canUndo;
  }

  #showExtents() {
    const { outpaint } = this.#board;
    for (const edge of EDGES) {
      input(`extend-${edge}`).value = String(outpaint[edge]);
    }
    if (this.#part) {
      const { width, height } = canvasSize(this.#part, outpaint);
      byId("whole-size").textContent = `${width} × ${height}`;
    }
    this.#showStrength();
  }

  #showStrength() {
    if (!this.#strengthChosen) {
      this.#strength.value = isExtended(this.#board.outpaint) ? "1" : String(DEFAULT_STRENGTH);
    }
    byId("strength-shown").textContent = `${Math.round(Number(this.#strength.value) * 100)} %`;
  }
}

/**
 * @param {ImageBitmap} picture
 * @param {Size} size
 */
function cut(picture, size) {
  const part = new OffscreenCanvas(size.width, size.height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (part.getContext("2d"));
  context.fillStyle = "#fff"; // behind what is transparent
  context.fillRect(0, 0, size.width, size.height);
  context.imageSmoothingQuality = "high";
  const { x, y, width, height } = coveringPart(picture, size);
  context.drawImage(picture, x, y, width, height, 0, 0, size.width, size.height);
  return part;
}

/** @param {string} id */
function input(id) {
  return /** @type {HTMLInputElement} */ (byId(id));
}
