/**
 * The form in which a person says what to make. Its fields have the names of the API.
 *
 * It gives settings and takes them, shows what the server finds wrong at the field that it names, and leaves
 * what becomes of them to its caller.
 */

import { byId, element } from "./elements.js";
import { PROMPTS, somePrompts } from "./prompts.js";
import { MAX_IMAGES, drawnSeed, settingsOf } from "./request.js";
import { ShapePicker } from "./shapes.js";

/** @typedef {import("./request.js").Settings} Settings */
/** @typedef {import("./sizes.js").Size} Size */

const form = /** @type {HTMLFormElement} */ (byId("composer"));
const WIDE = matchMedia("(min-width: 62rem)");

export class Composer {
  #shapes;
  #onSubmit;
  #suggestion = PROMPTS[0];
  #lock = byId("lock");
  #defaults = { width: 0, height: 0, steps: 4 };

  /**
   * @param {{onSubmit: (settings: Settings) => void, onSize: (size: Size) => void}} listeners
   */
  constructor({ onSubmit, onSize }) {
    this.#onSubmit = onSubmit;
    this.#shapes = new ShapePicker(onSize);
    this.#suggest();
    field("seed").value = String(drawnSeed());
    this.#listen();
    this.#summarise();
  }

  /** What is entered now. */
  get settings() {
    const texts = /** @type {Record<string, string>} */ (Object.fromEntries(new FormData(form)));
    const loras = chosenLoras();
    return { ...settingsOf(texts), ...(loras.length ? { loras } : {}) };
  }

  /** Pixels of a picture of the model's size. */
  get area() {
    return this.#shapes.area;
  }

  /**
   * Take the defaults and limits of the model; what a person has changed stays.
   * @param {{default_width: number, default_height: number, default_steps: number, max_steps: number}} model
   */
  learn({ default_width: width, default_height: height, default_steps: steps, max_steps: most }) {
    const { size } = this.#shapes;
    this.#shapes.area = width * height;
    if (size.width === this.#defaults.width && size.height === this.#defaults.height) {
      this.#shapes.show({ width, height });
    }
    field("num_inference_steps").max = String(most);
    if (Number(field("num_inference_steps").value) === this.#defaults.steps) {
      field("num_inference_steps").value = String(Math.min(steps, most));
    }
    this.#defaults = { width, height, steps };
    this.#showSteps();
  }

  /**
   * Offer the LoRAs that the server has.
   * @param {{name: string}[]} loras
   */
  offer(loras) {
    byId("loras").hidden = loras.length === 0;
    byId("lora-choices").replaceChildren(...loras.map(({ name }) => loraChoice(name)));
  }

  /** @param {Size} size */
  showSize(size) {
    this.#shapes.show(size);
    this.#summarise();
  }

  /**
   * Fill in what a picture was made with.
   * @param {Settings} settings
   */
  fill(settings) {
    const values = /** @type {Record<string, any>} */ ({ output_quality: "", ...settings });
    const names = ["prompt", "negative_prompt", "seed", "num_images", "output_quality", "guidance_scale"];
    for (const name of [...names, "max_sequence_length", "priority", "deadline_ms"]) {
      field(name).value = String(values[name] ?? "");
    }
    field("embed_prompt").checked = settings.embed_prompt ?? false;
    field("output_format").value = settings.output_format; // a group of radio buttons has a value too
    field("auto_steps").checked = false; // as many as were taken
    field("num_inference_steps").value = String(settings.num_inference_steps);
    fillLoras(settings.loras ?? []);
    this.#shapes.show(settings);
    this.#keepSeed(true);
    this.#changed();
  }

  /**
   * Show what is wrong at the field that has it; false where there is no such field.
   * @param {import("./failure.js").Failure} failure
   */
  showFailure({ param, message }) {
    const name = param?.split(".")[0] ?? "";
    const place = document.querySelector(`[data-param="${CSS.escape(name)}"]`);
    const error = place?.querySelector(".error");
    if (!place || !(error instanceof HTMLElement) || place.closest("#editor[hidden]")) {
      return false;
    }
    for (let outer = place.closest("details"); outer; outer = outer.parentElement?.closest("details") ?? null) {
      outer.open = true;
    }
    error.textContent = message;
    error.hidden = false;
    error.id = `error-${name}`;
    const input = place.querySelector("input, textarea, select");
    input?.setAttribute("aria-invalid", "true");
    input?.setAttribute("aria-errormessage", error.id);
    input?.setAttribute("aria-describedby", [input.getAttribute("aria-describedby"), error.id].filter(Boolean).join(" "));
    /** @type {HTMLElement | null} */ (input)?.focus();
    place.scrollIntoView({ block: "nearest" });
    return true;
  }

  /** Send what is entered. */
  submit() {
    this.forgetFailures();
    if (field("prompt").value.trim() === "") {
      field("prompt").value = this.#suggestion;
      this.#grow();
    }
    this.#onSubmit(this.settings);
    if (this.#lock.getAttribute("aria-pressed") === "false") {
      field("seed").value = String(drawnSeed());
    }
  }

  forgetFailures() {
    for (const error of document.querySelectorAll("[data-param] .error:not([hidden])")) {
      /** @type {HTMLElement} */ (error).hidden = true;
      const input = error.closest("[data-param]")?.querySelector("[aria-invalid]");
      input?.removeAttribute("aria-invalid");
      input?.removeAttribute("aria-errormessage");
      const described = (input?.getAttribute("aria-describedby") ?? "").replace(error.id, "").trim();
      if (described) {
        input?.setAttribute("aria-describedby", described);
      } else {
        input?.removeAttribute("aria-describedby");
      }
    }
  }

  #listen() {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    /** @type {HTMLButtonElement} */ (byId("generate")).disabled = false; // before, the browser would send the form
    document.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !document.querySelector("dialog[open]")) {
        event.preventDefault();
        this.submit();
      }
    });
    form.addEventListener("input", () => this.#changed());
    byId("surprise").addEventListener("click", () => this.prompt(this.#suggest()));
    byId("dice").addEventListener("click", () => (field("seed").value = String(drawnSeed())));
    this.#lock.addEventListener("click", () => this.#keepSeed(this.#lock.getAttribute("aria-pressed") === "false"));
    field("seed").addEventListener("input", () => this.#keepSeed(true));
    byId("fewer").addEventListener("click", () => this.#count(-1));
    byId("more-pictures").addEventListener("click", () => this.#count(1));
    const options = /** @type {HTMLDetailsElement} */ (byId("options"));
    const arrange = () => (options.open = WIDE.matches);
    WIDE.addEventListener("change", arrange);
    arrange();
    if (/Mac|iP(hone|ad)/.test(navigator.platform)) {
      byId("shortcut").textContent = "⌘ ⏎";
    }
  }

  /**
   * Put in a prompt.
   * @param {string} text
   */
  prompt(text) {
    field("prompt").value = text;
    this.#changed();
  }

  #changed() {
    this.#grow();
    this.#showSteps();
    this.#summarise();
  }

  /** Let the prompt have the height that it needs. */
  #grow() {
    const prompt = field("prompt");
    prompt.style.height = "auto";
    prompt.style.height = `${prompt.scrollHeight + 2}px`;
  }

  /** Show another prompt in the empty field; an empty one is sent as the one that is shown. */
  #suggest() {
    [this.#suggestion] = somePrompts(1, Math.random, this.#suggestion);
    field("prompt").placeholder = this.#suggestion;
    return this.#suggestion;
  }

  /** @param {boolean} keep */
  #keepSeed(keep) {
    const words = keep ? "Draw a new seed each time" : "Keep this seed";
    this.#lock.setAttribute("aria-pressed", String(keep));
    this.#lock.title = words;
  }

  /** @param {number} more */
  #count(more) {
    const count = field("num_images");
    count.value = String(Math.min(MAX_IMAGES, Math.max(1, Number(count.value) + more)));
    this.#changed();
  }

  #showSteps() {
    const auto = field("auto_steps").checked;
    field("num_inference_steps").disabled = auto;
    byId("steps-shown").textContent = auto ? "4 to 1" : field("num_inference_steps").value;
  }

  /** Say in a line what the settings are, for when they are folded away. */
  #summarise() {
    const { width, height } = this.#shapes.size;
    const count = Number(field("num_images").value);
    const pictures = count === 1 ? "1 picture" : `${count} pictures`;
    byId("options-summary").textContent = width ? `${width} × ${height}, ${pictures}` : "";
  }
}

/**
 * A field of the form by its name.
 * @param {string} name
 */
function field(name) {
  return /** @type {HTMLInputElement} */ (form.elements.namedItem(name));
}

/** @param {string} name */
function loraChoice(name) {
  const scale = element("input", { type: "number", step: "0.1", min: "-4", max: "4", value: "1", disabled: true });
  scale.setAttribute("aria-label", `Scale of ${name}`);
  const box = element("input", { type: "checkbox", value: name });
  box.addEventListener("change", () => (scale.disabled = !box.checked));
  return element("div", { className: "lora" }, element("label", { className: "tick" }, box, name), scale);
}

/** @returns {import("./request.js").Adapter[]} */
function chosenLoras() {
  return [...document.querySelectorAll(".lora")].flatMap((choice) => {
    const [box, scale] = choice.querySelectorAll("input");
    return box.checked ? [{ name: box.value, scale: Number(scale.value) }] : [];
  });
}

/** @param {import("./request.js").Adapter[]} loras */
function fillLoras(loras) {
  for (const choice of document.querySelectorAll(".lora")) {
    const [box, scale] = choice.querySelectorAll("input");
    const chosen = loras.find(({ name }) => name === box.value);
    box.checked = chosen !== undefined;
    scale.disabled = !box.checked;
    scale.value = String(chosen?.scale ?? 1);
  }
}
