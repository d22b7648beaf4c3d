// @ts-check
/** The page: from an image that comes in to a result that is compared, saved, and found again. */

import { ApiError, fetchModel, upscale } from "./api.js";
import { byId } from "./dom.js";
import { enlarge } from "./enlarge.js";
import { attachKeys, attachPointer } from "./gestures.js";
import { History } from "./history.js";
import { takeImages } from "./intake.js";
import * as notice from "./notice.js";
import { Progress, scaleOf } from "./progress.js";
import * as settings from "./settings.js";
import { Viewer } from "./viewer.js";

/**
 * @typedef {import("./history.js").Entry} Entry
 * @typedef {import("./intake.js").Source} Source
 * @typedef {"empty" | "ready" | "working" | "done"} State ready: an image is there, and no result of it is shown
 */

const KEY = "varsr-api-key"; // in this tab's storage, gone with the tab
const MOST_RETRIES = 20;
/** @type {Record<string, string>} what to do about some errors, beside what the server says of them */
const ADVICE = {
  deadline_exceeded: "A smaller size or a draft takes less time.",
  image_too_large: "Choose a smaller size.",
};

const viewer = new Viewer();
const results = new History(byId("history", HTMLElement), byId("history-list", HTMLElement), restore);
const bar = byId("progress", HTMLProgressElement);
const words = byId("progress-text", HTMLElement);
const caption = byId("caption", HTMLElement);
const announcement = byId("announcement", HTMLElement);
const download = byId("download", HTMLAnchorElement);
const cancelButton = byId("cancel", HTMLButtonElement);
const again = byId("again", HTMLButtonElement);
const picker = byId("file", HTMLInputElement);

/** @type {import("./api.js").Model | null} */
let model = null;
/** @type {Source | null} */
let source = null;
/** @type {AbortController | null} of the image that is being upscaled */
let running = null;
/** @type {Entry | null} the result that is to be shown */
let wanted = null;
/** @type {Promise<void>} ends when the model is known, or it is known why not */
let meeting = Promise.resolve();

/** @param {State} state */
function enter(state) {
  document.body.dataset.state = state;
  results.disabled = state === "working";
  again.textContent = state === "done" ? "Upscale again" : "Upscale";
}

/** @param {string} text for who listens instead of looking */
function announce(text) {
  announcement.textContent = text;
}

// --- upscaling -------------------------------------------------------------------------------------------------------

/**
 * Upscale an image with the settings as they are. What runs already is cancelled.
 *
 * @param {Source} next
 */
async function start(next) {
  running?.abort();
  const mine = (running = new AbortController());
  const { signal } = mine;
  source = next;
  wanted = null;
  notice.clear();
  results.mark(null);
  words.textContent = "Waiting for the server";
  bar.removeAttribute("value");
  delete bar.dataset.scale;
  enter("working");
  const decodable = await viewer.showInput(next.image);
  await meeting;
  if (signal.aborted) return;
  if (!settings.valid()) {
    running = null;
    return enter(decodable ? "ready" : "empty");
  }
  const asked = settings.read();
  announce(`Upscaling ${next.name}`);
  try {
    checkSize(next.image);
    const entry = await persistently(() => once(next, asked, signal), signal);
    await viewer.showOutput(entry.output, entry.label);
    if (signal.aborted) return;
    running = null;
    results.add(entry, viewer.output);
    present(entry);
    announce(`Done: ${entry.caption}`);
  } catch (error) {
    if (signal.aborted) return; // by whoever has gone on to something else
    running = null;
    enter(decodable ? "ready" : "empty");
    fail(error, () => start(next));
  }
}

/**
 * One request.
 *
 * @param {Source} from
 * @param {import("./settings.js").Asked} asked
 * @param {AbortSignal} signal
 * @returns {Promise<Entry>}
 */
async function once(from, asked, signal) {
  const began = performance.now();
  const refined = asked.scales === null;
  const progress = new Progress(asked.scales ?? model?.scales.length ?? null, refined);
  show(progress, "Sending");
  for await (const { name, data } of upscale(from.image, asked.query, key(), signal)) {
    signal.throwIfAborted();
    if (name === "accepted") {
      viewer.setSize(data.size);
      compareWith(from.image, data.size);
      show(progress);
    } else if (name === "progress") {
      progress.note(data);
      show(progress);
      const scale = scaleOf(data.stage);
      if (scale !== null) bar.dataset.scale = String(scale);
    } else if (name === "preview") {
      viewer.showPreview(data);
    } else {
      const { size, source_size: before, tiles } = data;
      const took = ((performance.now() - began) / 1000).toFixed(1);
      const cut = tiles > 1 ? `${tiles} tiles` : "1 tile";
      const facts = [`${before.join(" × ")} → ${size.join(" × ")}`, `seed ${asked.seed}`, cut, `${took} s`];
      return {
        name: from.name,
        input: from.image,
        output: data.image,
        size,
        file: from.name.replace(/\.[^.]*$/, "") + asked.suffix + `.${EXTENSIONS[data.image.type]}`,
        label: (model?.id ?? "Upscaled") + (refined ? "" : " (draft)"),
        caption: [...facts, ...data.warnings].join(" · "),
      };
    }
  }
  throw new Error("unreachable: an upscaling ends with a result or an error");
}

/** @type {Record<string, string>} */
const EXTENSIONS = { "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp" };

/**
 * Do something that a server may refuse because it is busy: again, when it says so.
 *
 * @template T
 * @param {() => Promise<T>} attempt
 * @param {AbortSignal} signal
 * @returns {Promise<T>}
 */
async function persistently(attempt, signal) {
  for (let retries = 0; ; retries++) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof ApiError) || error.retryAfter === null || retries === MOST_RETRIES) throw error;
      words.textContent = "Waiting";
      bar.removeAttribute("value");
      await notice.countDown(sentence(error.message), error.retryAfter, signal);
      signal.throwIfAborted();
    }
  }
}

/** @param {Blob} image */
function checkSize(image) {
  const most = model?.limits.max_body_bytes ?? Infinity;
  if (image.size <= most) return;
  const [has, may] = [image.size, most].map((bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`);
  throw new ApiError({ code: "payload_too_large", message: `the file has ${has}; at most ${may} are allowed` });
}

/**
 * @param {Progress} progress
 * @param {string} [text]
 */
function show(progress, text = progress.words) {
  const share = progress.share;
  words.textContent = text;
  if (share === null || share === 0) return bar.removeAttribute("value");
  const quarter = Math.floor(share * 4);
  if (quarter > Math.floor(bar.value * 4)) announce(`${quarter * 25}%`);
  bar.value = share;
}

function cancel() {
  if (running === null) return;
  running.abort();
  running = null;
  notice.clear();
  const leaving = document.activeElement === cancelButton;
  enter(viewer.hasInput ? "ready" : "empty");
  announce("Cancelled");
  if (leaving) again.focus();
}

// --- results ---------------------------------------------------------------------------------------------------------

/** @param {Entry} entry a result whose picture is shown */
function present(entry) {
  results.mark(entry);
  caption.textContent = `${entry.name} · ${entry.caption}`;
  if (download.href) URL.revokeObjectURL(download.href);
  download.href = URL.createObjectURL(entry.output);
  download.download = entry.file;
  const leaving = document.activeElement === cancelButton;
  enter("done");
  if (leaving) viewer.divider.focus();
}

/** @param {Entry} entry */
async function restore(entry) {
  source = { name: entry.name, image: entry.input };
  wanted = entry;
  notice.clear();
  await viewer.showInput(entry.input);
  if (wanted !== entry) return;
  compareWith(entry.input, entry.size);
  await viewer.showOutput(entry.output, entry.label);
  if (wanted === entry) present(entry);
}

/**
 * @param {Blob} input
 * @param {import("./api.js").Size} size
 */
async function compareWith(input, size) {
  const bitmap = await enlarge(input, size);
  if (viewer.input === input) viewer.showBicubic(bitmap);
  else bitmap?.close();
}

// --- errors ----------------------------------------------------------------------------------------------------------

/**
 * @param {unknown} error
 * @param {() => void} [upscaling] starts what failed again; none if it was the first meeting with the server
 */
function fail(error, upscaling) {
  const retry = upscaling ?? meet;
  if (!(error instanceof ApiError)) {
    notice.say("Something in this page failed; the browser's console says what.", { label: "Try again", run: retry });
    throw error;
  }
  const said = [sentence(error.message), ADVICE[error.code] ?? ""].join(" ").trim();
  if (error.code === "unauthorized") {
    notice.askForKey(key() === "" ? "This server needs an API key." : said, (given) => {
      sessionStorage.setItem(KEY, given);
      if (model === null) meet();
      upscaling?.();
    });
  } else if (error.param !== null) {
    notice.say(said);
    settings.point(error.param);
  } else if (WRONG_IMAGE.has(error.code)) {
    notice.say(said, { label: "Choose another", run: () => picker.click() });
  } else {
    notice.say(said, { label: "Try again", run: retry });
  }
}

const WRONG_IMAGE = new Set(["invalid_image", "unsupported_format", "payload_too_large"]);

/** @param {string} message the server's: a clause */
function sentence(message) {
  const text = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

// --- set-up ----------------------------------------------------------------------------------------------------------

/** Learn what is served: its name, its scales, its limits. */
function meet() {
  const met = async () => {
    model = await persistently(() => fetchModel(key()), new AbortController().signal);
    byId("model", HTMLElement).textContent = `${model.id} · ${model.device}`;
    settings.offer(model);
  };
  meeting = met().catch((error) => fail(error));
}

attachPointer(viewer);
attachKeys(viewer);
takeImages(picker, start, (why) => notice.say(why));

for (const id of ["choose", "open"]) byId(id, HTMLButtonElement).addEventListener("click", () => picker.click());
byId("example", HTMLButtonElement).addEventListener("click", async () => {
  const answer = await fetch(new URL("./example.jpg", import.meta.url));
  start({ name: "example.jpg", image: await answer.blob() });
});
cancelButton.addEventListener("click", cancel);
byId("settings", HTMLFormElement).addEventListener("submit", (event) => {
  event.preventDefault();
  if (source !== null) start(source);
});
byId("zoom-in", HTMLButtonElement).addEventListener("click", () => viewer.zoomTo(viewer.zoom * 2));
byId("zoom-out", HTMLButtonElement).addEventListener("click", () => viewer.zoomTo(viewer.zoom / 2));
byId("fit", HTMLButtonElement).addEventListener("click", () => viewer.fit());
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (running !== null) cancel();
  else notice.clear();
});

meet();
