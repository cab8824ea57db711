/** Prompts to begin with: things that the embedded model can draw too, which knows a small world only. */

export const PROMPTS = [
  "a red circle on a blue background",
  "a blue house in a meadow",
  "a red boat on the sea at sunset",
  "a small white moon at night",
  "a large orange fish on a cyan background",
  "a black cat face on a pink background",
  "a green tree next to a brown house in the desert",
  "a yellow sun over a grey mountain in the sky",
  "three pink hearts on a white background",
  "a pink flower on a gradient from yellow to green",
  "a grey robot at sunset",
  "two purple rings on a yellow background",
  "a rocket in the night sky",
  "a yellow star above a blue boat",
  "a turquoise diamond on a gradient from purple to pink",
  "a golden crescent next to a white cloud under the stars",
  "a photo of a kitten in a garden",
  "a red mountain by the lake at dawn",
];

/**
 * Some prompts in an order that changes with `chance`, none of them `except`.
 * @param {number} count
 * @param {() => number} chance from 0 up to 1
 * @param {string} except
 */
export function somePrompts(count, chance, except = "") {
  const left = PROMPTS.filter((prompt) => prompt !== except);
  const found = [];
  while (found.length < count && left.length > 0) {
    found.push(...left.splice(Math.floor(chance() * left.length), 1));
  }
  return found;
}
