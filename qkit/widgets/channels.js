// All channels' ranges side by side: click or arrow keys pick one.
import { decades, floats, guarded, label, make, surface, ticks } from "./common.js";

/** @import { Channels } from "./types" */

const [LEFT, RIGHT, TOP] = [58, 14, 8];
/** @type {Record<string, number>} */
const CHANNEL_STEPS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 };

/**
 * The strip, drawn into `host`.
 * @param {HTMLElement} el Where errors show.
 * @param {HTMLElement} host
 * @param {number} height
 * @param {Channels} source What it shows, and what is told of a choice.
 */
export function channelPlot(el, host, height, source) {
  const small = height < 120;
  const bottomSpace = small ? 20 : 36;
  const tools = make("div", { class: "qkit-tools" });
  tools.style.marginLeft = `${LEFT}px`;
  const scale = make("button", { type: "button" });
  const said = make("span", { class: "qkit-note", "aria-live": "polite" });
  tools.append(scale, said);
  const plot = make("div", { class: "qkit-plot", role: "listbox", tabindex: "0", "aria-label": "channels" });
  host.append(tools, plot);

  /** By channel its least and greatest value, its grid's ends and step, and the magnitudes of these. */
  const parts = () => {
    const all = floats(source.ranges());
    const count = all.length / 5;
    return Array.from({ length: count }, (_, i) => {
      const [low, high, lo, hi, step] = [0, 1, 2, 3, 4].map((row) => all[row * count + i]);
      return { low, high, lo, hi, step, peak: Math.max(Math.abs(low), Math.abs(high)), end: Math.max(hi, -lo) };
    });
  };

  const board = surface(el, plot, height, (c, width, tall, colours) => {
    const all = parts();
    const log = source.log();
    const bottom = tall - bottomSpace;
    const wide = (width - LEFT - RIGHT) / Math.max(all.length, 1);
    let [least, most] = [Infinity, -Infinity];
    for (const p of all) {
      const values = log ? [p.peak, p.end, p.step].filter((v) => v > 0) : [p.low, p.high, p.lo, p.hi];
      for (const v of values) [least, most] = [Math.min(least, v), Math.max(most, v)];
    }
    if (!(most > -Infinity)) [least, most] = log ? [0.1, 1] : [0, 1];
    if (log) [least, most] = [least / 1.6, most * 1.6];
    else [least, most] = [Math.min(least, 0), Math.max(most, 0) || 1];
    /** @param {number} v */
    const y = (v) =>
      log
        ? bottom - (Math.log(Math.max(v, least) / least) / Math.log(most / least)) * (bottom - TOP)
        : bottom - ((v - least) / (most - least)) * (bottom - TOP);
    c.textAlign = "right";
    c.textBaseline = "middle";
    const lines = log ? decades(least, most) : ticks(least, most, small ? 2 : 4);
    for (const tick of lines.filter((_, i) => !small || i % Math.ceil(lines.length / 3) === 0)) {
      c.strokeStyle = colours.lines;
      c.strokeRect(LEFT, Math.round(y(tick)) + 0.5, width - LEFT - RIGHT, 0);
      c.fillStyle = colours.ink;
      c.fillText(label(tick), LEFT - 6, y(tick));
    }
    const chosen = source.selected();
    c.fillStyle = colours.muted;
    c.globalAlpha = 0.3;
    c.fillRect(LEFT + chosen * wide - 1, TOP, Math.max(wide, 3) + 2, bottom - TOP);
    c.globalAlpha = 1;
    const thick = Math.max(wide * 0.6, 1);
    for (const [i, p] of all.entries()) {
      const left = LEFT + (i + 0.5) * wide - thick / 2;
      c.fillStyle = colours.wide;
      if (log) c.fillRect(left, y(p.peak), thick, bottom - y(p.peak));
      else c.fillRect(left, y(p.high), thick, Math.max(y(p.low) - y(p.high), 1));
      c.fillStyle = colours.narrow;
      const ends = p.step > 0 ? (log ? [p.end, p.step] : [p.lo, p.hi]) : [];
      for (const v of ends) c.fillRect(LEFT + i * wide, y(v) - 1, Math.max(wide, 1), 2);
    }
    const worst = source.worst();
    if (worst !== null && worst < all.length) {
      // a triangle over the channel whose output suffers most
      const at = LEFT + (worst + 0.5) * wide;
      c.fillStyle = colours.bad;
      c.beginPath();
      c.moveTo(at - 5, TOP - 7);
      c.lineTo(at + 5, TOP - 7);
      c.lineTo(at, TOP);
      c.fill();
    }
    c.strokeStyle = colours.muted;
    c.strokeRect(LEFT, bottom + 0.5, width - LEFT - RIGHT, 0);
    c.fillStyle = colours.ink;
    c.textAlign = "center";
    c.textBaseline = "top";
    for (const tick of ticks(0, Math.max(all.length - 1, 0), Math.max(2, Math.floor(width / 90)))) {
      if (Number.isInteger(tick)) c.fillText(`${tick}`, LEFT + (tick + 0.5) * wide, bottom + 4);
    }
    if (!small) c.fillText(source.title(), (LEFT + width - RIGHT) / 2, bottom + 19);
    c.save();
    c.translate(11, (TOP + bottom) / 2);
    c.rotate(-Math.PI / 2);
    c.fillText(!log ? "range" : small ? "max |x|" : "max |x| (log)", 0, -6);
    c.restore();
    if (chosen < all.length) {
      const p = all[chosen];
      const [low, high, lo, hi, step] = [p.low, p.high, p.lo, p.hi, p.step].map((v) => label(+v.toPrecision(3)));
      const grid = p.step > 0 ? `; grid ${lo} to ${hi}, step ${step}` : "";
      const marks = log ? "the grid's end and its step" : "the grid's ends";
      const ratio = source.ratio(chosen);
      said.textContent = `channel ${chosen} of ${all.length}: ${low} to ${high}${ratio}${grid} (lines: ${marks})`;
      said.title = said.textContent;
    }
  });

  const pick = guarded(el, (/** @type {number} */ channel) => {
    const last = parts().length - 1;
    if (last < 0) return;
    source.pick(Math.min(Math.max(channel, 0), last));
  });
  board.canvas.addEventListener("pointerdown", (event) => {
    const box = board.canvas.getBoundingClientRect();
    pick(Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT)) * parts().length));
  });
  plot.addEventListener("keydown", (event) => {
    const step = CHANNEL_STEPS[event.key];
    if (step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    pick(source.selected() + step);
  });
  const named = () => {
    scale.textContent = source.log() ? "linear" : "log";
    board.redraw();
  };
  scale.addEventListener("click", () => {
    source.rescale();
    named();
  });
  named();
  return { redraw: named, destroy: () => board.destroy() };
}
