// The picture of the network with its controls: what it is coloured by, search, zoom, and the chosen box beside it.
import { contextOf, follow, guarded, make, surface } from "./common.js";
import { compose, MAP, paintMap, paintScene, shade } from "./graph_paint.js";
import { boxAt, fitted, found, middle, neighbour, zoomed } from "./graph_view.js";

/** @import { GraphCanvas, GraphWish, View, Window } from "./types" */

const HEIGHT = 520;
/** Boxes that are named beside the picture before one is chosen. */
const LISTED = 6;
const HELP =
  "Arrow keys follow the edges, Enter opens, + and − zoom, 0 shows the whole, / searches. Drag moves; the wheel zooms once the picture has the focus.";

export default {
  /** @param {View<GraphCanvas>} view */
  render({ model, el }) {
    el.classList.add("qkit", "qkit-graph");
    /** @param {GraphWish} wish */
    const ask = (wish) => model.send(wish);
    /**
     * @param {string} text
     * @param {string} tip
     * @param {() => void} action
     */
    const press = (text, tip, action) => {
      const node = make("button", { type: "button", title: tip, "aria-label": tip }, text);
      node.addEventListener("click", guarded(el, action));
      return node;
    };

    // controls
    const figure = make("select", { "aria-label": "colour by" });
    const lane = make("select", { "aria-label": "lane" });
    const other = make("select", { "aria-label": "compared with" });
    const beside = make("select", { "aria-label": "how two lanes are shown" });
    beside.append(make("option", { value: "" }, "as difference"), make("option", { value: "1" }, "side by side"));
    const search = make("input", {
      type: "search",
      placeholder: "search: name or kind",
      "aria-label": "search by name or kind",
      size: "20",
    });
    const count = make("span", { class: "qkit-note", "aria-live": "polite" });
    const measure = press("measure", "measure what is missing to colour by this figure", () => ask({ event: "measure" }));
    const cancel = press("cancel", "stop, and keep what there is", () => ask({ event: "cancel" }));
    const bar = make("progress", { max: "1", "aria-label": "progress" });
    const doing = make("span", { class: "qkit-note", role: "status" });
    const tools = make(
      "div",
      { class: "qkit-tools" },
      make("label", {}, "colour by ", figure),
      make("label", {}, "in ", lane),
      make("label", {}, "against ", other),
      beside,
      search,
      count,
      make(
        "span",
        { class: "qkit-group" },
        press("open all", "open every block", () => ask({ event: "level", key: "all" })),
        press("as at first", "open as many levels of blocks as at first", () => ask({ event: "level", key: "first" })),
        press("close all", "close every block", () => ask({ event: "level", key: "none" })),
      ),
      make(
        "span",
        { class: "qkit-group" },
        press("−", "zoom out", () => zoom(1 / 1.25)),
        press("+", "zoom in", () => zoom(1.25)),
        press("whole", "show the whole network", () => fit(true)),
      ),
    );
    const legend = make("div", { class: "qkit-graph-legend" });
    const work = make("div", { class: "qkit-tools qkit-graph-work" }, measure, bar, doing, cancel);
    const plot = make("div", { class: "qkit-plot qkit-graph-plot" });
    const tip = make("div", { class: "qkit-tip", ".hidden": true });
    const side = make("div", { class: "qkit-graph-side" });
    const spoken = make("div", { class: "qkit-graph-spoken", "aria-live": "polite" });
    el.append(tools, legend, work, make("div", { class: "qkit-graph-main" }, plot, side), spoken);
    plot.append(tip);

    // what is drawn
    /** @type {Window} */
    let at = { x: 0, y: 0, k: 1 };
    let [fresh, hovered, wide] = [true, -1, 0];
    /** @type {ReturnType<typeof compose> | null} */
    let scene = null;
    /** @type {ReturnType<typeof paintMap>} */
    let map = null;
    /** A box that has to stay where it is on the screen while others open: its key, and where it is. @type {[string, number, number] | null} */
    let anchor = null;
    const boxes = () => model.get("boxes");
    const number = () => boxes().findIndex((box) => box.key === model.get("selected"));
    /** @type {ReturnType<typeof found>} */
    let hits = { boxes: new Set(), nodes: [] };

    const board = surface(el, plot, HEIGHT, (c, width, height, colours) => {
      if (!scene) {
        scene = compose(c, {
          boxes: boxes(),
          edges: model.get("edges"),
          shares: model.get("shares"),
          texts: model.get("texts"),
          size: model.get("size"),
        });
      }
      if (fresh) {
        at = fitted(model.get("size"), width, height, false);
        fresh = false;
      } else at = { ...at, x: at.x + (width - wide) / 2 };
      wide = width;
      paintScene(c, width, height, colours, scene, at, {
        selected: number(),
        hovered,
        found: search.value.trim() ? hits.boxes : null,
        focused: board.canvas === root().activeElement,
      });
      map = paintMap(c, width, height, colours, scene, at);
      el.dispatchEvent(new CustomEvent("qkit-graph-painted", { bubbles: true, detail: { ...at, boxes: scene.boxes.length } }));
    });
    const root = () => /** @type {Document | ShadowRoot} */ (el.getRootNode());
    board.canvas.tabIndex = 0;
    board.canvas.setAttribute("role", "application");
    board.canvas.setAttribute("aria-roledescription", "picture of the network");

    /** @param {number} factor */
    const zoom = (factor) => {
      at = zoomed(at, factor, board.canvas.clientWidth / 2, HEIGHT / 2);
      board.redraw();
    };
    /** @param {boolean} whole */
    const fit = (whole) => {
      at = fitted(model.get("size"), board.canvas.clientWidth, HEIGHT, whole);
      board.redraw();
    };
    /**
     * Brings a box into view where it is not.
     * @param {number} i
     */
    const reveal = (i) => {
      if (i < 0) return;
      const [x, y] = middle(boxes()[i]);
      const tall = boxes()[i].opened ? 0 : boxes()[i].place[3];
      const [u, v] = [at.x + x * at.k, at.y + (tall ? y : boxes()[i].place[1]) * at.k];
      const room = (tall / 2 + 30) * at.k;
      const width = board.canvas.clientWidth - (map ? MAP : 0);
      if (u < 60 || u > width - 60) at = { ...at, x: at.x + width / 2 - u };
      if (v < room || v > HEIGHT - room) at = { ...at, y: at.y + HEIGHT / 2 - v };
    };
    /**
     * @param {string} key
     * @param {boolean} show
     */
    const choose = (key, show) => {
      if (model.get("selected") !== key) {
        model.set("selected", key);
        model.save_changes();
      }
      if (show) reveal(number());
      say();
      board.redraw();
    };
    const say = () => {
      const i = number();
      spoken.textContent = i < 0 ? "" : `${boxes()[i].title}: ${model.get("texts")[i]}`;
    };
    /** @param {number} i */
    const hold = (i) => {
      const [x, y] = boxes()[i].place;
      anchor = [boxes()[i].key, at.x + x * at.k, at.y + y * at.k];
    };
    /** @param {number} i */
    const enter = (i) => {
      if (i < 0) return;
      const box = boxes()[i];
      if (box.block) {
        hold(i);
        ask({ event: "toggle", key: box.key });
      } else ask({ event: "open", key: box.key, action: "" });
    };

    // the mouse
    /** @param {MouseEvent} event @returns {[number, number]} */
    const place = (event) => {
      const box = board.canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    /** @param {MouseEvent} event */
    const under = (event) => {
      const [x, y] = place(event);
      return boxAt(boxes(), (x - at.x) / at.k, (y - at.y) / at.k);
    };
    /** @param {number} x @param {number} y */
    const onMap = (x, y) => {
      if (!map || x < board.canvas.clientWidth - MAP) return false;
      at = { ...at, y: HEIGHT / 2 - ((y - map.y) / map.k) * at.k };
      board.redraw();
      return true;
    };
    /** @type {{ x: number, y: number, from: Window, moved: boolean, map: boolean } | null} */
    let drag = null;
    board.canvas.addEventListener("pointerdown", (event) => {
      const [x, y] = place(event);
      drag = { x, y, from: at, moved: false, map: onMap(x, y) };
      board.canvas.setPointerCapture(event.pointerId);
    });
    board.canvas.addEventListener(
      "pointermove",
      guarded(el, (event) => {
        const [x, y] = place(event);
        if (drag?.map) onMap(x, y);
        else if (drag) {
          drag.moved ||= Math.hypot(x - drag.x, y - drag.y) > 4;
          if (drag.moved) at = { ...at, x: drag.from.x + x - drag.x, y: drag.from.y + y - drag.y };
          board.redraw();
        } else {
          const was = hovered;
          hovered = under(event);
          tip.hidden = hovered < 0;
          board.canvas.style.cursor = hovered < 0 ? "grab" : "pointer";
          if (hovered >= 0) {
            tip.textContent = words(hovered);
            const right = x > board.canvas.clientWidth / 2;
            tip.style.left = right ? "" : `${x + 14}px`;
            tip.style.right = right ? `${board.canvas.clientWidth - x + 14}px` : "";
            tip.style.top = `${Math.min(y + 12, HEIGHT - 80)}px`;
          }
          if (was !== hovered) board.redraw();
        }
      }),
    );
    /** @param {number} i */
    const words = (i) => {
      const box = boxes()[i];
      const [, kind, shape] = box.block ? ["", `${box.nodes.length} operations`, ""] : model.get("nodes")[box.nodes[0]];
      const what = [kind, shape].filter(Boolean).join(", ");
      return [box.key, what, `${model.get("legend").title}: ${model.get("texts")[i]}`].join("\n");
    };
    board.canvas.addEventListener("pointerup", (event) => {
      const click = drag && !drag.moved && !drag.map;
      drag = null;
      if (!click) return;
      const i = under(event);
      if (i < 0) return;
      const box = boxes()[i];
      const x = (place(event)[0] - at.x) / at.k - box.place[0];
      choose(box.key, false);
      // the small triangle of a block, and a frame's
      if (box.opened ? x < 26 : box.block && x > box.place[2] - 26) enter(i);
    });
    board.canvas.addEventListener("dblclick", (event) => enter(under(event)));
    board.canvas.addEventListener("pointercancel", () => (drag = null));
    board.canvas.addEventListener("pointerleave", () => {
      hovered = -1;
      tip.hidden = true;
      board.redraw();
    });
    board.canvas.addEventListener(
      "wheel",
      (event) => {
        // the page scrolls on over a picture that nobody works with
        if (board.canvas !== root().activeElement && !event.ctrlKey) return;
        event.preventDefault();
        const [x, y] = place(event);
        at = zoomed(at, Math.exp(-event.deltaY / (event.ctrlKey ? 200 : 500)), x, y);
        board.redraw();
      },
      { passive: false },
    );

    // the keyboard
    /** @type {Record<string, () => void>} */
    const keys = {
      Enter: () => enter(number()),
      " ": () => enter(number()),
      "+": () => zoom(1.25),
      "=": () => zoom(1.25),
      "-": () => zoom(1 / 1.25),
      0: () => fit(true),
      "/": () => search.focus(),
      Escape: () => choose("", false),
      Backspace: () => {
        // the innermost open block around the chosen box closes
        const i = number();
        const own = i < 0 ? -1 : boxes()[i].nodes[0];
        const around = boxes().reduce((last, box, j) => (box.opened && j !== i && box.nodes.includes(own) ? j : last), -1);
        if (around < 0) return;
        hold(around);
        model.set("selected", boxes()[around].key);
        model.save_changes();
        ask({ event: "toggle", key: boxes()[around].key });
      },
    };
    board.canvas.addEventListener(
      "keydown",
      guarded(el, (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        const action = keys[event.key];
        if (!action && !event.key.startsWith("Arrow")) return;
        event.preventDefault();
        event.stopPropagation();
        if (action) action();
        else {
          const to = neighbour(boxes(), number(), event.key);
          if (to >= 0) choose(boxes()[to].key, true);
        }
      }),
    );
    for (const event of ["focus", "blur"]) board.canvas.addEventListener(event, board.redraw);

    // search
    let next = 0;
    const look = guarded(el, () => {
      hits = found(boxes(), model.get("nodes"), search.value);
      count.textContent = search.value.trim() ? `${hits.nodes.length} of ${model.get("nodes").length}` : "";
      board.redraw();
    });
    search.addEventListener("input", () => {
      next = 0;
      look();
    });
    search.addEventListener("keydown", (event) => {
      // the notebook's shortcuts are not for what is typed here
      event.stopPropagation();
      if (event.key === "Escape") {
        search.value = "";
        look();
        board.canvas.focus();
      }
      if (event.key !== "Enter" || !hits.nodes.length) return;
      const [name] = model.get("nodes")[hits.nodes[next % hits.nodes.length]];
      next += 1;
      if (boxes().some((box) => !box.opened && box.key === name)) choose(name, true);
      else {
        anchor = null;
        ask({ event: "reveal", key: name });
      }
    });

    // what Python sends
    /**
     * @param {HTMLSelectElement} select
     * @param {[string, string, string][]} options
     * @param {string} value
     */
    const fill = (select, options, value) => {
      select.replaceChildren(...options.map(([key, name, title]) => make("option", { value: key, title }, name)));
      select.value = value;
    };
    const controls = guarded(el, () => {
      const by = model.get("figure");
      const figures = model.get("figures");
      fill(
        figure,
        figures.map((f) => [f.key, f.name, f.tip]),
        by,
      );
      const lanes = model.get("lanes").map((name) => /** @type {[string, string, string]} */ ([name, name, ""]));
      fill(lane, lanes, model.get("lane"));
      fill(other, [["", "nothing", ""], ...lanes.filter(([name]) => name !== model.get("lane"))], model.get("other"));
      const plain = !figures.find((f) => f.key === by)?.by_lane;
      lane.disabled = other.disabled = plain;
      beside.hidden = plain || !model.get("other");
      beside.value = model.get("beside") ? "1" : "";
    });
    const progress = guarded(el, () => {
      const [what, missing, done] = [model.get("doing"), model.get("missing"), model.get("done")];
      measure.hidden = !missing || Boolean(what);
      bar.hidden = cancel.hidden = !what;
      if (done === null) bar.removeAttribute("value");
      else bar.value = done;
      const share = done === null ? " …" : `: ${Math.round(100 * done)} %`;
      doing.textContent = what ? `${what}${share}` : missing ? `not measured yet in ${missing}` : "";
      work.hidden = !what && !missing;
    });
    const key = guarded(el, () => {
      const { title, words: said, signed, ticks } = model.get("legend");
      const strip = make("canvas", { ".width": 220, ".height": 12, role: "img", "aria-label": `scale of ${title}` });
      const c = contextOf(strip);
      const colours = board.colours();
      for (let i = 0; i < 220; i += 1) {
        const [colour, strength] = shade(signed ? i / 110 - 1 : i / 220, colours);
        c.globalAlpha = strength;
        c.fillStyle = colour;
        c.fillRect(i, 0, 1, 12);
      }
      const marks = make("span", { class: "qkit-graph-ticks" });
      for (const [share, text] of ticks) {
        const mark = make("span", {}, text);
        const far = 100 * (signed ? (share + 1) / 2 : share);
        mark.style.cssText = far > 90 ? "right:0" : far < 10 ? "left:0" : `left:${far}%;transform:translateX(-50%)`;
        marks.append(mark);
      }
      legend.replaceChildren(make("strong", {}, title));
      if (ticks.length) legend.append(make("span", { class: "qkit-graph-scale" }, strip, marks));
      legend.append(make("span", { class: "qkit-note" }, said));
    });
    const laid = guarded(el, () => {
      scene = null;
      const held = anchor && boxes().find((box) => box.key === anchor?.[0]);
      if (anchor && held) at = { ...at, x: anchor[1] - held.place[0] * at.k, y: anchor[2] - held.place[1] * at.k };
      anchor = null;
      hovered = -1;
      look();
      say();
    });
    const coloured = guarded(el, () => {
      scene = null;
      key();
      say();
      if (!model.get("facts").length) beheld();
      board.redraw();
    });
    /** What stands there before a box is chosen: those with the strongest colours, to choose from, and the keys. */
    const first = () => {
      /** @param {number} i */
      const share = (i) => Math.max(0, ...(model.get("shares")[i] ?? []).map((part) => part ?? 0));
      const strongest = [...boxes().keys()].filter((i) => !boxes()[i].opened && share(i) > 0).sort((a, b) => share(b) - share(a));
      const list = strongest.slice(0, LISTED).map((i) => {
        const { key } = boxes()[i];
        const name = make("button", { type: "button" }, key);
        name.addEventListener("click", () => choose(key, true));
        return make("tr", {}, make("td", {}, name), make("td", {}, model.get("texts")[i]));
      });
      const head = make("p", {}, make("strong", {}, `${model.get("legend").title}, the strongest`));
      return [
        ...(list.length ? [head, make("table", { class: "qkit-graph-first" }, ...list)] : []),
        make("p", { class: "qkit-note" }, HELP),
      ];
    };
    const beheld = guarded(el, () => {
      const rows = model
        .get("facts")
        .map(([name, text]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, text)));
      const open = model
        .get("actions")
        .map(([action, text]) =>
          press(text, `open in: ${text}`, () => ask({ event: "open", key: model.get("selected"), action })),
        );
      const pictures = model.get("pictures").map((svg) => {
        const box = make("div", { class: "qkit-graph-picture" });
        box.innerHTML = svg;
        return box;
      });
      side.replaceChildren(
        ...(rows.length ? [make("table", { class: "qkit-graph-facts" }, ...rows)] : first()),
        make("div", { class: "qkit-tools" }, ...open),
        ...pictures,
        make("div", { class: "qkit-note" }, model.get("said")),
      );
    });
    for (const [select, name] of /** @type {const} */ ([
      [figure, "figure"],
      [lane, "lane"],
      [other, "other"],
    ]))
      select.addEventListener("change", () => {
        model.set(name, select.value);
        if (name === "lane" && select.value === model.get("other")) model.set("other", "");
        model.save_changes();
      });
    beside.addEventListener("change", () => {
      model.set("beside", beside.value === "1");
      model.save_changes();
    });
    board.canvas.setAttribute("aria-label", `${model.get("nodes").length} operations. ${HELP}`);
    controls();
    progress();
    key();
    beheld();
    look();
    const undo = [
      follow(model, ["boxes", "edges", "size", "nodes"], laid),
      follow(model, ["shares", "texts", "legend"], coloured),
      follow(model, ["figures", "figure", "lanes", "lane", "other", "beside"], controls),
      follow(model, ["missing", "doing", "done"], progress),
      follow(model, ["facts", "pictures", "said", "actions"], beheld),
      follow(model, ["selected"], () => {
        reveal(number());
        say();
        board.redraw();
      }),
      board.onTheme(key),
    ];
    return () => {
      for (const stop of undo) stop();
      board.destroy();
    };
  },
};
