/**
 * What is known of a request while it runs: a state that events are folded into, and words for it.
 *
 * Nothing here touches the page, so that `node --test` can follow a request from its first event to its end.
 */

/** @typedef {import("./event_stream.js").ServerEvent} ServerEvent */
/**
 * @typedef {object} PictureProgress one picture of a request
 * @property {number | null} position pictures that were due before it; null until it is queued
 * @property {number | null} predictedS seconds from the request until it should be done
 * @property {number} step steps that are done
 * @property {number} steps of so many; 0 until the first is done
 * @property {{base64: string, type: string} | null} preview the latest
 */
/** @typedef {PictureProgress[]} Progress by the number of the picture */

/**
 * @param {number} count
 * @returns {Progress}
 */
export function notBegun(count) {
  return Array.from({ length: count }, () => ({ position: null, predictedS: null, step: 0, steps: 0, preview: null }));
}

/**
 * @param {Progress} progress
 * @param {ServerEvent} event
 * @returns {Progress}
 */
export function advanced(progress, { name, data }) {
  return progress.map((picture, number) => (number === data.image ? { ...picture, ...news(name, data) } : picture));
}

/**
 * @param {string} name
 * @param {any} data
 * @returns {Partial<PictureProgress>}
 */
function news(name, data) {
  switch (name) {
    case "queued":
      return { position: data.position, predictedS: data.predicted_s };
    case "step":
      return { step: data.step, steps: data.steps };
    case "preview":
      return { preview: { base64: data.b64_json, type: data.content_type } };
    default:
      return {};
  }
}

/**
 * How much is done, from 0 to 1; decoding and the file take as long as about half a step.
 * @param {PictureProgress} picture
 */
export function fractionOf({ step, steps }) {
  return steps === 0 ? 0 : step / (steps + 0.5);
}

/**
 * What one picture is doing.
 * @param {PictureProgress} picture
 */
export function wordsOf({ position, step, steps }) {
  if (steps > 0) {
    return step < steps ? `step ${step} of ${steps}` : "decoding";
  }
  if (position === null) {
    return "sent";
  }
  return position === 0 ? "next in line" : `${position} before it`;
}

/**
 * What a whole request is doing, for the line above its pictures.
 * @param {Progress} progress
 */
export function summaryOf(progress) {
  if (progress.some(({ steps }) => steps > 0)) {
    if (progress.length === 1) {
      return capitalised(wordsOf(progress[0]));
    }
    const done = progress.reduce((sum, { step }) => sum + step, 0);
    const all = progress.length * Math.max(...progress.map(({ steps }) => steps));
    return done === all ? "Decoding" : `Step ${done} of ${all} in all`;
  }
  const positions = progress.flatMap(({ position }) => (position === null ? [] : [position]));
  if (positions.length === 0) {
    return "Sent";
  }
  const before = Math.min(...positions);
  return before === 0 ? "Next in line" : `Waiting: ${before} ${before === 1 ? "picture" : "pictures"} before it`;
}

/**
 * Seconds after the request by which all pictures should be done; null while nothing is predicted.
 * @param {Progress} progress
 */
export function predictedOf(progress) {
  const known = progress.flatMap(({ predictedS }) => (predictedS === null ? [] : [predictedS]));
  return known.length === 0 ? null : Math.max(...known);
}

/** @param {string} words */
function capitalised(words) {
  return words[0].toUpperCase() + words.slice(1);
}
