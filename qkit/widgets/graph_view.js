// The network's picture seen through a window that moves and zooms: where boxes are, and which one is meant.

/** @import { GraphBox, Window } from "./types" */

export const [NEAREST, FARTHEST] = [2.5, 0.06];

/**
 * Moves the window so that what is at (x, y) on the screen stays there.
 * @param {Window} at
 * @param {number} factor
 * @param {number} x
 * @param {number} y
 */
export function zoomed(at, factor, x, y) {
  const k = Math.min(Math.max(at.k * factor, FARTHEST), NEAREST);
  return { k, x: x - ((x - at.x) * k) / at.k, y: y - ((y - at.y) * k) / at.k };
}

/**
 * The window that shows the whole picture; one that is far taller than the window begins at its top, large enough to read.
 * @param {[number, number]} size
 * @param {number} width
 * @param {number} height
 * @param {boolean} whole
 */
export function fitted([wide, tall], width, height, whole) {
  const margin = 14;
  const across = (width - 2 * margin) / Math.max(wide, 1);
  const down = (height - 2 * margin) / Math.max(tall, 1);
  const all = Math.min(across, down, 1.2);
  const k = whole ? Math.max(all, FARTHEST) : Math.max(all, Math.min(across, 0.85), 0.3);
  const y = tall * k < height ? (height - tall * k) / 2 : margin;
  return { k, x: (width - wide * k) / 2, y };
}

/**
 * The box under a point of the picture, inner ones before their frames; of a frame only its head counts.
 * @param {GraphBox[]} boxes
 * @param {number} x
 * @param {number} y
 */
export function boxAt(boxes, x, y) {
  for (let i = boxes.length - 1; i >= 0; i -= 1) {
    const [left, top, width, height] = boxes[i].place;
    if (x >= left && x <= left + width && y >= top && y <= top + (boxes[i].opened ? 22 : height)) return i;
  }
  return -1;
}

/** @param {GraphBox} box */
export const middle = (box) => [box.place[0] + box.place[2] / 2, box.place[1] + box.place[3] / 2];

/**
 * The box that an arrow key leads to: along edges up and down, to the next box beside it left and right.
 * @param {GraphBox[]} boxes
 * @param {number} from
 * @param {string} key
 */
export function neighbour(boxes, from, key) {
  if (from < 0) return boxes.findIndex((box) => !box.opened);
  const [x, y] = middle(boxes[from]);
  /** @type {number[]} */
  let among;
  if (boxes[from].opened) {
    // out of a frame's head: to its first box, or to what is before it
    const own = new Set(boxes[from].nodes);
    const inner = boxes.flatMap((box, i) => (!box.opened && own.has(box.nodes[0]) ? [i] : []));
    if (key === "ArrowDown") return inner[0] ?? from;
    among = boxes.flatMap((box, i) => (!box.opened && box.after.some((j) => inner.includes(j)) && !inner.includes(i) ? [i] : []));
  } else if (key === "ArrowDown") among = boxes[from].after;
  else if (key === "ArrowUp") among = boxes.flatMap((box, i) => (box.after.includes(from) ? [i] : []));
  else {
    const sign = key === "ArrowLeft" ? -1 : 1;
    const tall = boxes[from].place[3];
    among = boxes.flatMap((box, i) => {
      const [u, v] = middle(box);
      return !box.opened && sign * (u - x) > 1 && Math.abs(v - y) < 1.5 * tall ? [i] : [];
    });
  }
  const upright = key === "ArrowDown" || key === "ArrowUp";
  /** @param {number} i */
  const far = (i) => {
    const [u, v] = middle(boxes[i]);
    return upright ? Math.abs(v - y) + Math.abs(u - x) / 4 : Math.abs(u - x) + 2 * Math.abs(v - y);
  };
  return among.reduce((best, i) => (best < 0 || far(i) < far(best) ? i : best), -1);
}

/**
 * Numbers of the boxes that hold an operation whose name or kind has all words.
 * @param {GraphBox[]} boxes
 * @param {[string, string, string][]} nodes
 * @param {string} text
 */
export function found(boxes, nodes, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return { boxes: new Set(), nodes: /** @type {number[]} */ ([]) };
  const hits = nodes.flatMap(([name, kind], i) => {
    const whole = `${name} ${kind}`.toLowerCase();
    return words.every((word) => whole.includes(word)) ? [i] : [];
  });
  const of = new Set(hits);
  const holding = boxes.flatMap((box, i) => (!box.opened && box.nodes.some((node) => of.has(node)) ? [i] : []));
  return { boxes: new Set(holding), nodes: hits };
}
