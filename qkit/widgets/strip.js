// All channels' ranges side by side: click or arrow keys pick one.
import { decades, floats, follow, guarded, label, make, surface, ticks } from "./common.js";

const HEIGHT = 150;
const [LEFT, RIGHT, TOP, BOTTOM] = [58, 14, 8, 36];

export default {
  render({ model, el }) {
    el.classList.add("qkit");
    const tools = make("div", { class: "qkit-tools" });
    tools.style.marginLeft = `${LEFT}px`;
    const scale = make("button", { type: "button" });
    const said = make("span", { class: "qkit-note", "aria-live": "polite" });
    tools.append(scale, said);
    const plot = make("div", { class: "qkit-plot", role: "listbox", tabindex: "0", "aria-label": "channels" });
    el.append(tools, plot);

    const parts = () => {
      const all = floats(model.get("ranges"));
      const count = all.length / 5;
      return {
        count,
        low: (i) => all[i],
        high: (i) => all[count + i],
        lo: (i) => all[2 * count + i],
        hi: (i) => all[3 * count + i],
        step: (i) => all[4 * count + i],
      };
    };
    const peak = (p, i) => Math.max(Math.abs(p.low(i)), Math.abs(p.high(i)));
    const end = (p, i) => Math.max(p.hi(i), -p.lo(i));

    const board = surface(el, plot, HEIGHT, (c, width, height, colours) => {
      const p = parts();
      const log = model.get("log");
      const bottom = height - BOTTOM;
      const wide = (width - LEFT - RIGHT) / Math.max(p.count, 1);
      let [least, most] = [Infinity, -Infinity];
      for (let i = 0; i < p.count; i += 1) {
        const values = log ? [peak(p, i), end(p, i), p.step(i)].filter((v) => v > 0) : [p.low(i), p.high(i), p.lo(i), p.hi(i)];
        for (const v of values) [least, most] = [Math.min(least, v), Math.max(most, v)];
      }
      if (!(most > -Infinity)) [least, most] = log ? [0.1, 1] : [0, 1];
      if (log) [least, most] = [least / 1.6, most * 1.6];
      else [least, most] = [Math.min(least, 0), Math.max(most, 0) || 1];
      const y = (v) =>
        log
          ? bottom - (Math.log(Math.max(v, least) / least) / Math.log(most / least)) * (bottom - TOP)
          : bottom - ((v - least) / (most - least)) * (bottom - TOP);
      c.textAlign = "right";
      c.textBaseline = "middle";
      for (const tick of log ? decades(least, most) : ticks(least, most, 4)) {
        c.strokeStyle = colours.lines;
        c.strokeRect(LEFT, Math.round(y(tick)) + 0.5, width - LEFT - RIGHT, 0);
        c.fillStyle = colours.ink;
        c.fillText(label(tick), LEFT - 6, y(tick));
      }
      const chosen = model.get("selected");
      c.fillStyle = colours.muted;
      c.globalAlpha = 0.3;
      c.fillRect(LEFT + chosen * wide - 1, TOP, Math.max(wide, 3) + 2, bottom - TOP);
      c.globalAlpha = 1;
      const thick = Math.max(wide * 0.6, 1);
      for (let i = 0; i < p.count; i += 1) {
        const left = LEFT + (i + 0.5) * wide - thick / 2;
        c.fillStyle = colours.wide;
        if (log) c.fillRect(left, y(peak(p, i)), thick, bottom - y(peak(p, i)));
        else c.fillRect(left, y(p.high(i)), thick, Math.max(y(p.low(i)) - y(p.high(i)), 1));
        c.fillStyle = colours.narrow;
        const lines = p.step(i) > 0 ? (log ? [end(p, i), p.step(i)] : [p.lo(i), p.hi(i)]) : [];
        for (const v of lines) c.fillRect(LEFT + i * wide, y(v) - 1, Math.max(wide, 1), 2);
      }
      c.strokeStyle = colours.muted;
      c.strokeRect(LEFT, bottom + 0.5, width - LEFT - RIGHT, 0);
      c.fillStyle = colours.ink;
      c.textAlign = "center";
      c.textBaseline = "top";
      for (const tick of ticks(0, Math.max(p.count - 1, 0), Math.max(2, Math.floor(width / 90)))) {
        if (Number.isInteger(tick)) c.fillText(`${tick}`, LEFT + (tick + 0.5) * wide, bottom + 4);
      }
      c.fillText(model.get("title"), (LEFT + width - RIGHT) / 2, bottom + 19);
      c.save();
      c.translate(11, (TOP + bottom) / 2);
      c.rotate(-Math.PI / 2);
      c.fillText(log ? "max |x| (log)" : "range", 0, -6);
      c.restore();
      if (chosen < p.count) {
        const [low, high, lo, hi, step] = [p.low, p.high, p.lo, p.hi, p.step].map((of) => label(+of(chosen).toPrecision(3)));
        const grid = p.step(chosen) > 0 ? `; grid ${lo} to ${hi}, step ${step}` : "";
        const lines = log ? "the grid's end and its step" : "the grid's ends";
        said.textContent = `channel ${chosen} of ${p.count}: ${low} to ${high}${grid} (lines: ${lines})`;
      }
    });

    const pick = guarded(el, (channel) => {
      const last = parts().count - 1;
      if (last < 0) return;
      model.set("selected", Math.min(Math.max(channel, 0), last));
      model.save_changes();
    });
    board.canvas.addEventListener("pointerdown", (event) => {
      const box = board.canvas.getBoundingClientRect();
      pick(Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT)) * parts().count));
    });
    plot.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      pick(model.get("selected") + step);
    });
    const named = () => {
      scale.textContent = model.get("log") ? "show ranges, linear" : "show magnitudes, log";
      board.redraw();
    };
    scale.addEventListener("click", () => {
      model.set("log", !model.get("log"));
      model.save_changes();
    });
    named();
    const unfollow = follow(model, ["ranges", "selected", "log", "title"], named);
    return () => {
      unfollow();
      board.destroy();
    };
  },
};
