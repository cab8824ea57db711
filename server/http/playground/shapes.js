/** The row of shapes to choose from, each drawn; it follows the fields for width and height. */

import { byId, element, svg } from "./elements.js";
import { SHAPES, nearestSide, sizeOf } from "./sizes.js";

const DRAWN = 22; // units of the longer side of a drawn shape

/** @typedef {import("./sizes.js").Size} Size */

export class ShapePicker {
  #width = /** @type {HTMLInputElement} */ (byId("width"));
  #height = /** @type {HTMLInputElement} */ (byId("height"));
  #area = 1024 * 1024;
  #onChange;

  /** @param {(size: Size) => void} onChange */
  constructor(onChange) {
    this.#onChange = onChange;
    byId("shape-choices").append(...SHAPES.map((shape) => this.#choice(shape)));
    for (const input of [this.#width, this.#height]) {
      input.addEventListener("change", () => {
        input.value = String(nearestSide(Number(input.value)));
        this.#follow();
        this.#onChange(this.size);
      });
      input.addEventListener("input", () => this.#follow());
    }
    byId("swap").addEventListener("click", () => {
      const { width, height } = this.size;
      this.show({ width: height, height: width });
      this.#onChange(this.size);
    });
  }

  /** @returns {Size} */
  get size() {
    return { width: Number(this.#width.value), height: Number(this.#height.value) };
  }

  /** How many pixels the shapes have. */
  get area() {
    return this.#area;
  }

  /** @param {number} area */
  set area(area) {
    this.#area = area;
    this.#follow();
  }

  /** @param {Size} size */
  show({ width, height }) {
    this.#width.value = String(width);
    this.#height.value = String(height);
    this.#follow();
  }

  #follow() {
    const { width, height } = this.size;
    const radios = /** @type {NodeListOf<HTMLInputElement>} */ (document.getElementsByName("shape"));
    SHAPES.forEach(({ ratio }, index) => {
      const offered = sizeOf(ratio, this.#area);
      radios[index].checked = offered.width === width && offered.height === height;
    });
  }

  /** @param {{name: string, ratio: number}} shape */
  #choice({ name, ratio }) {
    const input = element("input", { type: "radio", name: "shape", value: name });
    input.addEventListener("change", () => {
      this.show(sizeOf(ratio, this.#area));
      this.#onChange(this.size);
    });
    return element("label", { className: "shape", title: name }, input, drawing(ratio), element("span", {}, name));
  }
}

/** @param {number} ratio */
function drawing(ratio) {
  const width = ratio >= 1 ? DRAWN : DRAWN * ratio;
  const height = ratio >= 1 ? DRAWN / ratio : DRAWN;
  const drawn = svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" });
  drawn.append(svg("rect", { x: (24 - width) / 2, y: (24 - height) / 2, width, height, rx: 2 }));
  return drawn;
}
