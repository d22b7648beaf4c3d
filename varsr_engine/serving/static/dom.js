// @ts-check
/** The page's elements, and images shown from memory. */

/**
 * The element with an id, which must be of a kind.
 *
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function byId(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new TypeError(`the page has no ${kind.name} with the id ${id}`);
  return found;
}

/**
 * Show an image's bytes, once they are decoded, and give back the URL of what was shown before.
 *
 * @param {HTMLImageElement} image
 * @param {Blob} blob
 * @returns {Promise<boolean>} false if the browser cannot decode it, or another was asked for meanwhile
 */
export async function showImage(image, blob) {
  const url = URL.createObjectURL(blob);
  clearImage(image);
  image.src = url;
  try {
    await image.decode();
  } catch {
    if (image.getAttribute("src") === url) clearImage(image);
    return false;
  }
  return image.getAttribute("src") === url;
}

/** @param {HTMLImageElement} image */
export function clearImage(image) {
  const url = image.getAttribute("src");
  if (url?.startsWith("blob:")) URL.revokeObjectURL(url);
  image.removeAttribute("src");
}
