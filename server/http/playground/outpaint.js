/**
 * The border by which a canvas is larger than its picture: what it may be, and how handles move it.
 *
 * Extents are in pixels of the picture, multiples of 16, and the whole canvas is a size that the API makes.
 */

import { MAX_SIDE, SIDE_MULTIPLE } from "./sizes.js";

/** @typedef {import("./request.js").Outpaint} Outpaint */
/** @typedef {import("./sizes.js").Size} Size */
/** @typedef {keyof Outpaint} Edge */

/** @type {Outpaint} */
export const NO_OUTPAINT = Object.freeze({ left: 0, right: 0, top: 0, bottom: 0 });

/** @type {Edge[]} */
export const EDGES = ["left", "right", "top", "bottom"];

/** @type {Record<Edge, Edge>} */
const OPPOSITE = { left: "right", right: "left", top: "bottom", bottom: "top" };

/** @param {Edge} edge */
export function isAcross(edge) {
  return edge === "left" || edge === "right";
}

/** @param {Outpaint} outpaint */
export function isExtended(outpaint) {
  return EDGES.some((edge) => outpaint[edge] > 0);
}

/**
 * The size of the whole canvas.
 * @param {Size} picture
 * @param {Outpaint} outpaint
 * @returns {Size}
 */
export function canvasSize(picture, outpaint) {
  return {
    width: picture.width + outpaint.left + outpaint.right,
    height: picture.height + outpaint.top + outpaint.bottom,
  };
}

/**
 * The most that one edge may be moved out, the others being where they are.
 * @param {Size} picture
 * @param {Outpaint} outpaint
 * @param {Edge} edge
 */
export function mostOf(picture, outpaint, edge) {
  const side = isAcross(edge) ? picture.width : picture.height;
  return Math.max(0, MAX_SIDE - side - outpaint[OPPOSITE[edge]]);
}

/**
 * The border with one edge moved out to about `pixels`.
 * @param {Size} picture
 * @param {Outpaint} outpaint
 * @param {Edge} edge
 * @param {number} pixels
 * @returns {Outpaint}
 */
export function movedEdge(picture, outpaint, edge, pixels) {
  const snapped = Math.round((pixels || 0) / SIDE_MULTIPLE) * SIDE_MULTIPLE;
  return { ...outpaint, [edge]: Math.min(mostOf(picture, outpaint, edge), Math.max(0, snapped)) };
}

/**
 * The border that a picture of another size may have: as it was, as far as there is room.
 * @param {Size} picture
 * @param {Outpaint} outpaint
 * @returns {Outpaint}
 */
export function fittingOutpaint(picture, outpaint) {
  return EDGES.reduce((fitted, edge) => movedEdge(picture, fitted, edge, outpaint[edge]), { ...NO_OUTPAINT });
}

/**
 * Pixels that an edge is moved out by when the pointer goes from one point to another.
 * @param {Edge} edge
 * @param {{x: number, y: number}} from
 * @param {{x: number, y: number}} to
 * @param {number} scale points on the screen of one pixel
 */
export function draggedPixels(edge, from, to, scale) {
  const moved = isAcross(edge) ? to.x - from.x : to.y - from.y;
  return (edge === "left" || edge === "top" ? -moved : moved) / scale;
}
