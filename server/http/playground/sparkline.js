/** Small curves of the latest values, which say at a glance whether something grows. */

import { svg } from "./elements.js";

const WIDTH = 120;
const HEIGHT = 28;
const LINE = 1.5;

/**
 * The path of a curve from the left to the right; the newest value is at the right end.
 * @param {number[]} values none below 0
 * @param {{width: number, height: number, length: number, top: number}} frame room for `length` values to `top`
 */
export function pathOf(values, { width, height, length, top }) {
  const step = width / (length - 1);
  const first = width - (values.length - 1) * step;
  return values
    .map((value, index) => {
      const x = first + index * step;
      const y = height - (Math.min(value, top) / top) * height;
      return `${index === 0 ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`;
    })
    .join("");
}

/** The latest values of one thing, and their curve. */
export class Sparkline {
  #values = /** @type {number[]} */ ([]);
  #length;
  #floor;
  #line = svg("path", { class: "line" });
  #area = svg("path", { class: "area" });
  element = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT + LINE}`, class: "sparkline", "aria-hidden": "true" });

  /**
   * @param {{length: number, floor: number}} options the value that is drawn at the top, unless there are larger
   */
  constructor({ length, floor }) {
    this.#length = length;
    this.#floor = floor;
    this.element.setAttribute("preserveAspectRatio", "none");
    const base = svg("path", { class: "base", d: `M0 ${HEIGHT}H${WIDTH}` });
    this.element.append(base, this.#area, this.#line);
  }

  /** @param {number} value */
  add(value) {
    this.#values = [...this.#values, value].slice(-this.#length);
    const top = Math.max(this.#floor, ...this.#values);
    const frame = { width: WIDTH, height: HEIGHT, length: this.#length, top };
    const path = pathOf(this.#values, frame);
    const first = WIDTH - ((this.#values.length - 1) * WIDTH) / (this.#length - 1);
    this.#line.setAttribute("d", path);
    this.#area.setAttribute("d", `${path}L${WIDTH} ${HEIGHT}L${first.toFixed(1)} ${HEIGHT}Z`);
  }
}
