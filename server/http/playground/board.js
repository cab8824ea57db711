/**
 * Where an input picture lies on the screen: the picture, the canvas around it, and handles that extend it.
 *
 * The scale follows the canvas, but not while a handle is held: what is under the pointer stays there.
 */

import { byId, element } from "./elements.js";
import { EDGES, NO_OUTPAINT, canvasSize, draggedPixels, fittingOutpaint, isAcross, mostOf, movedEdge } from "./outpaint.js";
import { SIDE_MULTIPLE } from "./sizes.js";

/** @typedef {import("./request.js").Outpaint} Outpaint */
/** @typedef {import("./sizes.js").Size} Size */
/** @typedef {import("./outpaint.js").Edge} Edge */

const MARGIN = 30; // points around the canvas, for handles and for pulling them outwards
const MOST_SCALE = 4;
/** @type {Record<string, number>} */
const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

export class Board {
  #onExtend;
  #board = byId("board");
  #frame = byId("frame");
  #canvas = /** @type {HTMLCanvasElement} */ (byId("canvas"));
  /** @type {Size} */
  #size = { width: 1, height: 1 };
  /** @type {Outpaint} */
  #outpaint = { ...NO_OUTPAINT };
  #origin = { x: 0, y: 0 };
  #handles;
  scale = 1;

  /** @param {(outpaint: Outpaint) => void} onExtend */
  constructor(onExtend) {
    this.#onExtend = onExtend;
    this.#handles = new Map(EDGES.map((edge) => [edge, this.#handle(edge)]));
    this.#frame.append(...this.#handles.values());
    new ResizeObserver(() => this.#fit()).observe(this.#board);
  }

  get outpaint() {
    return this.#outpaint;
  }

  /** @param {Outpaint} outpaint */
  set outpaint(outpaint) {
    this.#outpaint = fittingOutpaint(this.#size, outpaint);
    this.#fit();
    this.#onExtend(this.#outpaint);
  }

  /** @param {Size} size of the picture */
  set size(size) {
    this.#size = size;
    this.#canvas.width = size.width;
    this.#canvas.height = size.height;
    this.outpaint = this.#outpaint;
  }

  /**
   * Move one edge out to about `pixels`.
   * @param {Edge} edge
   * @param {number} pixels
   */
  extend(edge, pixels) {
    this.outpaint = movedEdge(this.#size, this.#outpaint, edge, pixels);
  }

  /** Choose the scale at which all of it is seen, and put it into the middle. */
  #fit() {
    const { clientWidth, clientHeight } = this.#board;
    if (clientWidth === 0) {
      return; // not shown yet
    }
    const whole = canvasSize(this.#size, this.#outpaint);
    const room = { width: clientWidth - 2 * MARGIN, height: clientHeight - 2 * MARGIN };
    this.scale = Math.min(room.width / whole.width, room.height / whole.height, MOST_SCALE);
    this.#origin = {
      x: (clientWidth - whole.width * this.scale) / 2 + this.#outpaint.left * this.scale,
      y: (clientHeight - whole.height * this.scale) / 2 + this.#outpaint.top * this.scale,
    };
    this.#place();
  }

  #place() {
    const whole = canvasSize(this.#size, this.#outpaint);
    const { x, y } = this.#origin;
    lay(this.#canvas, x, y, this.#size, this.scale);
    lay(this.#frame, x - this.#outpaint.left * this.scale, y - this.#outpaint.top * this.scale, whole, this.scale);
    for (const [edge, handle] of this.#handles) {
      handle.setAttribute("aria-valuemax", String(mostOf(this.#size, this.#outpaint, edge)));
      handle.setAttribute("aria-valuenow", String(this.#outpaint[edge]));
      handle.setAttribute("aria-valuetext", `${this.#outpaint[edge]} pixels`);
    }
  }

  /** @param {Edge} edge */
  #handle(edge) {
    const handle = element("button", { type: "button", className: `handle ${edge}`, role: "slider" });
    handle.setAttribute("aria-label", `Extend ${edge}`);
    handle.setAttribute("aria-valuemin", "0");
    handle.setAttribute("aria-orientation", isAcross(edge) ? "horizontal" : "vertical");
    handle.addEventListener("keydown", (event) => {
      const outwards = edge === "left" || edge === "top" ? -1 : 1;
      const steps = (STEPS[event.key] ?? 0) * outwards;
      if (steps !== 0) {
        event.preventDefault();
        this.extend(edge, this.#outpaint[edge] + steps * SIDE_MULTIPLE * (event.shiftKey ? 4 : 1));
      }
    });
    handle.addEventListener("pointerdown", (event) => this.#drag(edge, handle, event));
    return handle;
  }

  /**
   * @param {Edge} edge
   * @param {HTMLElement} handle
   * @param {PointerEvent} down
   */
  #drag(edge, handle, down) {
    handle.setPointerCapture(down.pointerId);
    const before = this.#outpaint[edge];
    const move = (/** @type {PointerEvent} */ event) => {
      const pixels = before + draggedPixels(edge, down, event, this.scale);
      this.#outpaint = movedEdge(this.#size, this.#outpaint, edge, pixels);
      this.#place();
      this.#onExtend(this.#outpaint);
    };
    const end = () => {
      handle.removeEventListener("pointermove", move);
      this.#fit();
    };
    handle.addEventListener("pointermove", move);
    handle.addEventListener("lostpointercapture", end, { once: true });
  }
}

/**
 * @param {HTMLElement} box
 * @param {number} x
 * @param {number} y
 * @param {Size} size
 * @param {number} scale
 */
function lay(box, x, y, size, scale) {
  box.style.translate = `${x}px ${y}px`;
  box.style.width = `${size.width * scale}px`;
  box.style.height = `${size.height * scale}px`;
}
