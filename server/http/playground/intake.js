/** How a picture comes in as a file: chosen, dropped anywhere on the page, or pasted. */

import { byId } from "./elements.js";
import { notice } from "./notices.js";

/** @param {(file: File) => void} onFile */
export function takeIn(onFile) {
  const chooser = /** @type {HTMLInputElement} */ (byId("image-file"));
  const take = (/** @type {FileList | undefined | null} */ files) => {
    const picture = [...(files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (picture) {
      onFile(picture);
    }
    return picture !== undefined;
  };
  for (const id of ["choose-image", "replace-image"]) {
    byId(id).addEventListener("click", () => chooser.click());
  }
  chooser.addEventListener("change", () => {
    take(chooser.files);
    chooser.value = ""; // so that the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    if (take(event.clipboardData?.files)) {
      event.preventDefault();
    }
  });
  takeDropped(take);
}

/** @param {(files: FileList | undefined) => boolean} take */
function takeDropped(take) {
  const veil = byId("dropping");
  const brings = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files") ?? false;
  document.addEventListener("dragover", (event) => {
    if (brings(event)) {
      event.preventDefault();
      veil.hidden = false;
    }
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) {
      veil.hidden = true;
    }
  });
  document.addEventListener("drop", (event) => {
    veil.hidden = true;
    if (brings(event)) {
      event.preventDefault();
      if (!take(event.dataTransfer?.files)) {
        notice("That file is no picture");
      }
    }
  });
}
