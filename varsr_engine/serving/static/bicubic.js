// @ts-check
/** Bicubic resizing as Pillow does it (a = -1/2, wider where it shrinks): what the network is compared with. */

/**
 * @param {ImageData} source
 * @param {number} width
 * @param {number} height
 * @returns {ImageData}
 */
export function bicubic(source, width, height) {
  const planes = premultiplied(source.data);
  const narrow = resizeRows(planes, source.width, source.height, width); // transposed: height ↔ width
  const both = resizeRows(narrow, source.height, width, height); // and back
  return new ImageData(straight(both), width, height);
}

/** @param {number} x distance in pixels of the source, or of the result where that has fewer */
function cubic(x) {
  const d = Math.abs(x);
  if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
  return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
}

/**
 * Resize rows of RGBA pixels from `length` to `target` pixels; the result is transposed.
 *
 * @param {Float32Array} pixels (count, length, 4)
 * @param {number} length
 * @param {number} count
 * @param {number} target
 * @returns {Float32Array} (target, count, 4)
 */
function resizeRows(pixels, length, count, target) {
  const result = new Float32Array(target * count * 4);
  const ratio = length / target;
  const stretch = Math.max(ratio, 1);
  for (let x = 0; x < target; x++) {
    const centre = (x + 0.5) * ratio;
    const first = Math.max(0, Math.floor(centre - 2 * stretch + 0.5));
    const last = Math.min(length, Math.floor(centre + 2 * stretch + 0.5));
    const weights = Array.from({ length: last - first }, (_, i) => cubic((first + i + 0.5 - centre) / stretch));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    for (let y = 0; y < count; y++) {
      let r = 0, g = 0, b = 0, a = 0;
      for (let i = 0, at = (y * length + first) * 4; i < weights.length; i++, at += 4) {
        const weight = weights[i];
        r += weight * pixels[at];
        g += weight * pixels[at + 1];
        b += weight * pixels[at + 2];
        a += weight * pixels[at + 3];
      }
      const to = (x * count + y) * 4;
      result[to] = r / sum;
      result[to + 1] = g / sum;
      result[to + 2] = b / sum;
      result[to + 3] = a / sum;
    }
  }
  return result;
}

/** @param {Uint8ClampedArray} data */
function premultiplied(data) {
  const pixels = new Float32Array(data.length);
  for (let i = 0; i < data.length; i += 4) {
    const alpha = data[i + 3];
    for (let c = 0; c < 3; c++) pixels[i + c] = (data[i + c] * alpha) / 255;
    pixels[i + 3] = alpha;
  }
  return pixels;
}

/** @param {Float32Array} pixels */
function straight(pixels) {
  const data = new Uint8ClampedArray(pixels.length); // rounds and clamps
  for (let i = 0; i < data.length; i += 4) {
    const alpha = pixels[i + 3]; // may overshoot, as its colours then do
    if (alpha <= 0) continue;
    for (let c = 0; c < 3; c++) data[i + c] = (pixels[i + c] * 255) / alpha;
    data[i + 3] = alpha;
  }
  return data;
}
