/** What the page says in passing: a line that goes by itself unless it is held, and words for screen readers alone. */

import { byId, element } from "./elements.js";

const SHOWN_MS = 6000;

/**
 * Show a line for a while, with something that can be done about it.
 * @param {string} words
 * @param {{label: string, act: () => void} | null} action
 */
export function notice(words, action = null) {
  const line = element("div", { className: "notice" }, element("span", {}, words));
  const leave = () => (line.matches(":hover, :focus-within") ? setTimeout(leave, SHOWN_MS) : line.remove());
  if (action) {
    const act = () => {
      line.remove();
      action.act();
    };
    line.append(element("button", { type: "button", className: "button plain", onclick: act }, action.label));
  }
  const place = byId("notices");
  (document.querySelector("dialog[open]") ?? document.body).append(place); // a dialog covers what is outside of it
  place.replaceChildren(line);
  setTimeout(leave, SHOWN_MS);
}

/**
 * Say something to who does not see it happen, when there is a pause.
 * @param {string} words
 */
export function announce(words) {
  byId("announcer").textContent = words;
}
