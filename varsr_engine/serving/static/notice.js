// @ts-check
/** One message at a time: what went wrong, and what can be done about it. */

import { byId } from "./dom.js";

const card = byId("notice", HTMLElement);
const text = byId("notice-text", HTMLElement);
const count = byId("notice-count", HTMLElement); // apart from the text, which is read aloud once
const action = byId("notice-action", HTMLButtonElement);
const keyForm = byId("key-form", HTMLFormElement);
const keyField = byId("key", HTMLInputElement);

/** @type {() => void} */
let onAction = () => {};
/** @type {(key: string) => void} */
let onKey = () => {};

action.addEventListener("click", () => onAction());
byId("notice-close", HTMLButtonElement).addEventListener("click", clear);
keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const key = keyField.value.trim();
  if (key === "") return;
  keyField.value = "";
  clear();
  onKey(key);
});

/**
 * @param {string} words
 * @param {{label: string, run: () => void}} [next] a button
 */
export function say(words, next) {
  text.textContent = words;
  count.textContent = "";
  action.hidden = next === undefined;
  if (next !== undefined) {
    action.textContent = next.label;
    onAction = next.run;
  }
  keyForm.hidden = true;
  card.hidden = false;
}

/**
 * Ask for a key.
 *
 * @param {string} words
 * @param {(key: string) => void} use
 */
export function askForKey(words, use) {
  say(words);
  onKey = use;
  keyForm.hidden = false;
  keyField.focus();
}

export function clear() {
  card.hidden = true;
  text.textContent = count.textContent = "";
}

/**
 * Count the seconds down, with a button to go on at once.
 *
 * @param {string} words
 * @param {number} seconds
 * @param {AbortSignal} signal
 * @returns {Promise<void>} when the time is up, or the signal is aborted
 */
export function countDown(words, seconds, signal) {
  return new Promise((resolve) => {
    const end = Date.now() + seconds * 1000;
    const done = () => {
      clearInterval(timer);
      signal.removeEventListener("abort", done);
      clear();
      resolve();
    };
    const tick = () => {
      const left = Math.ceil((end - Date.now()) / 1000);
      if (left <= 0) return done();
      count.textContent = `Trying again in ${left} s.`;
    };
    const timer = setInterval(tick, 250);
    signal.addEventListener("abort", done);
    say(words, { label: "Try now", run: done });
    tick();
  });
}
