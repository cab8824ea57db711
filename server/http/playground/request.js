/**
 * The request of a person in the words of `POST /v1/generate`: from a form's texts, and as short as it can be.
 *
 * Fields have the names of the API throughout the page, so that an error that names one finds its place.
 */

/**
 * @typedef {object} Adapter a LoRA
 * @property {string} name
 * @property {number} scale
 */
/** @typedef {{left: number, right: number, top: number, bottom: number}} Outpaint in pixels */
/**
 * @typedef {object} Settings what a picture is made with, without the pictures that it starts from
 * @property {string} prompt
 * @property {number} width
 * @property {number} height
 * @property {number | "auto"} num_inference_steps
 * @property {number} seed
 * @property {number} num_images
 * @property {string} output_format
 * @property {number} [output_quality]
 * @property {string} [negative_prompt]
 * @property {number} [guidance_scale]
 * @property {number} [max_sequence_length]
 * @property {string} [priority]
 * @property {number} [deadline_ms]
 * @property {boolean} [embed_prompt]
 * @property {Adapter[]} [loras]
 * @property {number} [strength]
 * @property {Outpaint} [outpaint]
 * @property {boolean} [preserve]
 */

export const MAX_IMAGES = 8;
export const MAX_PREVIEWS = 3;
export const MAX_SEED = 2 ** 53 - 1;

const NUMBERS = [
  "width",
  "height",
  "seed",
  "num_images",
  "output_quality",
  "guidance_scale",
  "max_sequence_length",
  "deadline_ms",
];
const TEXTS = ["prompt", "negative_prompt", "output_format", "priority"];

/**
 * The settings that the texts of a form are; what is empty is left to the model.
 * @param {Record<string, string>} texts by the names of fields; boxes that are not ticked are missing
 * @returns {Settings}
 */
export function settingsOf(texts) {
  /** @type {Record<string, any>} */
  const settings = {};
  for (const name of TEXTS) {
    if (texts[name]) {
      settings[name] = texts[name];
    }
  }
  for (const name of NUMBERS) {
    if (texts[name]?.trim()) {
      settings[name] = Number(texts[name]);
    }
  }
  settings.num_inference_steps = texts.auto_steps ? "auto" : Number(texts.num_inference_steps);
  if (texts.embed_prompt) {
    settings.embed_prompt = true;
  }
  if (settings.output_format === "png") {
    delete settings.output_quality; // nothing is lost in one
  }
  return /** @type {Settings} */ (settings);
}

/**
 * The settings of one picture of a request, which has a seed of its own.
 * @param {Settings} settings
 * @param {number} seed
 * @param {number} steps that were taken
 * @returns {Settings}
 */
export function settingsOfPicture(settings, seed, steps) {
  return { ...settings, seed, num_images: 1, num_inference_steps: steps };
}

/**
 * The fields that are sent: where a picture is extended, its size and the borders say how large it gets.
 * @param {Settings} settings
 * @returns {Record<string, unknown>}
 */
export function fieldsOf(settings) {
  if (!settings.outpaint) {
    return { ...settings };
  }
  const { width: _width, height: _height, ...fields } = settings;
  return fields;
}

/**
 * How many pictures to expect; whether so many may be asked for is the server's to say.
 * @param {Settings} settings
 */
export function expectedPictures({ num_images: count }) {
  return Math.min(MAX_IMAGES, Math.max(1, Math.trunc(count || 1)));
}

/** A seed that nobody chose, as the server draws it. */
export function drawnSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

/**
 * What to call the file of a picture: the beginning of its prompt, and its seed.
 * @param {Settings} settings
 * @param {string} contentType
 */
export function fileName({ prompt, seed }, contentType) {
  const words = prompt.normalize("NFC").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? [];
  let name = "";
  for (const word of words) {
    if (name.length + word.length > 47) {
      break;
    }
    name += (name && "-") + word;
  }
  const extension = contentType.replace("image/", "").replace("jpeg", "jpg");
  return `${name || "picture"}-${seed}.${extension}`;
}
