// Draws the network: frames, edges, boxes with their colours and figures, and the whole beside it where it does not fit.

/** @import { GraphBox, GraphEdge, Palette, Window } from "./types" */

/** How strong the strongest colour is, so that ink stays readable on it: on a light page, on a dark one. */
const STRONGEST = { light: 0.75, dark: 0.5 };
/** How strong the weakest colour is, and up to which share there is none: two lanes that are equal are neither worse nor better. */
const [FEW, NONE] = [0.07, 0.002];
export const MAP = 74;

/**
 * @param {string} colour
 * @returns {number}
 */
function brightness(colour) {
  const hex = /^#(..)(..)(..)/.exec(colour);
  const parts = hex
    ? hex.slice(1).map((part) => Number.parseInt(part, 16))
    : (colour.match(/[\d.]+/g) ?? [255, 255, 255]).map(Number);
  return (0.3 * parts[0] + 0.59 * parts[1] + 0.11 * parts[2]) / 255;
}

/**
 * Colour and strength of a share.
 * @param {number} share
 * @param {Palette} colours
 * @returns {[string, number]}
 */
export function shade(share, colours) {
  const most = STRONGEST[brightness(colours.page) > 0.5 ? "light" : "dark"];
  if (Math.abs(share) < NONE) return [colours.page, 0];
  return [share < 0 ? colours.wide : colours.narrow, most * (FEW + (1 - FEW) * Math.abs(share))];
}

/**
 * Text cut in its middle where it is too long.
 * @param {CanvasRenderingContext2D} c
 * @param {string} text
 * @param {number} room
 */
function cut(c, text, room) {
  if (c.measureText(text).width <= room) return text;
  let keep = text.length;
  const shortened = () => `${text.slice(0, Math.ceil(keep / 2) - 1)}…${text.slice(text.length - Math.floor(keep / 2))}`;
  while (keep > 3 && c.measureText(shortened()).width > room) keep -= 1;
  return shortened();
}

/**
 * A line through an edge's points, bent where it changes its side.
 * @param {CanvasRenderingContext2D} c
 * @param {number[]} points
 */
function way(c, points) {
  c.moveTo(points[0], points[1]);
  for (let i = 2; i < points.length; i += 2) {
    const [x0, y0, x1, y1] = points.slice(i - 2, i + 2);
    if (Math.abs(x1 - x0) < 0.01) c.lineTo(x1, y1);
    else c.bezierCurveTo(x0, (y0 + y1) / 2, x1, (y0 + y1) / 2, x1, y1);
  }
}

/**
 * What is drawn, put together once and then drawn at every frame: texts cut to their boxes, edges as paths.
 * @typedef {{
 *   boxes: GraphBox[], edges: { path: Path2D, tips: Path2D, low: number, high: number, tensor: number, skip: boolean }[],
 *   shares: (number | null)[][], under: string[], titles: string[], size: [number, number],
 * }} Scene
 */

/**
 * @param {CanvasRenderingContext2D} c
 * @param {{ boxes: GraphBox[], edges: GraphEdge[], shares: (number | null)[][], texts: string[], size: [number, number] }} given
 * @returns {Scene}
 */
export function compose(c, given) {
  c.font = "12px system-ui, sans-serif";
  const under = given.boxes.map((box, i) => {
    const [text, room] = [given.texts[i] ?? "", box.place[2] - 18];
    // the figure comes first where there is no room for both
    const longer = `${box.nodes.length} operations: ${text}`;
    return box.block && c.measureText(longer).width <= room ? longer : cut(c, text, room);
  });
  c.font = "600 12px system-ui, sans-serif";
  const titles = given.boxes.map((box) => cut(c, box.title, box.place[2] - (box.block ? 34 : 18)));
  const edges = given.edges.map((edge) => {
    const path = new Path2D();
    way(/** @type {any} */ (path), edge.points);
    const tips = new Path2D();
    const [x, y] = edge.points.slice(-2);
    if (edge.arrow) {
      tips.moveTo(x - 4, y - 7);
      tips.lineTo(x, y - 1);
      tips.lineTo(x + 4, y - 7);
    }
    return { path, tips, low: edge.points[1], high: y, tensor: edge.tensor, skip: edge.skip };
  });
  return { boxes: given.boxes, edges, shares: given.shares, under, titles, size: given.size };
}

/**
 * @param {CanvasRenderingContext2D} c
 * @param {number} width
 * @param {number} height
 * @param {Palette} colours
 * @param {Scene} scene
 * @param {Window} at
 * @param {{ selected: number, hovered: number, found: Set<number> | null, focused: boolean }} marks
 */
export function paintScene(c, width, height, colours, scene, at, marks) {
  c.save();
  c.beginPath();
  c.rect(0, 0, width, height);
  c.clip();
  c.translate(at.x, at.y);
  c.scale(at.k, at.k);
  const [left, top, right, bottom] = [-at.x / at.k, -at.y / at.k, (width - at.x) / at.k, (height - at.y) / at.k];
  /** @param {GraphBox} box */
  const seen = ({ place: [x, y, w, h] }) => x < right && x + w > left && y < bottom && y + h > top;
  const readable = 12 * at.k >= 6;
  c.textBaseline = "middle";
  c.textAlign = "left";
  scene.boxes.forEach((box, i) => {
    if (box.opened && seen(box)) frame(c, box, scene.titles[i], colours, i === marks.selected, readable);
  });
  const chosen = new Set(marks.selected < 0 ? [] : scene.boxes[marks.selected].nodes);
  for (const strong of [false, true]) {
    c.strokeStyle = strong ? colours.wide : colours.muted;
    for (const edge of scene.edges) {
      if (edge.high < top || edge.low > bottom || (chosen.has(edge.tensor) && marks.selected >= 0) !== strong) continue;
      c.lineWidth = (strong ? 2.2 : edge.skip ? 1.6 : 1) / Math.max(Math.min(at.k, 1), 0.4);
      c.globalAlpha = strong ? 1 : 0.75;
      c.stroke(edge.path);
      if (readable) c.stroke(edge.tips);
    }
  }
  c.globalAlpha = 1;
  scene.boxes.forEach((box, i) => {
    if (box.opened || !seen(box)) return;
    c.globalAlpha = marks.found && !marks.found.has(i) ? 0.22 : 1;
    oneBox(c, scene, i, colours, readable);
    c.globalAlpha = 1;
    if (i === marks.selected || i === marks.hovered || marks.found?.has(i)) {
      const [x, y, w, h] = box.place;
      const out = i === marks.selected ? 3 : 1.5;
      c.strokeStyle = i === marks.selected ? colours.wide : marks.found?.has(i) ? colours.other : colours.ink;
      c.lineWidth = (i === marks.selected ? (marks.focused ? 3.5 : 2.5) : 1.6) / Math.max(Math.min(at.k, 1), 0.35);
      rounded(c, x - out, y - out, w + 2 * out, h + 2 * out, 6);
      c.stroke();
    }
  });
  c.restore();
}

/**
 * @param {CanvasRenderingContext2D} c
 * @param {number} x
 * @param {number} y
 * @param {number} w
 * @param {number} h
 * @param {number} r
 */
function rounded(c, x, y, w, h, r) {
  c.beginPath();
  c.roundRect(x, y, w, h, r);
}

/**
 * @param {CanvasRenderingContext2D} c
 * @param {GraphBox} box
 * @param {string} title
 * @param {Palette} colours
 * @param {boolean} selected
 * @param {boolean} readable
 */
function frame(c, box, title, colours, selected, readable) {
  const [x, y, w, h] = box.place;
  rounded(c, x, y, w, h, 8);
  c.globalAlpha = 0.05;
  c.fillStyle = colours.muted;
  c.fill();
  c.globalAlpha = 1;
  c.strokeStyle = selected ? colours.wide : colours.lines;
  c.lineWidth = selected ? 3 : 1.2;
  c.stroke();
  if (!readable) return;
  c.font = "600 12px system-ui, sans-serif";
  c.fillStyle = colours.muted;
  c.fillText(`▾ ${title}`, x + 9, y + 13);
}

/**
 * @param {CanvasRenderingContext2D} c
 * @param {Scene} scene
 * @param {number} i
 * @param {Palette} colours
 * @param {boolean} readable
 */
function oneBox(c, scene, i, colours, readable) {
  const box = scene.boxes[i];
  const [x, y, w, h] = box.place;
  const own = scene.shares[i] ?? [];
  if (box.block) {
    // several sheets, one behind the other
    rounded(c, x + 4, y + 4, w, h, 5);
    c.fillStyle = colours.page;
    c.fill();
    c.strokeStyle = colours.muted;
    c.lineWidth = 1;
    c.stroke();
  }
  rounded(c, x, y, w, h, 5);
  c.fillStyle = colours.page;
  c.fill();
  const alpha = c.globalAlpha;
  own.forEach((share, part) => {
    if (share === null) return;
    const [colour, strength] = shade(share, colours);
    c.fillStyle = colour;
    c.globalAlpha = alpha * strength;
    if (own.length === 1) rounded(c, x, y, w, h, 5);
    else {
      c.beginPath();
      c.roundRect(x + (part * w) / 2, y, w / 2, h, part ? [0, 5, 5, 0] : [5, 0, 0, 5]);
    }
    c.fill();
  });
  c.globalAlpha = alpha;
  rounded(c, x, y, w, h, 5);
  c.strokeStyle = colours.muted;
  c.lineWidth = 1;
  c.setLineDash(own.every((share) => share === null) ? [4, 3] : []);
  c.stroke();
  c.setLineDash([]);
  if (!readable) return;
  c.fillStyle = colours.ink;
  c.font = "600 12px system-ui, sans-serif";
  c.fillText(scene.titles[i], x + 9, y + 15);
  if (box.block) c.fillText("▸", x + w - 17, y + 15);
  c.font = "12px system-ui, sans-serif";
  c.fillText(scene.under[i], x + 9, y + 32);
}

/**
 * The whole picture, small, with the window on it; returns its place, null where everything is in view anyway.
 * @param {CanvasRenderingContext2D} c
 * @param {number} width
 * @param {number} height
 * @param {Palette} colours
 * @param {Scene} scene
 * @param {Window} at
 */
export function paintMap(c, width, height, colours, scene, at) {
  const [wide, tall] = scene.size;
  if (tall * at.k <= height + 1 && wide * at.k <= width + 1) return null;
  const k = Math.min((MAP - 14) / wide, (height - 16) / tall);
  const place = { x: width - MAP + (MAP - wide * k) / 2, y: (height - tall * k) / 2, k };
  c.save();
  c.fillStyle = colours.page;
  c.globalAlpha = 0.92;
  c.fillRect(width - MAP, 0, MAP, height);
  c.globalAlpha = 1;
  c.strokeStyle = colours.lines;
  c.beginPath();
  c.moveTo(width - MAP + 0.5, 0);
  c.lineTo(width - MAP + 0.5, height);
  c.stroke();
  scene.boxes.forEach((box, i) => {
    if (box.opened) return;
    const [x, y, w, h] = box.place;
    const least = Math.max(h * k, 1);
    const share = scene.shares[i]?.[0];
    const [colour, strength] = share == null ? [colours.muted, 0.3] : shade(share, colours);
    c.fillStyle = strength ? colour : colours.muted;
    c.globalAlpha = Math.min(strength + 0.12, 1);
    c.fillRect(place.x + x * k, place.y + y * k, Math.max(w * k, 2), least);
  });
  c.globalAlpha = 1;
  const [from, to] = [(-at.y / at.k) * k, ((height - at.y) / at.k) * k];
  const [first, last] = [Math.max(from, -4), Math.min(to, tall * k + 4)];
  c.strokeStyle = colours.ink;
  c.lineWidth = 1.5;
  c.strokeRect(width - MAP + 4, place.y + first, MAP - 8, Math.max(last - first, 4));
  c.restore();
  return place;
}
