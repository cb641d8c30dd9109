// Layers as a chart along the network's depth and as a table: sort, filter, choose.
import { contextOf, decades, follow, guarded, label, make, numeric, ownKeys, surface, ticks } from "./common.js";

/** @import { Chart, LayerTable, Line, Row, View } from "./types" */

const HEIGHT = 240;
const [LEFT, RIGHT, TOP, BOTTOM] = [58, 14, 12, 38];
/** @type {Record<string, number>} */
const STEPS = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9, Enter: 0, " ": 0 };
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

export default {
  /** @param {View<LayerTable>} view */
  render({ model, el }) {
    el.classList.add("qkit");
    const tools = make("div", { class: "qkit-tools" });
    const chart = make("select", { "aria-label": "figure along the depth" });
    const filter = make("input", {
      type: "search",
      placeholder: "filter: name or kind",
      "aria-label": "filter by name or kind",
      size: "18",
    });
    const limit = make("input", { type: "number", step: "1", "aria-label": "show only layers up to this figure" });
    limit.style.width = "5em";
    const limited = make("label", {});
    const count = make("span", { class: "qkit-note", "aria-live": "polite" });
    const legend = make("span", { class: "qkit-legend" });
    tools.append(make("label", {}, "along the depth: ", chart), filter, limited, count);
    const plot = make("div", { class: "qkit-plot" });
    const tip = make("div", { class: "qkit-tip", ".hidden": true });
    const rows = make("div", { class: "qkit-rows" });
    el.append(tools, legend, plot, rows);
    plot.append(tip);

    /** The chosen chart; there is none before there are figures. */
    const drawing = () => model.get("charts").at(model.get("chart"));
    /**
     * @param {Row} row
     * @param {number} column
     */
    const value = (row, column) => numeric(row.values[column]);
    /** Indices of rows in the table's order. @type {number[]} */
    let visible = [];

    // chart
    /**
     * @param {Chart} at
     * @param {number} height
     */
    const scaleOf = (at, height) => {
      const bottom = height - BOTTOM;
      let [least, most] = [Infinity, -Infinity];
      for (const row of model.get("rows"))
        for (const line of at.lines) {
          const v = value(row, line.column);
          if (Number.isFinite(v) && (!at.log || v > 0)) [least, most] = [Math.min(least, v), Math.max(most, v)];
        }
      if (!(most >= least)) [least, most] = at.log ? [0.1, 1] : [0, 1];
      if (at.log) [least, most] = [least / 1.5, most * 1.5];
      else {
        least = Math.min(least, 0);
        most += (most - least) * 0.08 || 1;
      }
      const span = at.log ? Math.log(most / least) : most - least;
      /** @param {number} v */
      const y = (v) => {
        if (v === Infinity) return TOP;
        const share = at.log ? Math.log(Math.max(v, least) / least) / span : (Math.max(v, least) - least) / span;
        return bottom - share * (bottom - TOP);
      };
      return { least, most, y, bottom };
    };
    /**
     * @param {number} i
     * @param {number} width
     */
    const x = (i, width) => LEFT + ((i + 0.5) / Math.max(model.get("rows").length, 1)) * (width - LEFT - RIGHT);

    let hovered = -1;
    const board = surface(el, plot, HEIGHT, (c, width, height, colours) => {
      const at = drawing();
      if (!at) return;
      const all = model.get("rows");
      const { least, most, y, bottom } = scaleOf(at, height);
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
        const wide = Math.max((width - LEFT - RIGHT) / all.length, 3);
        c.fillRect(x(i, width) - wide / 2, TOP, wide, bottom - TOP);
        c.globalAlpha = 1;
      }
      const shown = new Set(visible);
      let endless = false;
      for (const line of at.lines) {
        c.strokeStyle = c.fillStyle = colours[line.role];
        c.lineWidth = line.dash ? 1 : 1.7;
        c.setLineDash(line.dash ? [5, 3] : []);
        c.beginPath();
        let pen = false;
        all.forEach((row, i) => {
          const v = value(row, line.column);
          if (Number.isNaN(v)) return;
          endless ||= v === Infinity;
          if (pen) c.lineTo(x(i, width), y(v));
          else c.moveTo(x(i, width), y(v));
          pen = true;
        });
        c.stroke();
        c.setLineDash([]);
        c.lineWidth = 1;
        all.forEach((row, i) => {
          const v = value(row, line.column);
          if (Number.isNaN(v)) return;
          c.globalAlpha = shown.has(i) ? 1 : 0.2;
          c.beginPath();
          SHAPES[line.shape](c, x(i, width), y(v));
          if (line.dash) {
            c.fillStyle = colours.page;
            c.fill();
            c.stroke();
            c.fillStyle = colours[line.role];
          } else c.fill();
        });
        c.globalAlpha = 1;
      }
      c.strokeStyle = colours.muted;
      c.strokeRect(LEFT, bottom + 0.5, width - LEFT - RIGHT, 0);
      c.fillStyle = colours.ink;
      c.textAlign = "center";
      c.textBaseline = "top";
      for (const tick of ticks(1, Math.max(all.length, 1), Math.max(2, Math.floor(width / 90)))) {
        if (Number.isInteger(tick)) c.fillText(`${tick}`, x(tick - 1, width), bottom + 5);
      }
      const axis = `${model.get("noun")}, in the order of execution${endless ? " (at the top edge: no error)" : ""}`;
      c.fillText(axis, (LEFT + width - RIGHT) / 2, bottom + 21);
      c.save();
      c.translate(11, (TOP + bottom) / 2);
      c.rotate(-Math.PI / 2);
      c.fillText(at.unit, 0, -6);
      c.restore();
      legend.replaceChildren(
        ...at.lines.map((line) => {
          const key = make("canvas", { ".width": 26, ".height": 12 });
          const k = contextOf(key);
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
          return make("span", {}, key, ` ${line.label}`);
        }),
      );
    });
    board.canvas.setAttribute("aria-label", "error of every layer along the network's depth; the table below has the numbers");

    /** @param {MouseEvent} event */
    const near = (event) => {
      const box = board.canvas.getBoundingClientRect();
      const total = model.get("rows").length;
      const i = Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT)) * total);
      return i >= 0 && i < total ? i : -1;
    };
    board.canvas.addEventListener(
      "pointermove",
      guarded(el, (event) => {
        hovered = near(event);
        const at = drawing();
        tip.hidden = !at || hovered < 0;
        if (at && hovered >= 0) {
          const row = model.get("rows")[hovered];
          tip.textContent = [row.name, ...at.lines.map((line) => `${line.label}: ${row.texts[line.column]}`)].join("\n");
          const box = plot.getBoundingClientRect();
          const left = event.clientX - box.left;
          tip.style.top = `${event.clientY - box.top + 12}px`;
          tip.style.left = left > box.width / 2 ? "" : `${left + 12}px`;
          tip.style.right = left > box.width / 2 ? `${box.width - left + 12}px` : "";
        }
        board.redraw();
      }),
    );
    board.canvas.addEventListener("pointerleave", () => {
      hovered = -1;
      tip.hidden = true;
      board.redraw();
    });
    board.canvas.addEventListener("click", (event) => {
      const i = near(event);
      if (i >= 0) choose(model.get("rows")[i].name, true);
    });

    // table
    const body = make("tbody");
    const head = make("thead");
    rows.append(make("table", {}, head, body));
    /** One for each row of the model. @type {HTMLTableRowElement[]} */
    let lines = [];

    const choose = guarded(el, (/** @type {string} */ name, /** @type {boolean} */ reveal) => {
      if (name !== model.get("selected")) {
        model.set("selected", name);
        model.save_changes();
      }
      mark(reveal);
    });

    /** @param {boolean} reveal */
    const mark = (reveal) => {
      const selected = model.get("selected");
      model.get("rows").forEach((row, i) => {
        const on = row.name === selected;
        if ((lines[i].getAttribute("aria-selected") === "true") !== on) lines[i].setAttribute("aria-selected", String(on));
        lines[i].tabIndex = on ? 0 : -1;
        if (on && reveal) lines[i].scrollIntoView({ block: "nearest" });
      });
      if (visible.length && !visible.some((i) => lines[i].tabIndex === 0)) lines[visible[0]].tabIndex = 0;
      board.redraw();
    };

    const order = guarded(el, () => {
      const all = model.get("rows");
      const words = model.get("filter").toLowerCase().split(/\s+/).filter(Boolean);
      const most = model.get("limit");
      const by = model.get("limit_column");
      visible = [...all.keys()].filter((i) => {
        const text = all[i].texts.slice(0, 2).join(" ").toLowerCase();
        return words.every((word) => text.includes(word)) && (most === null || by < 0 || value(all[i], by) <= most);
      });
      const column = model.get("columns").findIndex((c) => c.head === model.get("sort_by"));
      if (column >= 0) {
        const sign = model.get("descending") ? -1 : 1;
        const plain = model.get("columns")[column].words;
        visible.sort((a, b) => {
          if (plain)
            return sign * all[a].texts[column].localeCompare(all[b].texts[column], undefined, { numeric: true }) || a - b;
          const [u, v] = [value(all[a], column), value(all[b], column)];
          if (Number.isNaN(u) || Number.isNaN(v)) return Number(Number.isNaN(u)) - Number(Number.isNaN(v)) || a - b;
          return u === v ? a - b : sign * (u < v ? -1 : 1);
        });
      }
      body.replaceChildren(...visible.map((i) => lines[i]));
      count.textContent = `${visible.length === all.length ? "" : `${visible.length} of `}${all.length} ${model.get("noun")}s`;
      for (const cell of head.querySelectorAll("th")) {
        const on = cell.dataset.head === model.get("sort_by");
        cell.setAttribute("aria-sort", on ? (model.get("descending") ? "descending" : "ascending") : "none");
        cell.firstElementChild?.replaceChildren(`${cell.dataset.head}${on ? (model.get("descending") ? " ▾" : " ▴") : ""}`);
      }
      mark(false);
    });

    const fill = guarded(el, () => {
      const columns = model.get("columns");
      head.replaceChildren(
        make(
          "tr",
          {},
          ...columns.map((column) => {
            const press = make("button", { type: "button", title: column.tip || `sort by ${column.head}` });
            const cell = make("th", { "data-head": column.head, class: column.words ? "qkit-words" : "", scope: "col" }, press);
            press.addEventListener("click", () => {
              const again = model.get("sort_by") === column.head;
              // a third press goes back to the order of execution
              if (again && model.get("descending") !== column.down) model.set("sort_by", "");
              else {
                model.set("descending", again ? !model.get("descending") : column.down);
                model.set("sort_by", column.head);
              }
              model.save_changes();
              order();
            });
            return cell;
          }),
        ),
      );
      lines = model.get("rows").map((row) => {
        const line = make("tr", { "aria-selected": "false" });
        line.append(...row.texts.map((text, k) => make("td", { class: columns[k].words ? "qkit-words" : "" }, text)));
        line.addEventListener("click", () => choose(row.name, false));
        return line;
      });
      const by = model.get("limit_column");
      limited.replaceChildren(...(by < 0 || !columns[by] ? [] : [`${columns[by].head} up to `, limit]));
      chart.replaceChildren(...model.get("charts").map((c, i) => make("option", { value: i }, c.name)));
      chart.value = `${model.get("chart")}`;
      order();
      requestAnimationFrame(() => el.dispatchEvent(new CustomEvent("qkit-filled", { bubbles: true, detail: lines.length })));
    });

    ownKeys(body);
    body.addEventListener("keydown", (event) => {
      const step = STEPS[event.key];
      if (step === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      const at = visible.findIndex((i) => lines[i] === document.activeElement);
      const to = visible[Math.min(Math.max(at + step, 0), visible.length - 1)];
      lines[to].focus();
      choose(model.get("rows")[to].name, true);
    });
    chart.addEventListener("change", () => {
      model.set("chart", Number(chart.value));
      model.save_changes();
    });
    filter.addEventListener("input", () => {
      model.set("filter", filter.value);
      model.save_changes();
      order();
    });
    limit.addEventListener("input", () => {
      model.set("limit", limit.value === "" ? null : Number(limit.value));
      model.save_changes();
      order();
    });
    // the notebook's shortcuts are not for what is typed here
    for (const field of [filter, limit]) field.addEventListener("keydown", (event) => event.stopPropagation());

    fill();
    filter.value = model.get("filter");
    const undo = [
      follow(model, ["columns", "rows", "charts"], fill),
      follow(model, ["sort_by", "descending", "filter", "limit"], order),
      follow(model, ["selected"], () => mark(true)),
      follow(model, ["chart"], () => {
        chart.value = `${model.get("chart")}`;
        board.redraw();
      }),
    ];
    return () => {
      for (const stop of undo) stop();
      board.destroy();
    };
  },
};
