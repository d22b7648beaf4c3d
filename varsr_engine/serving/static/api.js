// @ts-check
/** The server's API, as far as the page needs it. Addresses are relative: a proxy may put a prefix before them. */

import { readEvents } from "./sse.js";

/**
 * @typedef {[number, number]} Size width, height in pixels
 * @typedef {{id: string, device: string, version: string, scales: number[], limits: {max_body_bytes: number}}} Model
 * @typedef {{size: Size, source_size: Size, tiles: number}} Accepted
 * @typedef {{stage: string, tile: number, tiles: number}} Step
 * @typedef {Step & {image: Blob}} Preview
 * @typedef {Accepted & {warnings: string[], image: Blob}} Result
 * @typedef {{name: "accepted", data: Accepted} | {name: "progress", data: Step} | {name: "preview", data: Preview}
 *   | {name: "result", data: Result}} UpscaleEvent
 */

const IMAGE_TYPES = ["image/png", "image/jpeg", "image/webp"];

/** What went wrong, in the server's words. */
export class ApiError extends Error {
  /**
   * @param {{message: string, code: string, param?: string | null}} error
   * @param {number | null} retryAfter seconds after which asking again makes sense
   */
  constructor(error, retryAfter = null) {
    super(error.message);
    this.name = "ApiError";
    this.code = error.code;
    this.param = error.param ?? null;
    this.retryAfter = retryAfter;
  }
}

/**
 * The model that is served. Throws ApiError.
 *
 * @param {string} key "" for none
 * @returns {Promise<Model>}
 */
export async function fetchModel(key) {
  const answer = await request("v1/models", { headers: authorization(key) });
  return (await answer.json()).data[0];
}

/**
 * Upscale an image: what happens, as it happens; the result comes last. Aborting the signal, or leaving the loop,
 * cancels it on the server too. Throws ApiError.
 *
 * @param {Blob} image
 * @param {URLSearchParams} query
 * @param {string} key
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<UpscaleEvent>}
 */
export async function* upscale(image, query, key, signal) {
  const type = IMAGE_TYPES.includes(image.type) ? image.type : "application/octet-stream";
  const headers = { ...authorization(key), "Content-Type": type, Accept: "text/event-stream" };
  const answer = await request(`v1/upscale?${query}`, { method: "POST", headers, body: image, signal });
  if (answer.body === null) throw unreachable();
  try {
    for await (const { name, data } of readEvents(answer.body)) {
      const body = JSON.parse(data);
      if (name === "error") throw new ApiError(body.error);
      if (typeof body.image === "string") body.image = fromBase64(body.image, `image/${body.format}`);
      yield /** @type {UpscaleEvent} */ ({ name, data: body });
      if (name === "result") return;
    }
  } catch (error) {
    if (error instanceof ApiError || signal.aborted) throw error;
    throw unreachable();
  }
  throw new ApiError({ code: "connection_lost", message: "the connection ended before the result was there" });
}

/**
 * @param {string} path
 * @param {RequestInit} options
 * @returns {Promise<Response>}
 */
async function request(path, options) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw unreachable();
  }
  if (answer.ok) return answer;
  const wait = Number(answer.headers.get("Retry-After"));
  const body = await answer.json().catch(() => null); // a proxy's page is no JSON
  throw new ApiError(
    body?.error ?? { code: "http", message: `the server answered ${answer.status} ${answer.statusText}` },
    wait > 0 ? wait : null,
  );
}

function unreachable() {
  return new ApiError({ code: "unreachable", message: "the server cannot be reached; is it still running?" });
}

/**
 * @param {string} key
 * @returns {Record<string, string>}
 */
function authorization(key) {
  return key === "" ? {} : { Authorization: `Bearer ${key}` };
}

/**
 * @param {string} text
 * @param {string} type
 */
function fromBase64(text, type) {
  if (typeof Uint8Array.fromBase64 === "function") return new Blob([Uint8Array.fromBase64(text)], { type });
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return new Blob([bytes], { type });
}
