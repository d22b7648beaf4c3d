// @ts-check
/** The results of this page, as thumbnails. They live in memory, and go with the page. */

/**
 * @typedef {object} Entry a result, with all that it takes to show it again
 * @property {string} name of the image's file
 * @property {Blob} input
 * @property {Blob} output
 * @property {import("./api.js").Size} size
 * @property {string} file the name to save it by
 * @property {string} label of the result in the comparison
 * @property {string} caption
 */

const MOST = 12;
const SIDE = 120; // pixels of a thumbnail

export class History {
  /** @type {{entry: Entry, item: HTMLLIElement, button: HTMLButtonElement}[]} */
  #items = [];

  /**
   * @param {HTMLElement} section shown once there is something in it
   * @param {HTMLElement} list
   * @param {(entry: Entry) => void} pick
   */
  constructor(section, list, pick) {
    this.section = section;
    this.list = list;
    this.pick = pick;
  }

  /**
   * Put a result first. The oldest goes where there are too many.
   *
   * @param {Entry} entry
   * @param {HTMLImageElement} image its picture, decoded
   */
  add(entry, image) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.title = button.ariaLabel = `${entry.name}: ${entry.caption}`;
    button.append(thumbnail(image));
    button.addEventListener("click", () => this.pick(entry));
    item.append(button);
    this.list.prepend(item);
    this.#items.unshift({ entry, item, button });
    for (const { item } of this.#items.splice(MOST)) item.remove();
    this.section.hidden = false;
  }

  /** @param {Entry | null} entry the one that is shown */
  mark(entry) {
    for (const each of this.#items) each.button.ariaCurrent = String(each.entry === entry);
  }

  /** @param {boolean} disabled */
  set disabled(disabled) {
    for (const { button } of this.#items) button.disabled = disabled;
  }
}

/** @param {HTMLImageElement} image */
function thumbnail(image) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d");
  const side = Math.min(image.naturalWidth, image.naturalHeight);
  const [left, top] = [(image.naturalWidth - side) / 2, (image.naturalHeight - side) / 2];
  if (context === null || side === 0) return canvas; // the browser cannot decode it
  context.imageSmoothingQuality = "high";
  context.drawImage(image, left, top, side, side, 0, 0, SIDE, SIDE);
  return canvas;
}
