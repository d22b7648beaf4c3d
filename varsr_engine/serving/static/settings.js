// @ts-check
/** The settings' form, and what it asks of the server. Empty fields are the model's own defaults. */

import { byId } from "./dom.js";

/** @typedef {{query: URLSearchParams, seed: string, suffix: string, scales: number | null}} Asked */

const form = byId("settings", HTMLFormElement);
const longest = byId("longest-side", HTMLInputElement);
const seed = byId("seed", HTMLInputElement);
const scales = byId("scales", HTMLSelectElement);

form.addEventListener("change", showFields);
byId("dice", HTMLButtonElement).addEventListener("click", () => {
  seed.value = String(crypto.getRandomValues(new Uint32Array(1))[0]);
});
showFields();

function showFields() {
  const wanted = value("size") === "longest";
  byId("longest-field", HTMLElement).hidden = !wanted;
  longest.disabled = !wanted;
}

/** Whether all fields hold what they may; the browser says at the first which does not. */
export function valid() {
  return form.reportValidity();
}

/** @returns {Asked} */
export function read() {
  const query = new URLSearchParams();
  const size = value("size");
  if (size === "longest") query.set("longest_side", longest.value);
  else query.set("scale", size);
  query.set("seed", seed.value || "0");
  for (const [name, id] of Object.entries(PARAMS)) if (value(id) !== "") query.set(name, value(id));
  query.set("format", value("format"));
  const draft = query.has("stop_at_scale") ? "_draft" : "";
  return {
    query,
    seed: seed.value || "0",
    suffix: (size === "longest" ? `_${longest.value}px` : `_x${size}`) + draft,
    scales: draft ? Number(value("scales")) : null,
  };
}

const PARAMS = { cfg: "cfg", stop_at_scale: "scales", color_fix: "color-fix" };

/**
 * Offer the model's scales as drafts.
 *
 * @param {import("./api.js").Model} model
 */
export function offer(model) {
  const count = model.scales.length;
  scales.replaceChildren(new Option(`All ${count}`, ""));
  for (let n = count - 1; n >= 1; n--) scales.add(new Option(`First ${n} (draft)`, String(n)));
  scales.disabled = false;
}

/**
 * Lead to the field that the server did not like.
 *
 * @param {string} param
 */
export function point(param) {
  const id = { ...PARAMS, seed: "seed", longest_side: "longest-side" }[param] ?? "";
  document.getElementById(id)?.focus();
}

/** @param {string} name */
function value(name) {
  return String(new FormData(form).get(name) ?? "");
}
