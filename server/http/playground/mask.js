/**
 * The mask of an input picture: what is painted is drawn anew. A list of marks, so that each can be undone.
 *
 * Points and sizes are in pixels of the picture. It does not know the screen, nor who moves the brush.
 */

/** @typedef {{x: number, y: number}} Point */
/** @typedef {import("./sizes.js").Box} Box */
/** @typedef {ImageBitmap | OffscreenCanvas} Picture */
/** @typedef {{kind: "stroke", erase: boolean, size: number, points: Point[]}} Stroke */
/** @typedef {Stroke | {kind: "invert"} | {kind: "clear"} | {kind: "picture", picture: Picture, box: Box}} Mark */

const OPAQUE = 128; // from this alpha on a pixel counts as painted: the edge of a brush is soft

export class Mask {
  /** @type {Mark[]} */
  #marks = [];
  #canvas;
  #context;

  /** @param {import("./sizes.js").Size} size */
  constructor({ width, height }) {
    this.#canvas = new OffscreenCanvas(width, height);
    const context = this.#canvas.getContext("2d", { willReadFrequently: true });
    this.#context = /** @type {OffscreenCanvasRenderingContext2D} */ (context);
  }

  /** White where it is painted, and nothing elsewhere. */
  get canvas() {
    return this.#canvas;
  }

  get canUndo() {
    return this.#marks.length > 0;
  }

  /** Whether nothing is painted. */
  get empty() {
    return this.#marks.length === 0 || !this.#pixels().data.some((value, index) => index % 4 === 3 && value >= OPAQUE);
  }

  /**
   * Put the brush down.
   * @param {Point} point
   * @param {{erase: boolean, size: number}} brush
   */
  begin(point, brush) {
    this.#add({ kind: "stroke", ...brush, points: [point] });
  }

  /**
   * Move the brush on.
   * @param {Point} point
   */
  extend(point) {
    const stroke = this.#marks[this.#marks.length - 1];
    if (stroke?.kind === "stroke") {
      const before = stroke.points[stroke.points.length - 1];
      stroke.points.push(point);
      this.#draw({ ...stroke, points: [before, point] });
    }
  }

  invert() {
    this.#add({ kind: "invert" });
  }

  clear() {
    this.#add({ kind: "clear" });
  }

  /**
   * Begin with a mask that there is: what is white in it counts as painted.
   * @param {Picture} picture
   * @param {Box} box where it lies
   */
  load(picture, box) {
    this.#add({ kind: "picture", picture, box });
  }

  /** Take back the last mark. */
  undo() {
    this.#marks.pop();
    this.#context.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    this.#marks.forEach((mark) => this.#draw(mark));
  }

  /**
   * As the API wants it: white is drawn anew, black is kept, and nothing is between.
   * @returns {Promise<Blob>} a PNG
   */
  toBlob() {
    const pixels = this.#pixels();
    for (let index = 0; index < pixels.data.length; index += 4) {
      const value = pixels.data[index + 3] >= OPAQUE ? 255 : 0;
      pixels.data.set([value, value, value, 255], index);
    }
    const sheet = new OffscreenCanvas(pixels.width, pixels.height);
    /** @type {OffscreenCanvasRenderingContext2D} */ (sheet.getContext("2d")).putImageData(pixels, 0, 0);
    return sheet.convertToBlob({ type: "image/png" });
  }

  #pixels() {
    return this.#context.getImageData(0, 0, this.#canvas.width, this.#canvas.height);
  }

  /** @param {Mark} mark */
  #add(mark) {
    this.#marks.push(mark);
    this.#draw(mark);
  }

  /** @param {Mark} mark */
  #draw(mark) {
    const { width, height } = this.#canvas;
    switch (mark.kind) {
      case "stroke":
        drawStroke(this.#context, mark);
        break;
      case "invert":
        this.#context.globalCompositeOperation = "xor";
        this.#context.fillStyle = "#fff";
        this.#context.fillRect(0, 0, width, height);
        break;
      case "clear":
        this.#context.clearRect(0, 0, width, height);
        break;
      case "picture":
        drawPicture(this.#context, mark.picture, mark.box);
    }
    this.#context.globalCompositeOperation = "source-over";
  }
}

/**
 * @param {OffscreenCanvasRenderingContext2D} context
 * @param {Stroke} stroke
 */
function drawStroke(context, { erase, size, points }) {
  context.globalCompositeOperation = erase ? "destination-out" : "source-over";
  context.strokeStyle = "#fff";
  context.lineWidth = size;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(points[0].x, points[0].y);
  for (const { x, y } of points) {
    context.lineTo(x, y);
  }
  context.stroke();
}

/**
 * @param {OffscreenCanvasRenderingContext2D} context
 * @param {Picture} picture
 * @param {Box} box
 */
function drawPicture(context, picture, box) {
  const { width, height } = context.canvas;
  context.drawImage(picture, box.x, box.y, box.width, box.height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let index = 0; index < pixels.data.length; index += 4) {
    const alpha = (pixels.data[index] * pixels.data[index + 3]) / 255;
    pixels.data.set([255, 255, 255, alpha], index);
  }
  context.putImageData(pixels, 0, 0);
}
