/** Where the seconds of a request went, as a bar with a part for each stage. */

import { element } from "./elements.js";
import { secondsText } from "./units.js";

export const STAGES = ["queue", "text", "denoise", "decode", "encode"];

/**
 * @param {HTMLElement} place what it fills
 * @param {(stage: string) => number | undefined} secondsOf
 */
export function showStages(place, secondsOf) {
  const known = STAGES.map((stage) => ({ stage, seconds: secondsOf(stage) ?? 0 }));
  const total = known.reduce((sum, { seconds }) => sum + seconds, 0) || 1;
  const bar = element("div", { className: "stage-bar", "aria-hidden": "true" });
  const list = element("dl", { className: "stage-list" });
  for (const { stage, seconds } of known) {
    const part = element("span", { className: `part ${stage}` });
    part.style.flexGrow = String((100 * seconds) / total);
    bar.append(part);
    const dot = element("span", { className: `dot ${stage}`, "aria-hidden": "true" });
    list.append(element("div", {}, element("dt", {}, dot, stage), element("dd", {}, secondsText(seconds))));
  }
  place.replaceChildren(bar, list);
}
