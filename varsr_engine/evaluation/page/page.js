"use strict";
// The tables are there without this script. It sorts them, and shows two pictures of a row with a line between them.
const pictures = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const [viewer, stage, pair, under, over, split] = ["viewer", "stage", "pair", "under", "over", "split"].map($);
let current = 0;
let zoom = 0; // screen pixels a picture's pixel; 0: as large as fits

function order() {
  return [...document.querySelectorAll("[data-open]")].map((button) => Number(button.dataset.open));
}

function size() {
  const [width, height] = pictures[current].size;
  const fitting = Math.min((stage.clientWidth - 2) / width, (stage.clientHeight - 2) / height);
  const factor = zoom || Math.min(fitting, 8);
  pair.style.width = `${width * factor}px`;
  pair.style.height = `${height * factor}px`;
  pair.classList.toggle("near", factor >= 2);
  $("zoom").value = `${Math.round(factor * 100)} %`;
  return factor;
}

function magnify(by) {
  const before = size();
  const middle = [(stage.scrollLeft + stage.clientWidth / 2) / before, (stage.scrollTop + stage.clientHeight / 2) / before];
  zoom = Math.min(32, Math.max(1 / 16, before * by));
  size();
  stage.scrollTo(middle[0] * zoom - stage.clientWidth / 2, middle[1] * zoom - stage.clientHeight / 2);
}

function fit() {
  zoom = 0;
  size();
}

function moveLine(percent) {
  split.value = percent;
  over.style.clipPath = `inset(0 0 0 ${split.value}%)`;
  $("line").style.left = `${split.value}%`;
}

function choose() {
  const {views} = pictures[current];
  for (const [image, select] of [[under, $("left")], [over, $("right")]]) {
    image.src = views[select.value];
    image.alt = select.value;
  }
}

function show(index) {
  current = index;
  const {name, scores, views} = pictures[index];
  const names = Object.keys(views);
  $("viewer-name").textContent = name;
  $("viewer-scores").textContent = scores;
  for (const [select, fallback] of [[$("left"), names[0]], [$("right"), "result"]]) {
    const wanted = names.includes(select.value) ? select.value : fallback;
    select.replaceChildren(...names.map((view) => new Option(view, view)));
    select.value = wanted;
  }
  choose();
  if (!viewer.open) viewer.showModal();
  size();
  stage.focus();
}

function step(by) {
  const all = order();
  show(all[(all.indexOf(current) + by + all.length) % all.length]);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-open]");
  if (button) show(Number(button.dataset.open));
});
const actions = {in: () => magnify(1.5), out: () => magnify(1 / 1.5), fit, previous: () => step(-1), next: () => step(1), close: () => viewer.close()};
for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
for (const id of ["left", "right"]) $(id).addEventListener("change", choose);
split.addEventListener("input", () => moveLine(split.value));
window.addEventListener("resize", () => viewer.open && size());
viewer.addEventListener("close", () => document.querySelector(`[data-open="${current}"]`)?.focus());

viewer.addEventListener("keydown", (event) => {
  if (event.target.closest("select, input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = {
    ArrowLeft: () => moveLine(Number(split.value) - 2),
    ArrowRight: () => moveLine(Number(split.value) + 2),
    PageUp: () => step(-1),
    PageDown: () => step(1),
    "+": actions.in,
    "=": actions.in,
    "-": actions.out,
    0: fit,
  };
  const action = keys[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

function follow(event) {
  const box = pair.getBoundingClientRect();
  moveLine(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
}
pair.addEventListener("pointerdown", (event) => {
  if (event.pointerType === "mouse" && event.button !== 0) return;
  pair.setPointerCapture(event.pointerId);
  follow(event);
});
pair.addEventListener("pointermove", (event) => pair.hasPointerCapture(event.pointerId) && follow(event));

for (const header of document.querySelectorAll("th[data-sort]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...header.childNodes);
  header.append(button);
  button.addEventListener("click", () => {
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentElement.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const column = [...header.parentElement.children].indexOf(header);
    const body = header.closest("table").tBodies[0];
    const value = (row) => row.cells[column]?.dataset.value ?? "";
    const byNumber = header.dataset.sort === "number";
    const compare = (a, b) => {
      const [first, second] = [value(a), value(b)];
      if (first === "" || second === "") return (first === "") - (second === ""); // what is missing stays at the end
      const result = byNumber ? Number(first) - Number(second) : first.localeCompare(second, undefined, {numeric: true});
      return descending ? -result : result;
    };
    body.append(...[...body.rows].sort(compare));
  });
}

$("theme").hidden = false;
$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = dark === "dark" ? "light" : "dark";
});
moveLine(50);
