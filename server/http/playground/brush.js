/** The brush that paints a mask: with a pen, a finger or a mouse, or with the arrows and the space bar. */

import { byId } from "./elements.js";

/** @typedef {import("./mask.js").Point} Point */
/**
 * @typedef {object} Canvas what the brush paints on
 * @property {() => import("./mask.js").Mask | null} mask
 * @property {() => number} scale points on the screen of a pixel
 * @property {() => void} onPaint
 */

const KEY_STEP = 8;
/** @type {Record<string, [number, number]>} */
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Brush {
  #on;
  #canvas = /** @type {HTMLCanvasElement} */ (byId("canvas"));
  #cursor = byId("brush-cursor");
  #size = /** @type {HTMLInputElement} */ (byId("brush-size"));
  /** @type {Point} */
  #point = { x: 0, y: 0 };
  #painting = false;

  /** @param {Canvas} canvas */
  constructor(canvas) {
    this.#on = canvas;
    this.#canvas.addEventListener("pointerdown", (event) => this.#down(event));
    this.#canvas.addEventListener("pointermove", (event) => this.#moved(event));
    this.#canvas.addEventListener("pointerleave", () => (this.#cursor.hidden = true));
    for (const end of ["pointerup", "pointercancel"]) {
      this.#canvas.addEventListener(end, () => (this.#painting = false));
    }
    this.#canvas.addEventListener("keydown", (event) => this.#key(event));
    this.#canvas.addEventListener("focus", () => this.#show());
    this.#canvas.addEventListener("blur", () => (this.#cursor.hidden = true));
    this.#size.addEventListener("input", () => this.#show());
  }

  /** Put the brush into the middle of a picture. */
  centre() {
    this.#point = { x: this.#canvas.width / 2, y: this.#canvas.height / 2 };
  }

  get #brush() {
    const mode = document.querySelector('[name="brush"]:checked');
    return { erase: mode instanceof HTMLInputElement && mode.value === "erase", size: Number(this.#size.value) };
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (event.button !== 0) {
      return;
    }
    this.#canvas.setPointerCapture(event.pointerId);
    this.#painting = true;
    this.#point = this.#pointOf(event);
    this.#dab();
  }

  /** @param {PointerEvent} event */
  #moved(event) {
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      this.#point = this.#pointOf(each);
      if (this.#painting) {
        this.#on.mask()?.extend(this.#point);
      }
    }
    if (this.#painting) {
      this.#on.onPaint();
    }
    this.#show();
  }

  #dab() {
    this.#on.mask()?.begin(this.#point, this.#brush);
    this.#on.onPaint();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) {
      return;
    }
    const arrow = ARROWS[event.key];
    if (arrow) {
      const step = KEY_STEP * (event.shiftKey ? 4 : 1);
      this.#point = {
        x: Math.min(this.#canvas.width, Math.max(0, this.#point.x + arrow[0] * step)),
        y: Math.min(this.#canvas.height, Math.max(0, this.#point.y + arrow[1] * step)),
      };
    } else if (event.key === " ") {
      this.#dab();
    } else if (event.key === "[" || event.key === "]") {
      this.#size.value = String(Number(this.#size.value) + (event.key === "[" ? -8 : 8));
    } else if (event.key.toLowerCase() === "e") {
      const other = document.querySelector('[name="brush"]:not(:checked)');
      /** @type {HTMLInputElement} */ (other).checked = true;
    } else {
      return;
    }
    event.preventDefault();
    this.#show();
  }

  /** Draw the ring of the brush where it is. */
  #show() {
    const scale = this.#on.scale();
    const size = Number(this.#size.value) * scale;
    const [left, top] = this.#canvas.style.translate.split(" ").map(Number.parseFloat);
    this.#cursor.hidden = false;
    this.#cursor.style.width = this.#cursor.style.height = `${size}px`;
    const x = left + this.#point.x * scale - size / 2;
    const y = (top || 0) + this.#point.y * scale - size / 2;
    this.#cursor.style.translate = `${x}px ${y}px`;
  }

  /** @param {PointerEvent} event */
  #pointOf(event) {
    const box = this.#canvas.getBoundingClientRect();
    const scale = this.#on.scale();
    return { x: (event.clientX - box.left) / scale, y: (event.clientY - box.top) / scale };
  }
}
