// @ts-check
/** Mouse, touch, wheel and keys on the viewer. */

/** @typedef {import("./viewer.js").Viewer} Viewer */
/** @typedef {{x: number, y: number}} Point */

const CLICK = 4; // pixels that a click may move
const DOUBLE = 300; // milliseconds between the clicks of a double click
const CLOSE_UP = 4; // the zoom of a double click
const KEY_ZOOM = 1.5;
const KEY_PAN = 80; // pixels

/**
 * At rest a drag moves the divider; zoomed in it moves the picture, and the divider by its grip. Two fingers zoom.
 *
 * @param {Viewer} viewer
 */
export function attachPointer(viewer) {
  const { root } = viewer;
  /** @type {Map<number, Point>} the fingers, or the mouse, that are down */
  const down = new Map();
  /** @type {"divider" | "picture" | "pinch" | null} */
  let dragging = null;
  let start = { x: 0, y: 0 };
  let onGrip = false;
  let lastClick = { time: -Infinity, x: 0, y: 0 };

  root.addEventListener("pointerdown", (event) => {
    const target = /** @type {Element} */ (event.target);
    if (event.button !== 0 || target.closest("button") !== null) return;
    root.setPointerCapture(event.pointerId);
    root.classList.remove("glide");
    down.set(event.pointerId, point(event));
    if (down.size === 1) {
      start = point(event);
      onGrip = target.closest("#divider") !== null;
      dragging = null;
    } else {
      dragging = "pinch";
    }
  });

  root.addEventListener("pointermove", (event) => {
    const before = down.get(event.pointerId);
    if (before === undefined) return;
    const now = point(event);
    if (dragging === null && distance(now, start) > CLICK) {
      const divider = viewer.comparing && (onGrip || viewer.zoom === 1);
      dragging = divider ? "divider" : "picture";
    }
    if (dragging === "pinch") pinch(event.pointerId, now);
    else if (dragging === "divider") viewer.moveSplitTo(now.x);
    else if (dragging === "picture") viewer.pan(now.x - before.x, now.y - before.y);
    down.set(event.pointerId, now);
  });

  /** @param {number} id @param {Point} now */
  function pinch(id, now) {
    const fingers = [...down.values()].slice(0, 2);
    const moved = [...down].slice(0, 2).map(([other, at]) => (other === id ? now : at));
    const [before, after] = [middle(fingers), middle(moved)];
    viewer.pan(after.x - before.x, after.y - before.y);
    const spread = distance(fingers[0], fingers[1]);
    if (spread > 0) viewer.zoomTo((viewer.zoom * distance(moved[0], moved[1])) / spread, after);
  }

  /** @param {PointerEvent} event */
  const up = (event) => {
    if (!down.delete(event.pointerId) || down.size > 0) return;
    if (dragging === null && event.type === "pointerup") click(event);
    dragging = null;
  };
  root.addEventListener("pointerup", up);
  root.addEventListener("pointercancel", up);

  /** @param {PointerEvent} event */
  function click(event) {
    const at = point(event);
    if (event.timeStamp - lastClick.time < DOUBLE && distance(at, lastClick) < 24) {
      if (viewer.zoom > 1) viewer.fit();
      else viewer.zoomTo(CLOSE_UP, at);
      lastClick.time = -Infinity;
    } else {
      lastClick = { time: event.timeStamp, ...at };
    }
  }

  root.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
      // A trackpad's pinch comes as a wheel with ctrl, in smaller steps.
      viewer.zoomTo(viewer.zoom * Math.exp((-event.deltaY * lines * (event.ctrlKey ? 4 : 1)) / 400), point(event));
    },
    { passive: false },
  );
}

/**
 * The keys of the comparison, wherever the focus is but in a field.
 *
 * @param {Viewer} viewer
 */
export function attachKeys(viewer) {
  /** @type {Record<string, () => void>} */
  const keys = {
    ArrowLeft: () => viewer.moveSplit(viewer.split - 2),
    ArrowRight: () => viewer.moveSplit(viewer.split + 2),
    PageDown: () => viewer.moveSplit(viewer.split - 10),
    PageUp: () => viewer.moveSplit(viewer.split + 10),
    Home: () => viewer.moveSplit(0),
    End: () => viewer.moveSplit(100),
    "+": () => viewer.zoomTo(viewer.zoom * KEY_ZOOM),
    "=": () => viewer.zoomTo(viewer.zoom * KEY_ZOOM), // + without shift on many keyboards
    "-": () => viewer.zoomTo(viewer.zoom / KEY_ZOOM),
    0: () => viewer.fit(),
  };
  /** @type {Record<string, () => void>} */
  const shifted = {
    ArrowLeft: () => viewer.pan(KEY_PAN, 0),
    ArrowRight: () => viewer.pan(-KEY_PAN, 0),
    ArrowUp: () => viewer.pan(0, KEY_PAN),
    ArrowDown: () => viewer.pan(0, -KEY_PAN),
  };
  document.addEventListener("keydown", (event) => {
    const target = /** @type {Element} */ (event.target);
    if (!viewer.comparing || event.ctrlKey || event.altKey || event.metaKey) return;
    if (target.closest("input, select, textarea") !== null) return;
    const act = (event.shiftKey ? shifted[event.key] : undefined) ?? keys[event.key];
    if (act === undefined) return;
    event.preventDefault();
    viewer.root.classList.remove("glide");
    act();
  });
}

/** @param {MouseEvent} event */
function point(event) {
  return { x: event.clientX, y: event.clientY };
}

/** @param {Point} a @param {Point} b */
function distance(a, b) {
  return Math.hypot(a.x - b.x, a.y - b.y);
}

/** @param {Point[]} fingers two */
function middle([a, b]) {
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
}
