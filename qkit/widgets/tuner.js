// The range tuner: heading, histogram with handles, strip of channels, score, figures, controls, progress and errors.
import { alive } from "./alive.js";
import { channelPlot } from "./channels.js";
import { darkness, floats, follow, guarded, label, make, watchKernel } from "./common.js";
import { codeBox } from "./copy.js";
import { rangePlot } from "./range.js";

/** @import { Action, Reply, Tuner, View } from "./types" */

const [PLOT_HEIGHT, PLOT_ALONE, CHANNELS_HEIGHT] = [212, 316, 76];

/**
 * Fills a table row by row, changing only what differs, so that the page is not laid out anew.
 * @param {HTMLTableElement} table
 * @param {string[][]} rows
 */
function fill(table, rows) {
  while (table.rows.length > rows.length) table.deleteRow(-1);
  rows.forEach((row, i) => {
    const line = table.rows[i] || table.insertRow();
    while (line.cells.length > row.length) line.deleteCell(-1);
    row.forEach((text, k) => {
      const cell = line.cells[k] || line.appendChild(document.createElement(i && k ? "td" : "th"));
      if (cell.textContent !== text) cell.textContent = text;
    });
  });
}

/**
 * A control with its words beside it.
 * @template {HTMLElement} Control
 * @param {string} words
 * @param {Control} control
 */
function labelled(words, control) {
  return make(
    "label",
    {},
    control instanceof HTMLInputElement && control.type === "checkbox" ? control : words,
    " ",
    control instanceof HTMLInputElement && control.type === "checkbox" ? words : control,
  );
}

/** @param {string} text @param {string} title */
function press(text, title) {
  return make("button", { type: "button", title, "aria-label": title.split(":")[0] }, text);
}

/**
 * Calls `done` when a field's value is given: by Enter, or by leaving it.
 * @param {HTMLInputElement} field
 * @param {() => void} done
 */
function entered(field, done) {
  /** @type {string | null} */
  let told = null;
  const tell = () => {
    // leaving a field after Enter gives nothing new
    if (field.value !== told) done();
    told = field.value;
  };
  field.addEventListener("focus", () => (told = null));
  field.addEventListener("input", () => (told = null));
  field.addEventListener("change", tell);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") tell();
  });
}

export default {
  /** @param {View<Tuner>} view */
  render({ model, el }) {
    el.classList.add("qkit", "qkit-panel", "qkit-tuner");
    el.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take Enter and the arrows for the notebook
    const undark = darkness(el);
    const unlive = alive(el);
    /** @param {Action} message */
    const tell = (message) => model.send(message);

    // heading
    const tensors = make("select", { "aria-label": "tensor" });
    const members = make("select", { "aria-label": "shown of them" });
    const counts = press("log", "logarithmic counts: switch to a linear axis and back");
    const zoom = press("the range", "show the range: the range and a tenth around, or all values");
    const code = press("code", "copy as code: Python that makes this plan");
    const heading = make(
      "div",
      { class: "qkit-tools qkit-heading" },
      tensors,
      members,
      make("span", { class: "qkit-gap" }),
      counts,
      zoom,
      code,
    );
    // the plot, with the strip under it
    const drawing = make("div", { class: "qkit-drawing" });
    const strip = make("div", { class: "qkit-strip" });
    // the score
    const now = make("div", { class: "qkit-now" });
    const interval = make("span", { class: "qkit-note" });
    const others = make("table", { class: "qkit-others" });
    const note = make("div", { class: "qkit-note", "aria-live": "polite" });
    const score = make("div", { class: "qkit-score" }, now, others, note);
    // the figures
    const figures = make("table", { class: "qkit-figures" });
    const measured = make("table", { class: "qkit-figures" });
    const words = make("div", { class: "qkit-words-side" }, figures, measured);
    const main = make("div", { class: "qkit-main" }, make("div", { class: "qkit-plots" }, drawing, strip), score, words);
    // controls
    const bits = make("input", { type: "number", min: "2", max: "16", step: "1" });
    const kind = make(
      "select",
      {},
      make("option", { value: "affine" }, "affine"),
      make("option", { value: "symmetric" }, "symmetric"),
    );
    const perChannel = make("input", { type: "checkbox" });
    const power = make("input", { type: "checkbox" });
    const low = make("input", { type: "text", inputmode: "decimal", class: "qkit-number", "aria-label": "from" });
    const high = make("input", { type: "text", inputmode: "decimal", class: "qkit-number", "aria-label": "to" });
    const by = make("select", { "aria-label": "range by" });
    const percentile = make("input", { type: "number", min: "50.01", max: "100", step: "0.01", "aria-label": "percentile" });
    const [undo, redo, reset] = [
      press("↶", "undo: the plan before"),
      press("↷", "redo: the plan that was undone"),
      press("⟲", "reset: the plan as opened; can be undone"),
    ];
    const controls = make(
      "div",
      { class: "qkit-tools qkit-controls" },
      labelled("bits", bits),
      kind,
      labelled("per channel", perChannel),
      labelled("2ⁿ", power),
      labelled("from", low),
      labelled("to", high),
      labelled("by", by),
      percentile,
      make("span", { class: "qkit-group" }, undo, redo, reset),
    );
    kind.setAttribute("aria-label", "grid");
    power.setAttribute("aria-label", "power of two");
    power.title = "the step is a power of two";
    code.setAttribute("aria-expanded", "false");
    // progress, code, errors
    const bar = make("progress", { max: "1" });
    const doing = make("span", { class: "qkit-doing" });
    const cancel = press("cancel", "cancel: stop at the next step and keep what there is");
    const working = make("div", { class: "qkit-tools qkit-working" }, bar, doing, cancel);
    const copy = codeBox();
    copy.box.hidden = true;
    const trouble = make("div", {});
    const remark = make("div", {});
    el.append(heading, main, controls, working, copy.box, remark, trouble);

    const heads = (/** @type {string[][]} */ rows) => ["", "now", ...(rows.some((row) => row.length > 2) ? ["before"] : [])];
    const list = guarded(el, (/** @type {string[][]} */ rows) => fill(figures, [heads(rows), ...rows]));
    const plot = rangePlot(el, drawing, model, PLOT_HEIGHT, (message) => list(message.figures));
    let logarithmic = true;
    const channels = channelPlot(el, strip, CHANNELS_HEIGHT, {
      ranges: () => model.get("ranges"),
      selected: () => model.get("selected"),
      log: () => logarithmic,
      title: () => model.get("strip_title"),
      ratio: (channel) => {
        const ratio = floats(model.get("ratios"))[channel];
        return ratio === undefined || Number.isNaN(ratio)
          ? ""
          : `, output ${Number.isFinite(ratio) ? label(+ratio.toFixed(1)) : "∞"} dB`;
      },
      worst: () => {
        const all = floats(model.get("ratios"));
        const least = Math.min(Infinity, ...all.filter((v) => !Number.isNaN(v)));
        return least < Infinity ? all.indexOf(least) : null;
      },
      pick: (channel) => tell({ event: "channel", value: channel }),
      rescale: () => {
        logarithmic = !logarithmic;
      },
    });

    // what Python says, shown
    /** @type {[(keyof Tuner & string)[], () => void][]} */
    const shows = [
      [["figure_rows"], () => list(model.get("figure_rows"))],
      [
        ["measured_rows"],
        () => {
          const rows = model.get("measured_rows");
          const all = rows.length ? [["measured", "now", "before", "as opened"], ...rows] : [];
          // nothing was before the first change
          const kept = (/** @type {string} */ _, /** @type {number} */ k) => k !== 2 || rows.some((row) => row[2]);
          fill(
            measured,
            all.map((row) => row.filter(kept)),
          );
        },
      ],
      [
        ["score", "measuring"],
        () => {
          const card = model.get("score");
          now.replaceChildren(card.now || "…", " ", make("span", { class: "qkit-metric" }, card.metric), " ", interval);
          interval.textContent = card.interval;
          fill(others, [["", "", `change${card.unit}`], ...card.lines]);
          note.textContent = model.get("measuring") ? "measuring …" : card.note;
          score.classList.toggle("qkit-old", model.get("measuring"));
        },
      ],
      [
        ["ranges", "ratios", "selected", "strip_title"],
        () => {
          const some = model.get("ranges").byteLength > 0;
          strip.hidden = !some;
          plot.resize(some ? PLOT_HEIGHT : PLOT_ALONE);
          channels.redraw();
        },
      ],
      [
        ["names", "kinds", "group", "group_name", "tensor"],
        () => {
          const [group, tensor] = [model.get("group"), model.get("tensor")];
          const named = model.get("kinds").map(([name]) => name);
          const other = group.length && !named.includes(model.get("group_name"));
          const several = [
            ...(other ? [make("option", { value: "", ".selected": true }, `${group.length}: ${model.get("group_name")}`)] : []),
            ...model
              .get("kinds")
              .map(([name, count]) =>
                make(
                  "option",
                  { value: name, ".selected": group.length > 0 && name === model.get("group_name") },
                  `${name} (${count})`,
                ),
              ),
          ];
          tensors.replaceChildren(
            make(
              "optgroup",
              { label: "one tensor" },
              ...model
                .get("names")
                .map((name) => make("option", { value: name, ".selected": !group.length && name === tensor }, name)),
            ),
            make("optgroup", { label: "several together" }, ...several),
          );
          members.hidden = !group.length;
          members.replaceChildren(...group.map((name) => make("option", { value: name, ".selected": name === tensor }, name)));
        },
      ],
      [
        ["rule"],
        () => {
          const rule = model.get("rule");
          if (rule.bits === undefined) return;
          bits.value = `${rule.bits}`;
          kind.value = rule.symmetric ? "symmetric" : "affine";
          [perChannel.checked, power.checked] = [rule.per_channel, rule.power_of_two];
          [low.value, high.value] = [rule.lo, rule.hi];
        },
      ],
      [
        ["methods", "rule", "percentile"],
        () => {
          const method = model.get("rule").method;
          const options = model.get("methods").map(({ name, defined }) => {
            const option = make("option", { value: name, ".disabled": !defined, ".selected": name === method }, name);
            if (!defined) option.title = `${name} is not defined for this grid`;
            return option;
          });
          const hand = !options.some((option) => option.selected);
          by.replaceChildren(
            ...(hand ? [make("option", { value: "", disabled: "", ".selected": true }, "hand")] : []),
            ...options,
          );
          percentile.value = `${model.get("percentile")}`;
          percentile.hidden = method !== "percentile";
        },
      ],
      [
        ["can"],
        () => {
          const can = model.get("can");
          [undo.disabled, redo.disabled, reset.disabled] = [!can.undo, !can.redo, !can.reset];
        },
      ],
      [
        ["logarithmic", "zoomed"],
        () => {
          counts.setAttribute("aria-pressed", `${model.get("logarithmic")}`);
          zoom.setAttribute("aria-pressed", `${model.get("zoomed")}`);
        },
      ],
      [["code"], () => copy.write(model.get("code"))],
      [
        ["doing", "share_done"],
        () => {
          working.style.visibility = model.get("doing") ? "visible" : "hidden";
          doing.textContent = model.get("doing");
          bar.value = model.get("share_done");
        },
      ],
      [["error_words"], () => (trouble.innerHTML = model.get("error_words"))],
      [["notice_words"], () => (remark.innerHTML = model.get("notice_words"))],
    ];
    const unfollow = shows.map(([names, show]) => {
      const safely = guarded(el, show);
      safely();
      return follow(model, names, safely);
    });

    const refreshed = (/** @type {Reply} */ message) => {
      if (message.event === "refresh") for (const [, show] of shows) guarded(el, show)();
    };
    model.on("msg:custom", refreshed);
    const unwatch = watchKernel(model, el);

    // what is done here, told
    entered(bits, () => tell({ event: "rule", value: { bits: Math.round(Number(bits.value)) } }));
    kind.addEventListener("change", () => tell({ event: "rule", value: { symmetric: kind.value === "symmetric" } }));
    perChannel.addEventListener("change", () => tell({ event: "rule", value: { per_channel: perChannel.checked } }));
    power.addEventListener("change", () => tell({ event: "rule", value: { power_of_two: power.checked } }));
    entered(low, () => tell({ event: "typed", end: "lo", value: low.value }));
    entered(high, () => tell({ event: "typed", end: "hi", value: high.value }));
    by.addEventListener("change", () => tell({ event: "choose", value: by.value }));
    entered(percentile, () => tell({ event: "percentile", value: percentile.value }));
    tensors.addEventListener("change", () => tell({ event: "select", value: tensors.value }));
    members.addEventListener("change", () => tell({ event: "tensor", value: members.value }));
    counts.addEventListener("click", () => tell({ event: "logarithmic", value: !model.get("logarithmic") }));
    zoom.addEventListener("click", () => tell({ event: "zoomed", value: !model.get("zoomed") }));
    undo.addEventListener("click", () => tell({ event: "undo" }));
    redo.addEventListener("click", () => tell({ event: "redo" }));
    reset.addEventListener("click", () => tell({ event: "reset" }));
    cancel.addEventListener("click", () => tell({ event: "cancel" }));
    code.addEventListener("click", () => {
      copy.box.hidden = !copy.box.hidden;
      code.setAttribute("aria-expanded", `${!copy.box.hidden}`);
    });
    return () => {
      for (const stop of unfollow) stop();
      model.off("msg:custom", refreshed);
      plot.destroy();
      channels.destroy();
      unlive();
      undark();
      unwatch();
    };
  },
};
