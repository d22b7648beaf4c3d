// @ts-check
/** Images into the page: picked, dropped or pasted. */

/** @typedef {{name: string, image: Blob}} Source an image's bytes; the name stays in the page */

/**
 * Call `take` with every image that comes in, and `refuse` with a word where something else does.
 *
 * @param {HTMLInputElement} picker
 * @param {(source: Source) => void} take
 * @param {(why: string) => void} refuse
 */
export function takeImages(picker, take, refuse) {
  /** @param {FileList | undefined | null} files */
  const first = async (files) => {
    const file = files?.[0];
    if (file === undefined) return refuse("That was no file. Save the image first, then drop it here.");
    try {
      // Read now: a file may change or go before it is sent again.
      take({ name: file.name || "image", image: new Blob([await file.arrayBuffer()], { type: file.type }) });
    } catch {
      refuse("The file cannot be read. Is it still there?");
    }
  };

  picker.addEventListener("change", async () => {
    if (picker.files?.length) await first(picker.files);
    picker.value = ""; // so that the same file may be picked again
  });

  const root = document.documentElement;
  let depth = 0; // dragenter and dragleave come for every element on the way
  document.addEventListener("dragenter", (event) => {
    event.preventDefault();
    depth += 1;
    if (event.dataTransfer?.types.includes("Files")) root.classList.add("dragging");
  });
  document.addEventListener("dragleave", () => {
    depth -= 1;
    if (depth <= 0) root.classList.remove("dragging");
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    root.classList.remove("dragging");
    first(event.dataTransfer?.files);
  });

  document.addEventListener("paste", (event) => {
    if (!event.clipboardData?.files.length) return; // text, into a field
    event.preventDefault();
    first(event.clipboardData.files);
  });
}
