// Layers as a chart along the network's depth and as a table: sort, filter, choose.
import { follow, guarded, make, ownKeys, watchKernel } from "./common.js";
import { figure, layerPlot } from "./layer_plot.js";

/** @import { LayerTable, Row, View } from "./types" */

/** @type {Record<string, number>} */
const STEPS = { ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9, Enter: 0, " ": 0 };

/**
 * Scrolls a box, and nothing around it, until a row or head of its table stands clear of the head and the first column, which
 * stay in place.
 * @param {HTMLElement} box
 * @param {HTMLElement} part
 */
function reveal(box, part) {
  const head = box.querySelector("thead")?.getBoundingClientRect();
  const first = box.querySelector("th")?.getBoundingClientRect();
  const [outer, inner] = [box.getBoundingClientRect(), part.getBoundingClientRect()];
  if (!head || !first || !outer.height) return;
  if (part.tagName === "TR") {
    const above = inner.top - (outer.top + head.height);
    const below = inner.bottom - (outer.top + box.clientHeight);
    if (above < 0) box.scrollTop += above;
    else if (below > 0) box.scrollTop += below;
  } else if (part !== box.querySelector("th")) {
    const before = inner.left - (outer.left + first.width);
    const after = inner.right - (outer.left + box.clientWidth);
    if (before < 0) box.scrollLeft += before;
    else if (after > 0) box.scrollLeft += Math.min(after, before);
  }
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
    const unfold = make("input", { type: "checkbox" });
    const folded = make("label", { ".hidden": true });
    const count = make("span", { class: "qkit-note", "aria-live": "polite" });
    const legend = make("span", { class: "qkit-legend" });
    tools.append(make("label", {}, "along the depth: ", chart), filter, limited, folded, count);
    const plot = make("div", { class: "qkit-plot" });
    const rows = make("div", { class: "qkit-rows" });
    el.append(tools, legend, plot, rows);

    /** Indices of rows in the table's order. @type {number[]} */
    let visible = [];
    const board = layerPlot(
      el,
      model,
      plot,
      legend,
      () => visible,
      (name) => choose(name),
    );

    const body = make("tbody");
    const head = make("thead");
    rows.append(make("table", {}, head, body));
    /** One for each row of the model. @type {HTMLTableRowElement[]} */
    let lines = [];

    const choose = guarded(el, (/** @type {string} */ name) => {
      if (name !== model.get("selected")) {
        model.set("selected", name);
        model.save_changes();
      }
      mark(true);
    });

    /** @param {boolean} [show] */
    const mark = (show = false) => {
      const selected = model.get("selected");
      model.get("rows").forEach((row, i) => {
        const on = row.name === selected;
        if ((lines[i].getAttribute("aria-selected") === "true") !== on) lines[i].setAttribute("aria-selected", String(on));
        lines[i].tabIndex = on ? 0 : -1;
        if (on && show && lines[i].isConnected) reveal(rows, lines[i]);
      });
      if (visible.length && !visible.some((i) => lines[i].tabIndex === 0)) lines[visible[0]].tabIndex = 0;
      board.redraw();
    };

    const order = guarded(el, () => {
      const all = model.get("rows");
      const columns = model.get("columns");
      const words = model.get("filter").toLowerCase().split(/\s+/).filter(Boolean);
      const most = model.get("limit");
      const by = model.get("limit_column");
      const named = columns.flatMap((c, k) => (c.words ? [k] : [])).slice(0, 2);
      visible = [...all.keys()].filter((i) => {
        const text = named
          .map((k) => all[i].texts[k])
          .join(" ")
          .toLowerCase();
        return words.every((word) => text.includes(word)) && (most === null || by < 0 || figure(all[i], by) <= most);
      });
      const column = columns.findIndex((c) => c.head === model.get("sort_by"));
      if (column >= 0) {
        const sign = model.get("descending") ? -1 : 1;
        const plain = columns[column].words;
        visible.sort((a, b) => {
          if (plain)
            return sign * all[a].texts[column].localeCompare(all[b].texts[column], undefined, { numeric: true }) || a - b;
          const [u, v] = [figure(all[a], column), figure(all[b], column)];
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
        if (on) reveal(rows, cell);
      }
      mark();
    });

    /** In another order one begins at its top. */
    const sorted = () => {
      rows.scrollTop = 0;
      order();
    };

    /** Columns that fold, shown or hidden. */
    const fold = () => {
      rows.classList.toggle("qkit-folded", !model.get("unfolded"));
      unfold.checked = model.get("unfolded");
      folded.hidden = !model.get("folds");
      folded.replaceChildren(unfold, ` ${model.get("folds")} too`);
      board.redraw();
    };

    /**
     * A cell of the table.
     * @param {Row} row
     * @param {number} k
     * @param {number} longest
     */
    const cellOf = (row, k, longest) => {
      const column = model.get("columns")[k];
      const names = [column.words ? "qkit-words" : "", column.fold ? "qkit-fold" : "", column.bar ? "qkit-bar" : ""];
      const cell = make("td", { class: names.filter(Boolean).join(" ") }, row.texts[k]);
      if (column.bar) {
        const part = figure(row, k) / longest;
        cell.style.setProperty("--part", `${part > 0 ? (100 * Math.min(part, 1)).toFixed(1) : 0}%`);
      }
      return cell;
    };

    const fill = guarded(el, () => {
      const columns = model.get("columns");
      head.replaceChildren(
        make(
          "tr",
          {},
          ...columns.map((column) => {
            const press = make("button", { type: "button", title: column.tip || `sort by ${column.head}` });
            const names = [column.words ? "qkit-words" : "", column.fold ? "qkit-fold" : ""].filter(Boolean).join(" ");
            const cell = make("th", { "data-head": column.head, class: names, scope: "col" }, press);
            press.addEventListener("click", () => {
              const again = model.get("sort_by") === column.head;
              // a third press goes back to the order of execution
              if (again && model.get("descending") !== column.down) model.set("sort_by", "");
              else {
                model.set("descending", again ? !model.get("descending") : column.down);
                model.set("sort_by", column.head);
              }
              model.save_changes();
              sorted();
            });
            return cell;
          }),
        ),
      );
      const all = model.get("rows");
      const longest = columns.map((c, k) => (c.bar ? Math.max(...all.map((row) => figure(row, k) || 0), 1e-300) : 1));
      lines = all.map((row) => {
        const line = make("tr", { "aria-selected": "false" });
        line.append(...row.texts.map((_, k) => cellOf(row, k, longest[k])));
        line.addEventListener("click", () => choose(row.name));
        return line;
      });
      const by = model.get("limit_column");
      limited.replaceChildren(...(by < 0 || !columns[by] ? [] : [`${columns[by].head} up to `, limit]));
      chart.replaceChildren(...model.get("charts").map((c, i) => make("option", { value: i }, c.name)));
      chart.value = `${model.get("chart")}`;
      fold();
      order();
      mark(true);
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
      // the browser would scroll sideways too, away from the column that one sorts by
      lines[to].focus({ preventScroll: true });
      choose(model.get("rows")[to].name);
    });
    chart.addEventListener("change", () => {
      model.set("chart", Number(chart.value));
      model.save_changes();
    });
    unfold.addEventListener("change", () => {
      model.set("unfolded", unfold.checked);
      if (!unfold.checked && model.get("columns").some((c) => c.fold && c.head === model.get("sort_by")))
        model.set("sort_by", "");
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
      watchKernel(model, el),
      follow(model, ["columns", "rows", "charts"], fill),
      follow(model, ["sort_by", "descending"], sorted),
      follow(model, ["filter", "limit"], order),
      follow(model, ["selected"], () => mark(true)),
      follow(model, ["unfolded", "folds"], fold),
      follow(model, ["bars", "bars_unit"], board.redraw),
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
