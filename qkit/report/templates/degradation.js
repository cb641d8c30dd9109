"use strict";
/* Sorting of tables and of the chart of layers, and the chart's figures under pointer and keyboard. Without it the page says the same. */

/**
 * The element that a part of the page has for a selector.
 * @template {Element} Kind
 * @param {ParentNode} within
 * @param {string} selector
 * @param {new () => Kind} kind
 */
const part = (within, selector, kind) => {
  const found = within.querySelector(selector);
  if (found instanceof kind) return found;
  throw new Error(`the page has no ${selector}`);
};

/** @type {NodeListOf<HTMLTableElement>} */
const sortable = document.querySelectorAll("table.sortable");
for (const table of sortable) {
  const body = table.tBodies[0];
  const heads = [...part(table, "thead tr:last-child", HTMLTableRowElement).cells];
  for (const [at, head] of heads.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.setAttribute("aria-label", `sort by ${head.dataset.label}`);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      /** @param {HTMLTableRowElement} row */
      const key = (row) => {
        const v = row.cells[at].dataset.v;
        return v === undefined ? null : Number(v.replace("inf", "Infinity"));
      };
      /**
       * @param {HTMLTableRowElement} a
       * @param {HTMLTableRowElement} b
       */
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        const sign = down ? -1 : 1;
        if (x === null && y === null) {
          return a.cells[at].textContent.localeCompare(b.cells[at].textContent, undefined, { numeric: true }) * sign;
        }
        // what has no value stays at the end
        if (x === null || y === null) return x === null ? 1 : -1;
        return x === y ? 0 : (x < y ? -1 : 1) * sign;
      };
      body.append(...[...body.rows].sort(order));
    });
  }
}

/** @type {NodeListOf<HTMLElement>} */
const charts = document.querySelectorAll("figure.layers");
for (const figure of charts) {
  const svg = part(figure, "svg.chart", SVGSVGElement);
  const tip = part(figure, ".tip", HTMLElement);
  const select = part(figure, "select", HTMLSelectElement);
  const scroll = part(figure, ".scroll", HTMLElement);
  const [first, column] = [Number(svg.dataset.left), Number(svg.dataset.column)];
  /** @type {NodeListOf<SVGGElement>} */
  const layers = svg.querySelectorAll("g.layer");
  let sorted = [...layers];
  /** @type {SVGGElement | null} */
  let shown = null;
  part(figure, ".tools", HTMLElement).hidden = false;

  /**
   * @param {SVGGElement} layer
   * @param {string} key
   */
  const figureOf = (layer, key) => {
    const v = layer.dataset[key];
    return v === undefined ? NaN : Number(v.replace("inf", "Infinity"));
  };
  /** @param {SVGGElement} layer */
  const nameOf = (layer) => layer.dataset.name ?? "";
  const sort = () => {
    const key = select.value;
    const down = select.selectedOptions[0].dataset.down !== undefined;
    /**
     * @param {SVGGElement} a
     * @param {SVGGElement} b
     */
    const compare = (a, b) => {
      if (key === "name") return nameOf(a).localeCompare(nameOf(b), undefined, { numeric: true });
      const [x, y] = [figureOf(a, key), figureOf(b, key)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number(Number.isNaN(x)) - Number(Number.isNaN(y));
      return x === y ? 0 : (x < y ? -1 : 1) * (down ? -1 : 1);
    };
    sorted = [...layers].sort(compare);
    sorted.forEach((layer, i) => {
      layer.style.transform = `translate(${first + i * column}px, 0)`;
      layer.tabIndex = i === 0 ? 0 : -1;
    });
    // a line along the depth means nothing in another order
    svg.classList.toggle("resorted", key !== "order");
    hide();
  };
  /** @param {SVGGElement} layer */
  const show = (layer) => {
    shown?.classList.remove("shown");
    shown = layer;
    layer.classList.add("shown");
    tip.textContent = layer.getAttribute("aria-label");
    tip.hidden = false;
    const box = part(layer, ".hit", SVGElement).getBoundingClientRect();
    const frame = figure.getBoundingClientRect();
    const room = frame.width - tip.offsetWidth - 4;
    const middle = box.left + box.width / 2 - frame.left;
    const beside = middle + 14 + tip.offsetWidth > frame.width ? middle - 14 - tip.offsetWidth : middle + 14;
    tip.style.left = `${Math.max(0, Math.min(beside, room))}px`;
    tip.style.top = `${scroll.offsetTop + 34}px`;
  };
  const hide = () => {
    shown?.classList.remove("shown");
    shown = null;
    tip.hidden = true;
  };
  /** @param {SVGGElement} layer */
  const go = (layer) => {
    for (const other of sorted) other.tabIndex = other === layer ? 0 : -1;
    layer.focus();
  };
  for (const layer of layers) {
    const title = part(layer, "title", SVGTitleElement);
    layer.setAttribute("aria-label", title.textContent);
    layer.setAttribute("role", "img");
    title.remove();
    layer.addEventListener("pointerenter", () => show(layer));
    layer.addEventListener("focus", () => {
      show(layer);
      layer.scrollIntoView({ block: "nearest", inline: "nearest" });
    });
    layer.addEventListener("blur", hide);
    layer.addEventListener("click", () => go(layer));
    layer.addEventListener("dblclick", () => open(layer));
  }
  svg.addEventListener("pointerleave", () => {
    const focused = sorted.find((layer) => layer === document.activeElement);
    if (focused) show(focused);
    else hide();
  });
  /** @param {SVGGElement} layer */
  const open = (layer) => {
    /** @type {NodeListOf<HTMLTableRowElement>} */
    const rows = document.querySelectorAll("#table-layers tbody tr");
    const row = [...rows].find((r) => r.cells[0].dataset.v === `${layer.dataset.order}.0`);
    if (!row) return;
    for (const other of document.querySelectorAll("tr.found")) other.classList.remove("found");
    row.classList.add("found");
    row.scrollIntoView({ block: "center" });
    row.tabIndex = -1;
    row.focus({ preventScroll: true });
  };
  svg.addEventListener("keydown", (event) => {
    const at = sorted.indexOf(/** @type {SVGGElement} */ (document.activeElement));
    /** @type {Record<string, number>} */
    const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: sorted.length - 1 };
    const to = steps[event.key];
    if (at < 0) return;
    if (to !== undefined) {
      event.preventDefault();
      go(sorted[Math.max(0, Math.min(to, sorted.length - 1))]);
    } else if (event.key === "Enter") {
      event.preventDefault();
      open(sorted[at]);
    } else if (event.key === "Escape") {
      hide();
    }
  });
  select.addEventListener("change", sort);
  sort();
}
