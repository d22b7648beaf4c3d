// @ts-check
/** How far an image is, from the stages that its tiles pass. */

/** @typedef {import("./api.js").Step} Step */

export class Progress {
  /**
   * @param {number | null} scales that run; null if not known
   * @param {boolean} refined whether the refiner runs after them
   */
  constructor(scales, refined) {
    this.scales = scales;
    this.refined = refined;
    this.tiles = 1;
    /** @type {Map<number, number>} how many stages each tile has passed */
    this.passed = new Map();
    this.words = "Waiting for its turn";
  }

  /** @param {Step} step */
  note({ stage, tile, tiles }) {
    const scale = scaleOf(stage);
    this.tiles = tiles;
    this.passed.set(tile, Math.max(this.passed.get(tile) ?? 0, this.#place(stage, scale)));
    const of = this.scales === null ? "" : ` of ${this.scales}`;
    const now = scale === null ? STAGES[stage] ?? stage : `Scale ${scale + 1}${of}`;
    this.words = tiles > 1 ? `${now} · tile ${tile + 1} of ${tiles}` : now;
    if (this.share === 1) this.words = "Decoding";
  }

  /** Of all stages of all tiles, in [0, 1]; null if not known. */
  get share() {
    if (this.scales === null) return null;
    let sum = 0;
    for (const passed of this.passed.values()) sum += Math.min(passed, this.#stages);
    return sum / (this.#stages * this.tiles);
  }

  get #stages() {
    return 1 + (this.scales ?? 0) + (this.refined ? 1 : 0);
  }

  /**
   * @param {string} stage
   * @param {number | null} scale
   */
  #place(stage, scale) {
    if (scale !== null) return scale + 2;
    return stage === "condition" ? 1 : this.#stages;
  }
}

/** @type {Record<string, string>} */
const STAGES = { condition: "Reading the picture", refiner: "Refining", decoder: "Decoding" };

/**
 * @param {string} stage "scale.3"
 * @returns {number | null} 3; null for another stage
 */
export function scaleOf(stage) {
  const match = /^scale\.(\d+)$/.exec(stage);
  return match === null ? null : Number(match[1]);
}
