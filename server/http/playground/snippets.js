/**
 * The same picture from a program: a request as a command of curl, as Python and as JavaScript.
 *
 * Each runs as it is, with nothing installed but the language, and writes the picture to a file. A key comes
 * from the environment; pictures that are sent come from files with the names in `INPUT_FILES`.
 */

import { fieldsOf, fileName } from "./request.js";

/** @typedef {import("./request.js").Settings} Settings */
/**
 * @typedef {object} Call
 * @property {string} url of the server, without a slash at its end
 * @property {Settings} settings of one picture
 * @property {("image" | "mask_image")[]} inputs pictures that are sent too
 * @property {boolean} keyed whether the server asks for a key
 */

export const KEY_VARIABLE = "SCHNELL_API_KEY";
/** @type {Record<"image" | "mask_image", string>} */
export const INPUT_FILES = { image: "input.png", mask_image: "mask.png" };
export const LANGUAGES = [
  { name: "curl", write: curl },
  { name: "Python", write: python },
  { name: "JavaScript", write: javascript },
];

/**
 * The fields that a program has to send: without those that say what is so anyway.
 * @param {Settings} settings
 * @returns {Record<string, unknown>}
 */
export function bodyOf(settings) {
  const { num_images: _, output_format: format, ...fields } = fieldsOf(settings);
  return format === "png" ? fields : { ...fields, output_format: format };
}

/** @param {Settings} settings */
function typeOf({ output_format: format }) {
  return `image/${format ?? "png"}`;
}

/** @param {Call} call */
function target({ settings }) {
  return fileName(settings, typeOf(settings));
}

/** @param {Call} call */
export function curl(call) {
  const { url, settings, inputs, keyed } = call;
  const lines = [
    `curl ${url}/v1/generate`,
    "  -H 'Content-Type: application/json'",
    `  -H 'Accept: ${typeOf(settings)}'`,
    ...(keyed ? [`  -H "Authorization: Bearer $${KEY_VARIABLE}"`] : []),
    "  --fail-with-body",
    `  -o ${shellQuoted(target(call))}`,
  ];
  const body = bodyOf(settings);
  if (inputs.length === 0) {
    return [...lines, `  -d ${shellQuoted(JSON.stringify(body))}`].join(" \\\n") + "\n";
  }
  const pictures = inputs.map(
    (name) => `  "${name}": "data:image/png;base64,$(base64 < ${INPUT_FILES[name]} | tr -d '\\n')"`,
  );
  const fields = Object.entries(body).map(
    ([name, value]) => `  ${heredocQuoted(JSON.stringify(name))}: ${heredocQuoted(JSON.stringify(value))}`,
  );
  const json = `{\n${[...fields, ...pictures].join(",\n")}\n}`;
  return [...lines, "  --data-binary @- <<JSON"].join(" \\\n") + `\n${json}\nJSON\n`;
}

/** @param {Call} call */
export function python(call) {
  const { url, settings, inputs, keyed } = call;
  const imports = [...(inputs.length ? ["base64"] : []), "json", ...(keyed ? ["os"] : []), "urllib.request"];
  const reader = [
    "",
    "",
    "def data_uri(name):",
    '    with open(name, "rb") as file:',
    '        return "data:image/png;base64," + base64.b64encode(file.read()).decode()',
    "",
  ];
  return [
    ...imports.map((name) => `import ${name}`),
    ...(inputs.length ? reader : []),
    "",
    "body = {",
    ...Object.entries(bodyOf(settings)).map(([name, value]) => `    ${JSON.stringify(name)}: ${pythonValue(value)},`),
    ...inputs.map((name) => `    "${name}": data_uri("${INPUT_FILES[name]}"),`),
    "}",
    "request = urllib.request.Request(",
    `    ${JSON.stringify(`${url}/v1/generate`)},`,
    "    data=json.dumps(body).encode(),",
    "    headers={",
    '        "Content-Type": "application/json",',
    `        "Accept": "${typeOf(settings)}",`,
    ...(keyed ? [`        "Authorization": "Bearer " + os.environ["${KEY_VARIABLE}"],`] : []),
    "    },",
    ")",
    `with urllib.request.urlopen(request) as answer, open(${JSON.stringify(target(call))}, "wb") as file:`,
    "    file.write(answer.read())",
    "",
  ].join("\n");
}

/** @param {Call} call */
export function javascript(call) {
  const { url, settings, inputs, keyed } = call;
  return [
    `import { ${inputs.length ? "readFile, " : ""}writeFile } from "node:fs/promises";`,
    ...(inputs.length
      ? ["", 'const dataUri = async (name) => `data:image/png;base64,${await readFile(name, "base64")}`;']
      : []),
    "",
    `const answer = await fetch(${JSON.stringify(`${url}/v1/generate`)}, {`,
    '  method: "POST",',
    "  headers: {",
    '    "Content-Type": "application/json",',
    `    Accept: "${typeOf(settings)}",`,
    ...(keyed ? [`    Authorization: \`Bearer \${process.env.${KEY_VARIABLE}}\`,`] : []),
    "  },",
    "  body: JSON.stringify({",
    ...Object.entries(bodyOf(settings)).map(([name, value]) => `    ${name}: ${JSON.stringify(value)},`),
    ...inputs.map((name) => `    ${name}: await dataUri("${INPUT_FILES[name]}"),`),
    "  }),",
    "});",
    "if (!answer.ok) throw new Error(await answer.text());",
    `await writeFile(${JSON.stringify(target(call))}, new Uint8Array(await answer.arrayBuffer()));`,
    "",
  ].join("\n");
}

/** @param {string} text */
function shellQuoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** @param {string} text between the lines of a here-document, where a shell still expands */
function heredocQuoted(text) {
  return text.replace(/[\\$`]/g, "\\$&");
}

/**
 * JSON's literals have other names in Python.
 * @param {unknown} value
 * @returns {string}
 */
function pythonValue(value) {
  if (typeof value === "boolean") {
    return value ? "True" : "False";
  }
  if (Array.isArray(value)) {
    return `[${value.map(pythonValue).join(", ")}]`;
  }
  if (value !== null && typeof value === "object") {
    return `{${Object.entries(value)
      .map(([name, inner]) => `${JSON.stringify(name)}: ${pythonValue(inner)}`)
      .join(", ")}}`;
  }
  return JSON.stringify(value);
}
