// @ts-check
/** The page's side of the worker that enlarges. */

const worker = new Worker(new URL("./bicubic-worker.js", import.meta.url), { type: "module" });
/** @type {Map<number, (bitmap: ImageBitmap | null) => void>} */
const waiting = new Map();
let last = 0;

worker.addEventListener("message", ({ data: { id, bitmap } }) => {
  waiting.get(id)?.(bitmap);
  waiting.delete(id);
});

/**
 * An image's bytes, enlarged by bicubic interpolation; null where the browser cannot decode or hold it.
 *
 * @param {Blob} image
 * @param {import("./api.js").Size} size
 * @returns {Promise<ImageBitmap | null>}
 */
export function enlarge(image, size) {
  return new Promise((resolve) => {
    waiting.set(++last, resolve);
    worker.postMessage({ id: last, image, size });
  });
}
