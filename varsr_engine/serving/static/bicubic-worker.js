// @ts-check
/** Enlarges images off the page's thread: {id, image, size} in, {id, bitmap} out; bitmap is null where it cannot. */

import { bicubic } from "./bicubic.js";

self.addEventListener("message", async ({ data: { id, image, size } }) => {
  const bitmap = await enlarged(image, size).catch(() => null);
  self.postMessage({ id, bitmap }, { transfer: bitmap === null ? [] : [bitmap] });
});

/**
 * @param {Blob} image
 * @param {import("./api.js").Size} size
 * @returns {Promise<ImageBitmap>}
 */
async function enlarged(image, [width, height]) {
  const source = await createImageBitmap(image); // upright
  const context = new OffscreenCanvas(source.width, source.height).getContext("2d", { willReadFrequently: true });
  if (context === null) throw new Error("no canvas");
  context.drawImage(source, 0, 0);
  const pixels = context.getImageData(0, 0, source.width, source.height);
  source.close();
  return createImageBitmap(bicubic(pixels, width, height));
}
