/**
 * Sizes of pictures: what the API allows, the shapes that are offered, and what size a given picture gets.
 *
 * The numbers are those of server/generation.py; a test compares them.
 */

export const MIN_SIDE = 256;
export const MAX_SIDE = 1536;
export const SIDE_MULTIPLE = 16;

/** @typedef {{width: number, height: number}} Size in pixels */

/** @typedef {{x: number, y: number, width: number, height: number}} Box in pixels */

/** Width to height, from the tallest to the widest. */
export const SHAPES = [
  { name: "9:16", ratio: 9 / 16 },
  { name: "2:3", ratio: 2 / 3 },
  { name: "3:4", ratio: 3 / 4 },
  { name: "1:1", ratio: 1 },
  { name: "4:3", ratio: 4 / 3 },
  { name: "3:2", ratio: 3 / 2 },
  { name: "16:9", ratio: 16 / 9 },
];

/**
 * The allowed side that is nearest to `pixels`.
 * @param {number} pixels
 */
export function nearestSide(pixels) {
  const side = Math.round(pixels / SIDE_MULTIPLE) * SIDE_MULTIPLE;
  return Math.min(MAX_SIDE, Math.max(MIN_SIDE, side || MIN_SIDE));
}

/**
 * The size of a shape with about `area` pixels, and more where its short side would be too short.
 * @param {number} ratio width to height
 * @param {number} area
 * @returns {Size}
 */
export function sizeOf(ratio, area) {
  const short = Math.sqrt(ratio < 1 ? area * ratio : area / ratio);
  const grown = Math.max(1, MIN_SIDE / short);
  return {
    width: nearestSide(Math.sqrt(area * ratio) * grown),
    height: nearestSide(Math.sqrt(area / ratio) * grown),
  };
}

/**
 * The size in which a picture becomes an input: its own where that is allowed, else its shape with `area`.
 * @param {Size} picture
 * @param {number} area
 * @returns {Size}
 */
export function fittingSize({ width, height }, area) {
  const allowed = [width, height].every((side) => nearestSide(side) === side);
  return allowed ? { width, height } : sizeOf(width / height, area);
}

/**
 * The part of a picture that fills `target` without being stretched: its middle.
 * @param {Size} picture
 * @param {Size} target
 * @returns {Box}
 */
export function coveringPart(picture, target) {
  const scale = Math.max(target.width / picture.width, target.height / picture.height);
  const [width, height] = [target.width / scale, target.height / scale];
  return { x: (picture.width - width) / 2, y: (picture.height - height) / 2, width, height };
}

/**
 * Where a part of a picture comes to lie when another part of it fills `target`.
 * @param {Box} part
 * @param {Box} shown
 * @param {Size} target
 * @returns {Box}
 */
export function placeOfPart(part, shown, target) {
  const [across, down] = [target.width / shown.width, target.height / shown.height];
  return {
    x: (part.x - shown.x) * across,
    y: (part.y - shown.y) * down,
    width: part.width * across,
    height: part.height * down,
  };
}
