// The range tuner's plot: histogram, integer grid, ranges of the methods, and two handles.
import { contextOf, decades, floats, follow, guarded, label, make, sender, surface, ticks } from "./common.js";

/** @import { Draw, End, Figures, Gesture, Model, Reply, Tuner } from "./types" */

const [PLOT_LEFT, PLOT_RIGHT, PLOT_BOTTOM] = [58, 14, 52];
const ROW = 13;
/** @type {readonly End[]} */
const ENDS = ["lo", "hi"];
/** @type {Record<string, number>} */
const KEY_STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };

/**
 * The plot, drawn into `host`.
 * @param {HTMLElement} el Where errors show, and where "qkit-painted" is dispatched.
 * @param {HTMLElement} host
 * @param {Model<Tuner>} model
 * @param {number} height
 * @param {(message: Figures) => void} listed Is handed the figures while a handle moves.
 */
export function rangePlot(el, host, model, height, listed) {
  const plot = make("div", { class: "qkit-plot" });
  host.append(plot);

  /** Where a handle is held, ahead of the kernel. @type {{ end: End, value: number } | null} */
  let drag = null;
  /** The kernel's last answer while a handle is held. @type {Figures | null} */
  let live = null;
  /** When the handle was where a message says that it is. @type {Map<number, number>} */
  const moved = new Map();
  const outbox = sender(model, (seq) => moved.set(seq, performance.now()));

  const grid = () => (live ? live.grid : model.get("grid_drawn"));
  const view = () => model.get("view");
  const top = () => 8 + ROW * Math.max(1, model.get("mark_rows"));
  /**
   * @param {number} value
   * @param {number} width
   */
  const x = (value, width) => {
    const [lo, hi] = view();
    return PLOT_LEFT + ((value - lo) / (hi - lo)) * (width - PLOT_LEFT - PLOT_RIGHT);
  };
  /**
   * @param {number} pixel
   * @param {number} width
   */
  const value = (pixel, width) => {
    const [lo, hi] = view();
    return lo + ((pixel - PLOT_LEFT) / (width - PLOT_LEFT - PLOT_RIGHT)) * (hi - lo);
  };
  /** @param {End} end */
  const held = (end) => (drag && drag.end === end ? drag.value : grid()[end]);

  /** @type {Draw} */
  const drawBars = (c, width, bottom, colours) => {
    const counts = floats(model.get("counts"));
    const peak = counts.reduce((a, b) => Math.max(a, b), 1);
    const log = model.get("logarithmic");
    const height = bottom - top();
    /** @param {number} n */
    const share = (n) => (log ? Math.log10(Math.max(n, 0.5) / 0.5) / Math.log10((peak * 2) / 0.5) : n / (peak * 1.05));
    /** @param {number} n */
    const y = (n) => bottom - share(n) * height;
    c.textAlign = "right";
    c.textBaseline = "middle";
    for (const n of log ? decades(1, peak * 2) : ticks(0, peak, 4)) {
      c.strokeStyle = colours.lines;
      c.beginPath();
      c.moveTo(PLOT_LEFT, y(n));
      c.lineTo(width - PLOT_RIGHT, y(n));
      c.stroke();
      c.fillStyle = colours.ink;
      c.fillText(label(n), PLOT_LEFT - 6, y(n));
    }
    c.fillStyle = colours.wide;
    c.globalAlpha = 0.62;
    const bar = (width - PLOT_LEFT - PLOT_RIGHT) / counts.length;
    counts.forEach((n, i) => {
      if (n > 0) c.fillRect(PLOT_LEFT + i * bar, y(n), Math.max(bar, 1), bottom - y(n));
    });
    c.globalAlpha = 1;
  };

  /** @type {Draw} */
  const drawClipped = (c, width, bottom, colours) => {
    const { lo, hi, scale } = grid();
    c.fillStyle = colours.bad;
    c.globalAlpha = 0.14;
    const [left, right] = [x(lo - scale / 2, width), x(hi + scale / 2, width)];
    if (left > PLOT_LEFT) c.fillRect(PLOT_LEFT, top(), Math.min(left, width - PLOT_RIGHT) - PLOT_LEFT, bottom - top());
    if (right < width - PLOT_RIGHT)
      c.fillRect(Math.max(right, PLOT_LEFT), top(), width - PLOT_RIGHT - Math.max(right, PLOT_LEFT), bottom - top());
    c.globalAlpha = 1;
  };

  /** @type {Draw} */
  const drawGrid = (c, width, bottom, colours) => {
    const { lo, hi, scale, codes } = grid();
    /** @param {number} p */
    const clamp = (p) => Math.min(Math.max(p, PLOT_LEFT), width - PLOT_RIGHT);
    c.strokeStyle = c.fillStyle = colours.narrow;
    c.fillRect(clamp(x(lo, width)), bottom + 1, Math.max(clamp(x(hi, width)) - clamp(x(lo, width)), 1), 2);
    const step = (scale / (view()[1] - view()[0])) * (width - PLOT_LEFT - PLOT_RIGHT);
    const every = step > 0 ? 2 ** Math.max(0, Math.ceil(Math.log2(4 / step))) : 1;
    c.beginPath();
    if (every < codes) {
      const first = Math.ceil(Math.max(lo, view()[0]) / (scale * every) - 1e-9);
      const last = Math.floor(Math.min(hi, view()[1]) / (scale * every) + 1e-9);
      for (let k = first; k <= last; k += 1) {
        const at = Math.round(x(k * every * scale, width)) + 0.5;
        c.moveTo(at, bottom + 3);
        c.lineTo(at, bottom + 10);
      }
    }
    c.stroke();
    c.fillStyle = colours.narrow;
    c.textAlign = "right";
    c.textBaseline = "top";
    c.fillText(
      every === 1 ? "grid" : `grid /${every < 1024 ? every : `${Math.round(every / 1024)}k`}`,
      PLOT_LEFT - 6,
      bottom + 1,
    );
  };

  /** @type {Draw} */
  const drawMarks = (c, width, bottom, colours) => {
    c.textBaseline = "alphabetic";
    for (const mark of model.get("marks")) {
      const y = 6 + ROW * (mark.row + 1) - 4;
      c.strokeStyle = c.fillStyle = colours.mark;
      for (const end of [mark.lo, mark.hi]) {
        const at = x(end, width);
        if (at < PLOT_LEFT - 1 || at > width - PLOT_RIGHT + 1) continue;
        c.beginPath();
        c.setLineDash([2, 3]);
        c.moveTo(at, y);
        c.lineTo(at, bottom);
        c.stroke();
        c.setLineDash([]);
        c.beginPath();
        c.arc(at, y - 1, 2.5, 0, 7);
        c.fill();
      }
      const at = Math.min(Math.max(x(mark.hi, width), PLOT_LEFT), width - PLOT_RIGHT);
      const wide = c.measureText(mark.label).width;
      c.textAlign = at - wide - 8 > PLOT_LEFT ? "right" : "left";
      c.fillText(mark.label, c.textAlign === "right" ? at - 6 : at + 6, y + 3);
    }
  };

  /** @type {Draw} */
  const drawGhost = (c, width, bottom, colours) => {
    // while a handle moves, the range that it leaves
    const ghost = drag || live ? model.get("grid_drawn") : model.get("ghost");
    if (ghost.lo === undefined) return;
    c.strokeStyle = colours.other;
    c.lineWidth = 1.5;
    c.setLineDash([6, 4]);
    for (const end of [ghost.lo, ghost.hi]) {
      const at = x(end, width);
      if (at < PLOT_LEFT - 1 || at > width - PLOT_RIGHT + 1) continue;
      c.beginPath();
      c.moveTo(at, top());
      c.lineTo(at, bottom);
      c.stroke();
    }
    c.setLineDash([]);
    c.fillStyle = colours.other;
    c.textBaseline = "top";
    const right = Math.min(x(ghost.hi, width), width - PLOT_RIGHT);
    c.textAlign = right + 50 < width - PLOT_RIGHT ? "left" : "right";
    if (right > PLOT_LEFT + 50) c.fillText("before", c.textAlign === "left" ? right + 4 : right - 4, top() + 3);
    c.lineWidth = 1;
  };

  // what a drag leaves alone is drawn once, and copied from then on
  const still = document.createElement("canvas");
  let drawn = "";
  /** @type {Draw} */
  const drawStill = (c, width, height, colours) => {
    const bottom = height - PLOT_BOTTOM;
    drawBars(c, width, bottom, colours);
    drawMarks(c, width, bottom, colours);
    c.strokeStyle = colours.muted;
    c.strokeRect(PLOT_LEFT, bottom + 0.5, width - PLOT_LEFT - PLOT_RIGHT, 0);
    c.fillStyle = colours.ink;
    c.textAlign = "center";
    c.textBaseline = "top";
    for (const tick of ticks(...view(), Math.max(3, Math.floor(width / 110))))
      c.fillText(label(tick), x(tick, width), bottom + 13);
    c.fillText(model.get("axis"), (PLOT_LEFT + width - PLOT_RIGHT) / 2, bottom + 31);
    c.translate(11, (top() + bottom) / 2);
    c.rotate(-Math.PI / 2);
    c.fillText(model.get("logarithmic") ? "elements (log)" : "elements", 0, -6);
  };
  const board = surface(el, plot, height, (c, width, height, colours) => {
    const key = JSON.stringify([c.canvas.width, c.canvas.height, colours]);
    if (key !== drawn) {
      [still.width, still.height] = [c.canvas.width, c.canvas.height];
      const context = contextOf(still);
      context.setTransform(c.getTransform());
      context.font = c.font;
      drawStill(context, width, height, colours);
      drawn = key;
    }
    c.drawImage(still, 0, 0, width, height);
    drawClipped(c, width, height - PLOT_BOTTOM, colours);
    drawGhost(c, width, height - PLOT_BOTTOM, colours);
    drawGrid(c, width, height - PLOT_BOTTOM, colours);
    for (const end of ENDS) place(end, width, height - PLOT_BOTTOM);
  });
  const redrawn = () => {
    drawn = "";
    board.redraw();
  };

  /**
   * @param {End} end
   * @param {number} width
   * @param {number} bottom
   */
  const place = (end, width, bottom) => {
    const node = handles[end];
    const at = held(end);
    const [lo, hi] = view();
    node.style.left = `${Math.min(Math.max(x(at, width), PLOT_LEFT), width - PLOT_RIGHT)}px`;
    node.style.top = `${top()}px`;
    node.style.height = `${bottom - top()}px`;
    node.style.opacity = at < lo - 1e-9 * (hi - lo) || at > hi + 1e-9 * (hi - lo) ? "0.35" : "1";
    node.setAttribute("aria-valuenow", `${at}`);
    node.setAttribute("aria-valuetext", label(+at.toPrecision(4)));
  };

  /**
   * @param {End} end
   * @param {number} to
   * @param {Gesture["event"]} event
   */
  const move = (end, to, event) => {
    const bounded = end === "lo" ? Math.min(to, 0) : Math.max(to, 0);
    drag = { end, value: bounded };
    outbox.send({ event, end, value: bounded });
    board.redraw();
  };

  /** @param {End} end */
  const handle = (end) => {
    const name = end === "lo" ? "lower end of the range" : "upper end of the range";
    const node = make("div", { class: "qkit-handle", role: "slider", tabindex: "0", "aria-label": name, "data-end": end });
    plot.append(node);
    /** @param {PointerEvent} event */
    const at = (event) => value(event.clientX - plot.getBoundingClientRect().left, board.canvas.clientWidth);
    node.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      node.setPointerCapture(event.pointerId);
      node.focus();
      drag = { end, value: grid()[end] };
      event.preventDefault();
    });
    node.addEventListener(
      "pointermove",
      guarded(el, (event) => {
        if (!node.hasPointerCapture(event.pointerId) || !drag) return;
        const [lo, hi] = view();
        move(end, Math.min(Math.max(at(event), lo), hi), "drag");
      }),
    );
    const let_go = guarded(el, (/** @type {PointerEvent} */ event) => {
      if (!drag) return;
      if (node.hasPointerCapture(event.pointerId)) node.releasePointerCapture(event.pointerId);
      move(end, drag.value, "release");
    });
    node.addEventListener("pointerup", let_go);
    node.addEventListener("pointercancel", let_go);
    node.addEventListener(
      "keydown",
      guarded(el, (event) => {
        const [least, most] = model.get("extremes");
        /** @type {Record<string, number>} */
        const ends = { Home: end === "lo" ? least : 0, End: end === "lo" ? 0 : most };
        const stride = model.get("stride") * (event.shiftKey ? 10 : 1);
        const steps = KEY_STEPS[event.key];
        const to = steps === undefined ? ends[event.key] : held(end) + steps * stride;
        if (to === undefined) return;
        event.preventDefault();
        event.stopPropagation();
        move(end, to, "drag");
      }),
    );
    node.addEventListener("keyup", (event) => {
      if (drag && !event.key.startsWith("Shift")) move(end, drag.value, "release");
    });
    node.addEventListener("blur", () => {
      if (drag) move(end, drag.value, "release");
    });
    return node;
  };
  const handles = { lo: handle("lo"), hi: handle("hi") };

  const answered = guarded(el, (/** @type {Reply} */ message) => {
    if (message.event === "refused") {
      if (outbox.answer(message.seq)) drag = live = null;
      board.redraw();
    }
    if (message.event !== "figures") return;
    const settled = outbox.answer(message.seq);
    live = message;
    // the traits follow; until then the answer is what is drawn
    if (settled && message.released) drag = null;
    listed(message);
    board.redraw();
    const detail = { moved: moved.get(message.seq), released: message.released };
    for (const seq of moved.keys()) if (seq <= message.seq) moved.delete(seq);
    requestAnimationFrame(() => el.dispatchEvent(new CustomEvent("qkit-painted", { bubbles: true, detail })));
  });
  model.on("msg:custom", answered);
  const unfollow = follow(model, ["counts", "view", "logarithmic", "marks", "mark_rows", "axis"], redrawn);
  const ungrid = follow(model, ["grid_drawn", "ghost"], () => {
    if (!drag) live = null;
    board.redraw();
  });
  const name = () => board.canvas.setAttribute("aria-label", `histogram of ${model.get("axis")} with the range of its grid`);
  const unname = follow(model, ["axis"], name);
  name();
  const destroy = () => {
    model.off("msg:custom", answered);
    unfollow();
    ungrid();
    unname();
    board.destroy();
  };
  /** @param {number} tall */
  const resize = (tall) => {
    board.canvas.style.height = `${tall}px`;
    board.redraw();
  };
  return { resize, destroy };
}
