// What the widgets' modules share: errors in place, colours of the theme, a canvas that keeps its resolution, axes, and
// messages of which the last one wins.

/** @import { Draw, Gesture, Model, Palette } from "./types" */

/**
 * Runs `work`, and shows what it throws under the widget: front ends would only log it.
 * @template {unknown[]} Args
 * @template Result
 * @param {Element} el
 * @param {(...args: Args) => Result} work
 * @returns {(...args: Args) => Result | undefined}
 */
export function guarded(el, work) {
  return (...args) => {
    try {
      return work(...args);
    } catch (error) {
      let box = el.querySelector(":scope > .qkit-error");
      if (!box) {
        box = document.createElement("div");
        box.className = "qkit-error";
        box.setAttribute("role", "alert");
        el.append(box);
      }
      box.textContent = `This widget's drawing failed: ${error}`;
      console.error(error);
      return undefined;
    }
  };
}

/** Keys that lists and handles answer. */
const OWN_KEYS = new Set("ArrowLeft ArrowRight ArrowUp ArrowDown Home End PageUp PageDown".split(" "));

/**
 * Keeps these keys for an element that has the focus, or holds what has it. Notebook 7 looks for a shortcut before the element
 * sees the key, and would go to another cell; the mark on the element tells it not to. Ctrl+S and the like stay the notebook's.
 * @param {HTMLElement} node
 */
export function ownKeys(node) {
  /** @param {KeyboardEvent} event */
  const mark = (event) => {
    const own = OWN_KEYS.has(event.key) && !event.ctrlKey && !event.metaKey && !event.altKey;
    if (node.isConnected) node.toggleAttribute("data-lm-suppress-shortcuts", own);
    else window.removeEventListener("keydown", mark, true);
  };
  node.addEventListener("focusin", () => window.addEventListener("keydown", mark, true));
  node.addEventListener("focusout", () => window.removeEventListener("keydown", mark, true));
}

/**
 * An element with attributes, properties that start with a dot, and children. One that is given a place in the order of
 * tabs keeps the keys that it answers, see `ownKeys`.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | number | boolean>} attributes
 * @param {...(Node | string)} children
 */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith(".")) Object.assign(node, { [name.slice(1)]: value });
    else node.setAttribute(name, String(value));
  }
  if ("tabindex" in attributes) ownKeys(node);
  node.append(...children);
  return node;
}

/**
 * A canvas's context, to draw with.
 * @param {HTMLCanvasElement} canvas
 */
export function contextOf(canvas) {
  const context = canvas.getContext("2d");
  if (!context) throw new Error("the browser gives no more canvases: close other pages and load this one again");
  return context;
}

/**
 * The theme's colours as the style sheet has them for this element.
 * @param {Element} el
 * @returns {Palette}
 */
export function palette(el) {
  const style = getComputedStyle(el);
  /** @param {keyof Palette} name */
  const colour = (name) => style.getPropertyValue(`--qkit-${name}`).trim();
  return {
    ink: colour("ink"),
    muted: colour("muted"),
    lines: colour("lines"),
    page: colour("page"),
    wide: colour("wide"),
    narrow: colour("narrow"),
    other: colour("other"),
    bad: colour("bad"),
    good: colour("good"),
    mark: colour("mark"),
  };
}

/**
 * A canvas as wide as its parent that calls `draw(context, width, height, colours)` once a frame at most, whenever `redraw`
 * is called, its size changes, or the theme does.
 * @param {Element} el
 * @param {Element} parent
 * @param {number} height
 * @param {Draw} draw
 */
export function surface(el, parent, height, draw) {
  const canvas = make("canvas", { role: "img" });
  canvas.style.cssText = `display:block;width:100%;height:${height}px`;
  parent.append(canvas);
  let frame = 0;
  let drawn = "";
  /** @type {Set<() => void>} */
  const callbacks = new Set();
  const paint = guarded(el, () => {
    frame = 0;
    const width = canvas.clientWidth;
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    const context = contextOf(canvas);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "12px var(--jp-ui-font-family, system-ui, sans-serif)".replace(/var\([^,]*,\s*(.*)\)/, "$1");
    const colours = palette(el);
    const was = drawn;
    drawn = JSON.stringify(colours);
    draw(context, width, height, colours);
    if (was !== drawn) for (const callback of callbacks) callback();
  });
  const redraw = () => {
    if (!frame) frame = requestAnimationFrame(paint);
  };
  const resized = new ResizeObserver(redraw);
  resized.observe(canvas);
  const themed = new MutationObserver(redraw);
  themed.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class"] });
  // a theme's style sheets arrive some time after it is announced: look now and then whether the colours are still those drawn
  const looking = setInterval(() => {
    if (drawn && canvas.clientWidth && JSON.stringify(palette(el)) !== drawn) redraw();
  }, 400);
  const destroy = () => {
    cancelAnimationFrame(frame);
    resized.disconnect();
    themed.disconnect();
    clearInterval(looking);
  };
  /**
   * Calls back whenever it was drawn in other colours than before; returns what undoes that.
   * @param {() => void} callback
   */
  const onTheme = (callback) => {
    callbacks.add(callback);
    return () => callbacks.delete(callback);
  };
  return { canvas, redraw, destroy, onTheme, colours: () => palette(el) };
}

/**
 * About `count` round numbers from `lo` to `hi`.
 * @param {number} lo
 * @param {number} hi
 * @param {number} count
 */
export function ticks(lo, hi, count) {
  const rough = (hi - lo) / Math.max(count, 1);
  if (!(rough > 0) || !Number.isFinite(rough)) return [lo];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 2.5, 5].find((m) => m * power >= rough) ?? 10) * power;
  const found = [];
  for (let i = Math.ceil(lo / step - 1e-9); i * step <= hi + step * 1e-9; i += 1) found.push(i * step);
  return found;
}

/**
 * A tick's number with no more digits than it needs.
 * @param {number} value
 */
export function label(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const long = size >= 1e4 || size < 1e-3;
  const text = long ? value.toExponential(1).replace(/\.0e/, "e").replace("e+", "e") : `${+value.toPrecision(6)}`;
  return text.replaceAll("-", "−");
}

/**
 * Powers of ten from `lo` to `hi`, at most about eight.
 * @param {number} lo
 * @param {number} hi
 */
export function decades(lo, hi) {
  const [first, last] = [Math.ceil(Math.log10(lo) - 1e-9), Math.floor(Math.log10(hi) + 1e-9)];
  const step = Math.max(1, Math.ceil((last - first) / 8));
  const found = [];
  for (let k = first; k <= last; k += step) found.push(10 ** k);
  return found;
}

/**
 * A float32 array from a trait of bytes.
 * @param {DataView} view
 */
export function floats(view) {
  if (!view?.byteLength) return new Float32Array(0);
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

/**
 * A number out of JSON, which has no infinities.
 * @param {number | "inf" | "-inf" | null} value
 */
export function numeric(value) {
  if (value === null) return NaN;
  return value === "inf" ? Infinity : value === "-inf" ? -Infinity : Number(value);
}

/**
 * Sends messages with a running number, at most `flying` of them unanswered; of those that wait, the last one wins. The
 * other side answers with the number. `leaving(seq)` is called for each that is sent.
 *
 * A release waits until all that was sent before it is answered: JupyterLab sends the first messages to the kernel's main thread
 * and later ones to another, where they would be handled first, and a range that was let go would be held again.
 * @param {Pick<Model<object>, "send">} model
 * @param {(seq: number) => void} leaving
 */
export function sender(model, leaving, flying = 4) {
  let sent = 0;
  let newest = 0;
  /** @type {Set<number>} */
  const unanswered = new Set();
  /** @type {Omit<Gesture, "seq"> | null} */
  let waiting = null;
  /** @param {Omit<Gesture, "seq">} message */
  const send = (message) => {
    if (unanswered.size >= (message.event === "release" ? 1 : flying)) {
      waiting = message;
      return;
    }
    waiting = null;
    sent += 1;
    unanswered.add(sent);
    leaving(sent);
    model.send({ ...message, seq: sent });
  };
  /**
   * Takes note of an answer; true if nothing newer is on its way.
   * @param {number} seq
   */
  const answer = (seq) => {
    unanswered.delete(seq);
    newest = Math.max(newest, seq);
    if (waiting) send(waiting);
    return newest === sent;
  };
  return { send, answer };
}

/**
 * Marks the element of a view whose kernel has gone, for the style sheet to say what to do, and lets nothing in it be focused;
 * returns what undoes the watching. Needed where a module's view stands by itself: front ends mark their own widgets only.
 * @param {Pick<Model<object>, "on" | "off">} model
 * @param {HTMLElement} el
 */
export function watchKernel(model, el) {
  /** @this {{ model?: { comm_live?: boolean } } | undefined} the view, which anywidget calls back with */
  const look = function () {
    const lost = !this?.model?.comm_live;
    el.classList.toggle("qkit-lost", lost);
    for (const child of el.children) child.toggleAttribute("inert", lost);
  };
  model.on("comm_live_update", look);
  return () => model.off("comm_live_update", look);
}

/**
 * A callback for every change of the named traits; returns what undoes the subscription.
 * @template Traits
 * @param {Model<Traits>} model
 * @param {(keyof Traits & string)[]} names
 * @param {() => void} callback
 */
export function follow(model, names, callback) {
  const events = names.map((name) => /** @type {const} */ (`change:${name}`));
  for (const event of events) model.on(event, callback);
  return () => {
    for (const event of events) model.off(event, callback);
  };
}

/**
 * Marks the element as standing on a dark page, also where a front end (marimo) puts it into a shadow tree, which the style
 * sheet's rules for ancestors do not reach. Returns what ends it.
 * @param {HTMLElement} el
 */
export function darkness(el) {
  const look = () => {
    const [body, root] = [document.body, document.documentElement];
    const dark =
      body.dataset.jpThemeLight === "false" ||
      root.getAttribute("theme") === "dark" ||
      [body, root].some((node) => ["dark", "dark-theme", "vscode-dark"].some((name) => node.classList.contains(name)));
    el.classList.toggle("qkit-dark", dark);
  };
  const looking = new MutationObserver(look);
  for (const node of [document.body, document.documentElement])
    looking.observe(node, { attributes: true, attributeFilter: ["class", "theme", "data-jp-theme-light"] });
  look();
  return () => looking.disconnect();
}
