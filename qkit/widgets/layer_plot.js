// Layers along the network's depth: lines for figures, bars for what each costs, names below.
import { contextOf, decades, guarded, label, make, numeric, surface, ticks } from "./common.js";

/** @import { Chart, LayerTable, Line, Model, Palette, Row } from "./types" */

const [LEFT, RIGHT, TOP] = [64, 14, 12];
/** From the top: lines, a gap, bars, names. Where there are no bars, the lines have their room too. */
const [LINES, GAP, BARS, NAMES] = [180, 16, 78, 126];
const HEIGHT = TOP + LINES + GAP + BARS + NAMES;
/** Least distance between two names, the room of one, layers with the longest bars that are always named. */
const [APART, ROOM, NAMED] = [13, NAMES - 9, 3];
/** @type {Record<Line["shape"], (c: CanvasRenderingContext2D, x: number, y: number) => void>} */
const SHAPES = {
  circle: (c, x, y) => c.arc(x, y, 3, 0, 7),
  triangle: (c, x, y) => corners(c, [x, y - 4], [x + 4, y + 3], [x - 4, y + 3]),
  square: (c, x, y) => c.rect(x - 3, y - 3, 6, 6),
  diamond: (c, x, y) => corners(c, [x, y - 4], [x + 4, y], [x, y + 4], [x - 4, y]),
};

/**
 * @param {CanvasRenderingContext2D} c
 * @param {...[number, number]} points
 */
function corners(c, ...points) {
  for (const [x, y] of points) c.lineTo(x, y);
  c.closePath();
}

/**
 * A row's figure in a column.
 * @param {Row} row
 * @param {number} column
 */
export function figure(row, column) {
  return numeric(row.values[column]);
}

/**
 * Where a figure stands on the axis of a chart.
 * @param {Row[]} rows
 * @param {Line[]} lines
 * @param {boolean} log
 * @param {number} bottom
 */
function axis(rows, lines, log, bottom) {
  let [least, most] = [Infinity, -Infinity];
  for (const row of rows)
    for (const line of lines) {
      const v = figure(row, line.column);
      if (Number.isFinite(v) && (!log || v > 0)) [least, most] = [Math.min(least, v), Math.max(most, v)];
    }
  if (!(most >= least)) [least, most] = log ? [0.1, 1] : [0, 1];
  if (log) [least, most] = [least / 1.5, most * 1.5];
  else {
    least = Math.min(least, 0);
    most += (most - least) * 0.08 || 1;
  }
  const span = log ? Math.log(most / least) : most - least;
  /** @param {number} v */
  const y = (v) => {
    if (v === Infinity) return TOP;
    const share = log ? Math.log(Math.max(v, least) / least) / span : (Math.max(v, least) - least) / span;
    return bottom - share * (bottom - TOP);
  };
  return { least, most, y };
}

/**
 * A name with its end kept, which tells layers apart: parts of its path go first.
 * @param {CanvasRenderingContext2D} c
 * @param {string} name
 */
function short(c, name) {
  let kept = name;
  while (c.measureText(kept).width > ROOM) {
    const dot = kept.indexOf(".");
    kept = `…${kept.slice(dot < 0 ? 2 : dot + 1)}`;
  }
  return kept;
}

/**
 * Draws a line with its marks; true if a figure of it is infinite.
 * @param {CanvasRenderingContext2D} c
 * @param {Palette} colours
 * @param {Line} line
 * @param {Row[]} rows
 * @param {(i: number) => number} x
 * @param {(v: number) => number} y
 * @param {Set<number>} bright
 */
function trace(c, colours, line, rows, x, y, bright) {
  let endless = false;
  c.strokeStyle = c.fillStyle = colours[line.role];
  c.lineWidth = line.dash ? 1 : 1.7;
  c.setLineDash(line.dash ? [5, 3] : []);
  c.beginPath();
  let pen = false;
  rows.forEach((row, i) => {
    const v = figure(row, line.column);
    if (Number.isNaN(v)) return;
    endless ||= v === Infinity;
    if (pen) c.lineTo(x(i), y(v));
    else c.moveTo(x(i), y(v));
    pen = true;
  });
  c.stroke();
  c.setLineDash([]);
  c.lineWidth = 1;
  rows.forEach((row, i) => {
    const v = figure(row, line.column);
    if (Number.isNaN(v)) return;
    c.globalAlpha = bright.has(i) ? 1 : 0.2;
    c.beginPath();
    SHAPES[line.shape](c, x(i), y(v));
    if (line.dash) {
      c.fillStyle = colours.page;
      c.fill();
      c.stroke();
      c.fillStyle = colours[line.role];
    } else c.fill();
  });
  c.globalAlpha = 1;
  return endless;
}

/**
 * The key of a line: its colour, mark and words.
 * @param {Line} line
 * @param {Palette} colours
 */
function key(line, colours) {
  const small = make("canvas", { ".width": 26, ".height": 12 });
  const k = contextOf(small);
  k.strokeStyle = k.fillStyle = colours[line.role];
  k.setLineDash(line.dash ? [5, 3] : []);
  k.beginPath();
  k.moveTo(0, 6);
  k.lineTo(26, 6);
  k.stroke();
  k.setLineDash([]);
  k.beginPath();
  SHAPES[line.shape](k, 13, 6);
  if (line.dash) k.fillStyle = colours.page;
  k.fill();
  k.stroke();
  return make("span", {}, small, ` ${line.label}`);
}

/**
 * The chart with its key; `bright` are the rows that are not filtered away, `choose` takes the name of the one clicked.
 * @param {Element} el
 * @param {Model<LayerTable>} model
 * @param {Element} plot
 * @param {Element} legend
 * @param {() => number[]} bright
 * @param {(name: string) => void} choose
 */
export function layerPlot(el, model, plot, legend, bright, choose) {
  /** The chosen chart; there is none before there are figures. @returns {Chart | undefined} */
  const drawing = () => model.get("charts").at(model.get("chart"));
  /** Its lines, without those that are folded away. @param {Chart} at */
  const lines = (at) => at.lines.filter((line) => model.get("unfolded") || !model.get("columns")[line.column].fold);
  const barred = () => model.get("bars") >= 0;
  const tip = make("div", { class: "qkit-tip", ".hidden": true });
  plot.append(tip);
  let hovered = -1;

  /** @type {Parameters<typeof surface>[3]} */
  const draw = (c, width, _, colours) => {
    const at = drawing();
    if (!at) {
      c.fillStyle = colours.muted;
      c.textAlign = "center";
      c.fillText("no figures yet", width / 2, HEIGHT / 2);
      return;
    }
    const all = model.get("rows");
    const step = (width - LEFT - RIGHT) / Math.max(all.length, 1);
    /** @param {number} i */
    const x = (i) => LEFT + (i + 0.5) * step;
    const base = HEIGHT - NAMES;
    const bottom = barred() ? base - BARS - GAP : base;
    const { least, most, y } = axis(all, lines(at), at.log, bottom);
    c.textAlign = "right";
    c.textBaseline = "middle";
    for (const tick of at.log ? decades(least, most) : ticks(least, most, 5)) {
      c.strokeStyle = colours.lines;
      c.strokeRect(LEFT, Math.round(y(tick)) + 0.5, width - LEFT - RIGHT, 0);
      c.fillStyle = colours.ink;
      c.fillText(label(tick), LEFT - 6, y(tick));
    }
    const selected = all.findIndex((row) => row.name === model.get("selected"));
    for (const [i, alpha] of [
      [selected, 0.35],
      [hovered, 0.18],
    ]) {
      if (i < 0) continue;
      c.globalAlpha = alpha;
      c.fillStyle = colours.muted;
      const wide = Math.max(step, 3);
      c.fillRect(x(i) - wide / 2, TOP, wide, base - TOP);
      c.globalAlpha = 1;
    }
    const shown = new Set(bright());
    let endless = false;
    for (const line of lines(at)) endless = trace(c, colours, line, all, x, y, shown) || endless;
    c.strokeStyle = colours.muted;
    c.strokeRect(LEFT, bottom + 0.5, width - LEFT - RIGHT, 0);

    const costs = all.map((row) => (barred() ? Math.max(figure(row, model.get("bars")), 0) || 0 : 0));
    const top = Math.max(...costs, 0);
    if (barred()) {
      c.fillStyle = colours.bad;
      costs.forEach((cost, i) => {
        const tall = top > 0 ? (cost / top) * BARS : 0;
        c.globalAlpha = shown.has(i) ? 1 : 0.2;
        if (tall > 0.2) c.fillRect(x(i) - Math.max(0.38 * step, 1), base - tall, Math.max(0.76 * step, 2), tall);
      });
      c.globalAlpha = 1;
      c.strokeRect(LEFT, base + 0.5, width - LEFT - RIGHT, 0);
      c.fillStyle = colours.ink;
      c.textAlign = "right";
      if (top > 0) c.fillText(label(Number(top.toPrecision(2))), LEFT - 6, base - BARS + 2);
      c.fillText("0", LEFT - 6, base - 2);
    }

    // names: of what is chosen, of what costs most, and of as many others as there is room for
    const first = [...costs.keys()].filter((i) => costs[i] > 0).sort((a, b) => costs[b] - costs[a]);
    const bold = new Set([selected, ...first.slice(0, NAMED)].filter((i) => i >= 0));
    /** @type {number[]} */
    const named = [];
    const every = Math.max(1, Math.ceil(APART / step));
    for (const i of [...bold, ...[...all.keys()].filter((k) => k % every === 0)])
      if (named.every((k) => Math.abs(k - i) * step >= APART - 0.5)) named.push(i);
    c.textAlign = "right";
    c.textBaseline = "middle";
    for (const i of named) {
      c.save();
      c.translate(x(i), base + 5);
      c.rotate(-Math.PI / 2);
      c.font = `${bold.has(i) ? "600 " : ""}11px system-ui, sans-serif`;
      c.fillStyle = bold.has(i) ? colours.ink : colours.muted;
      c.fillText(short(c, all[i].name), 0, 0);
      c.restore();
    }
    for (const [text, middle] of [
      [at.unit, (TOP + bottom) / 2],
      [barred() ? model.get("bars_unit") : "", base - BARS / 2],
    ]) {
      c.save();
      c.translate(11, Number(middle));
      c.rotate(-Math.PI / 2);
      c.fillStyle = colours.ink;
      c.textAlign = "center";
      c.textBaseline = "top";
      c.fillText(String(text), 0, -6);
      c.restore();
    }
    const words = [`${model.get("noun")}s in the order of execution`, ...(endless ? ["at the top edge: no error"] : [])];
    legend.replaceChildren(
      ...lines(at).map((line) => key(line, colours)),
      make("span", { class: "qkit-note" }, words.join("; ")),
    );
  };
  const board = surface(el, plot, HEIGHT, draw);
  board.canvas.setAttribute("aria-label", "figures of every layer along the network's depth; the table below has the numbers");

  /** @param {MouseEvent} event */
  const near = (event) => {
    const box = board.canvas.getBoundingClientRect();
    const total = model.get("rows").length;
    const i = Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT)) * total);
    return i >= 0 && i < total ? i : -1;
  };
  const point = guarded(el, (/** @type {PointerEvent} */ event) => {
    hovered = near(event);
    const at = drawing();
    tip.hidden = !at || hovered < 0;
    if (at && hovered >= 0) {
      const row = model.get("rows")[hovered];
      const said = lines(at).map((line) => `${line.label}: ${row.texts[line.column]}`);
      if (barred()) said.push(`${model.get("columns")[model.get("bars")].head}: ${row.texts[model.get("bars")]}`);
      tip.textContent = [row.name, ...said].join("\n");
      const box = plot.getBoundingClientRect();
      const left = event.clientX - box.left;
      tip.style.top = `${event.clientY - box.top + 12}px`;
      tip.style.left = left > box.width / 2 ? "" : `${left + 12}px`;
      tip.style.right = left > box.width / 2 ? `${box.width - left + 12}px` : "";
    }
    board.redraw();
  });
  board.canvas.addEventListener("pointermove", point);
  board.canvas.addEventListener("pointerleave", () => {
    hovered = -1;
    tip.hidden = true;
    board.redraw();
  });
  board.canvas.addEventListener("click", (event) => {
    const i = near(event);
    if (i >= 0) choose(model.get("rows")[i].name);
  });
  return board;
}
