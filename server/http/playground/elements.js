/** Elements of the page: finding those that the HTML has, and making those that come and go. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * The element with this id, which index.html has.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) {
    throw new Error(`index.html has no #${id}`);
  }
  return found;
}

/**
 * A new element; properties with a dash are attributes, those that begin with `on` listeners.
 * @template {keyof HTMLElementTagNameMap} Name
 * @param {Name} name
 * @param {Record<string, any>} properties
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Name]}
 */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) {
      made.addEventListener(key.slice(2), value);
    } else if (key.includes("-") || key === "role") {
      made.setAttribute(key, value);
    } else {
      Reflect.set(made, key, value);
    }
  }
  made.append(...children);
  return made;
}

/**
 * An icon of the sprite in index.html, for eyes only.
 * @param {string} name
 */
export function icon(name) {
  const made = svg("svg", { class: "icon", "aria-hidden": "true" });
  made.append(svg("use", { href: `#icon-${name}` }));
  return made;
}

/**
 * @param {string} name
 * @param {Record<string, string | number>} attributes
 */
export function svg(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, String(value));
  }
  return made;
}

/**
 * A button with an icon and words; `quiet` ones have the words for screen readers and as a tip only.
 * @param {string} iconName
 * @param {string} words
 * @param {(event: MouseEvent) => void} onclick
 * @param {{quiet?: boolean, className?: string}} options
 */
export function iconButton(iconName, words, onclick, { quiet = false, className = "" } = {}) {
  const button = element("button", { type: "button", className: `button ${className}`, onclick }, icon(iconName));
  if (quiet) {
    button.classList.add("quiet");
    button.setAttribute("aria-label", words);
    button.title = words;
  } else {
    button.append(words);
  }
  return button;
}
