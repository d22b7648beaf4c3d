// @ts-check
/** The picture: the input while previews arrive over it, then before and after with a divider; zoomed and panned. */

import { byId, clearImage, showImage } from "./dom.js";

/** @typedef {import("./api.js").Size} Size */

export const MAX_ZOOM = 16;
const PIXELATED = 4; // device pixels a pixel from which pixels are shown as squares
const FADE = 300; // milliseconds

export class Viewer {
  root = byId("viewer", HTMLElement);
  divider = byId("divider", HTMLElement);
  output = byId("output", HTMLImageElement);
  #input = byId("input", HTMLImageElement);
  #bicubic = byId("bicubic", HTMLCanvasElement);
  #previews = [byId("preview-a", HTMLImageElement), byId("preview-b", HTMLImageElement)];
  #before = byId("before-label", HTMLElement);
  #after = byId("after-label", HTMLElement);
  #level = byId("zoom-level", HTMLElement);
  #pictures = /** @type {NodeListOf<HTMLElement>} */ (this.root.querySelectorAll(".picture"));

  /** @type {Blob | null} the image whose upscaling is shown */
  input = null;
  /** @type {Size} of the picture in pixels; what is shown has its proportions, whatever its own pixels are */
  #size = [1, 1];
  #zoom = 1; // 1: the whole picture fits
  #centre = { x: 0.5, y: 0.5 }; // of the view, in shares of the picture
  #split = 50; // percent of the visible picture that show the input
  #layers = 0;
  /** @type {import("./api.js").Preview | null} the newest that waits for the one that is being decoded */
  #waiting = null;
  #decoding = false;

  constructor() {
    new ResizeObserver(() => this.#layout()).observe(this.root);
  }

  get zoom() {
    return this.#zoom;
  }

  get split() {
    return this.#split;
  }

  get hasInput() {
    return this.#input.hasAttribute("src");
  }

  /** Whether a result is compared with its input. */
  get comparing() {
    return this.root.classList.contains("comparing");
  }

  /** Show nothing. */
  clear() {
    this.root.classList.remove("comparing", "glide");
    this.input = null;
    for (const image of [this.#input, this.output, ...this.#previews]) clearImage(image);
    this.#waiting = null;
    delete this.root.dataset.preview;
    this.showBicubic(null);
    this.fit();
  }

  /**
   * Start on another picture: its input alone.
   *
   * @param {Blob} image
   * @returns {Promise<boolean>} false if the browser cannot decode it
   */
  async showInput(image) {
    this.clear();
    this.input = image;
    if (!(await showImage(this.#input, image))) return false;
    this.setSize([this.#input.naturalWidth, this.#input.naturalHeight]);
    return true;
  }

  /** @param {Size} size the result's */
  setSize(size) {
    this.#size = size;
    this.#layout();
  }

  /** @param {ImageBitmap | null} bitmap the input enlarged, of the result's size; null: as the browser scales it */
  showBicubic(bitmap) {
    if (bitmap !== null) {
      [this.#bicubic.width, this.#bicubic.height] = [bitmap.width, bitmap.height];
      this.#bicubic.getContext("bitmaprenderer")?.transferFromImageBitmap(bitmap);
    }
    this.#bicubic.hidden = bitmap === null;
    this.#before.textContent = bitmap === null ? "Input" : "Bicubic";
    this.#describe();
  }

  /**
   * Lay a preview over what is shown. Of several that come while one is decoded, the last is shown.
   *
   * @param {import("./api.js").Preview} preview
   */
  async showPreview(preview) {
    this.#waiting = preview;
    if (this.#decoding) return;
    this.#decoding = true;
    while (this.#waiting !== null) {
      const { stage, tile, image } = this.#waiting;
      this.#waiting = null;
      this.#previews.reverse();
      const top = this.#previews[0];
      top.style.zIndex = String(++this.#layers);
      if (!(await showImage(top, image)) || this.comparing) continue;
      fadeIn(top);
      this.root.dataset.preview = `${tile}:${stage}`;
    }
    this.#decoding = false;
  }

  /**
   * Show the result beside its input.
   *
   * @param {Blob} image
   * @param {string} label
   * @returns {Promise<boolean>} false if the browser cannot decode it, or was given another meanwhile
   */
  async showOutput(image, label) {
    if (!(await showImage(this.output, image))) return false;
    this.#waiting = null;
    this.#after.textContent = label;
    this.root.classList.add("comparing", "glide");
    this.output.style.zIndex = String(++this.#layers);
    fadeIn(this.output).then(() => {
      this.root.classList.remove("glide");
      if (this.comparing) this.#previews.forEach(clearImage);
    });
    this.setSize([this.output.naturalWidth, this.output.naturalHeight]);
    this.moveSplit(50);
    return true;
  }

  /** @param {number} percent */
  moveSplit(percent) {
    this.#split = clamp(percent, 0, 100);
    this.#layout();
    this.#describe();
  }

  /** @param {number} x in pixels of the window */
  moveSplitTo(x) {
    const { left, right, stage } = this.#geometry();
    this.moveSplit(((x - stage.left - left) / (right - left)) * 100);
  }

  /** Show the whole picture. */
  fit() {
    this.#centre = { x: 0.5, y: 0.5 };
    this.zoomTo(1);
  }

  /**
   * @param {number} zoom
   * @param {{x: number, y: number}} [at] the point of the window that stays where it is; the middle if none
   */
  zoomTo(zoom, at) {
    const { stage, x, y, scale } = this.#geometry();
    const point = at ?? { x: stage.left + stage.width / 2, y: stage.top + stage.height / 2 };
    const fromLeft = point.x - stage.left;
    const fromTop = point.y - stage.top;
    const share = { x: (fromLeft - x) / scale, y: (fromTop - y) / scale }; // of the picture, in its pixels
    this.#zoom = clamp(zoom, 1, MAX_ZOOM);
    const next = this.#geometry().scale;
    this.#centre = {
      x: (share.x - (fromLeft - stage.width / 2) / next) / this.#size[0],
      y: (share.y - (fromTop - stage.height / 2) / next) / this.#size[1],
    };
    this.#layout();
  }

  /**
   * @param {number} dx in pixels of the window; positive: the picture moves to the right
   * @param {number} dy
   */
  pan(dx, dy) {
    const { scale } = this.#geometry();
    this.#centre = {
      x: this.#centre.x - dx / (scale * this.#size[0]),
      y: this.#centre.y - dy / (scale * this.#size[1]),
    };
    this.#layout();
  }

  /** Where the picture lies in the stage, and which part of it is to be seen; keeps the view inside of the picture. */
  #geometry() {
    const stage = this.root.getBoundingClientRect();
    const [width, height] = this.#size;
    const scale = this.#zoom * Math.min(stage.width / width, stage.height / height);
    /** @param {number} centre @param {number} room @param {number} length */
    const inside = (centre, room, length) => {
      const half = room / (2 * length);
      return half >= 0.5 ? 0.5 : clamp(centre, half, 1 - half);
    };
    this.#centre.x = inside(this.#centre.x, stage.width, width * scale);
    this.#centre.y = inside(this.#centre.y, stage.height, height * scale);
    const x = stage.width / 2 - this.#centre.x * width * scale;
    const y = stage.height / 2 - this.#centre.y * height * scale;
    const [left, top] = [Math.max(0, x), Math.max(0, y)];
    const right = Math.min(stage.width, x + width * scale);
    const bottom = Math.min(stage.height, y + height * scale);
    return { stage, scale, x, y, left, top, right, bottom };
  }

  #layout() {
    const { stage, scale, x, y, left, top, right, bottom } = this.#geometry();
    if (stage.width === 0) return; // not shown
    for (const picture of this.#pictures) {
      picture.style.width = `${this.#size[0]}px`;
      picture.style.height = `${this.#size[1]}px`;
      picture.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    }
    const split = this.comparing ? this.#split / 100 : 0;
    const edges = { left, top, right: stage.width - right, bottom: stage.height - bottom };
    for (const [edge, at] of Object.entries(edges)) this.root.style.setProperty(`--${edge}`, `${at}px`);
    this.root.style.setProperty("--split", `${left + (right - left) * split}px`);
    this.root.classList.toggle("zoomed", this.#zoom > 1);
    this.root.classList.toggle("pixelated", this.#zoom > 1 && scale * devicePixelRatio >= PIXELATED);
    this.#level.textContent = `${this.#zoom.toFixed(this.#zoom < 10 ? 1 : 0).replace(".0", "")}×`;
  }

  #describe() {
    const share = Math.round(this.#split);
    const words = `${share}% ${this.#before.textContent}, ${100 - share}% ${this.#after.textContent}`;
    this.divider.setAttribute("aria-valuenow", String(share));
    this.divider.setAttribute("aria-valuetext", words);
  }
}

/**
 * @param {HTMLElement} element
 * @returns {Promise<unknown>} when it is there
 */
function fadeIn(element) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  return element.animate([{ opacity: 0 }, { opacity: 1 }], { duration: still ? 0 : FADE, easing: "ease-out" }).finished;
}

/** @param {number} value @param {number} low @param {number} high */
function clamp(value, low, high) {
  return Math.min(high, Math.max(low, value));
}
