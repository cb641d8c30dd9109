// What the widgets' modules share: errors in place, colours of the theme, a canvas that keeps its resolution, axes, and
// messages of which the last one wins.

/** Runs `work`, and shows what it throws under the widget: front ends would only log it. */
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

/** An element with attributes, properties that start with a dot, and children. */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith(".")) node[name.slice(1)] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** The theme's colours as the style sheet has them for this element. */
export function palette(el) {
  const style = getComputedStyle(el);
  const names = ["ink", "muted", "lines", "page", "wide", "narrow", "other", "bad", "good", "mark"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--qkit-${name}`).trim()]));
}

/**
 * A canvas as wide as its parent that calls `draw(context, width, height, colours)` once a frame at most, whenever `redraw`
 * is called, its size changes, or the theme does.
 */
export function surface(el, parent, height, draw) {
  const canvas = make("canvas", { role: "img" });
  canvas.style.cssText = `display:block;width:100%;height:${height}px`;
  parent.append(canvas);
  let frame = 0;
  let size = height;
  let drawn = "";
  const paint = guarded(el, () => {
    frame = 0;
    const width = canvas.clientWidth;
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(width * ratio), Math.round(size * ratio)];
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, size);
    context.font = "12px var(--jp-ui-font-family, system-ui, sans-serif)".replace(/var\([^,]*,\s*(.*)\)/, "$1");
    const colours = palette(el);
    drawn = JSON.stringify(colours);
    draw(context, width, size, colours);
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
  const resize = (value) => {
    size = value;
    canvas.style.height = `${value}px`;
    redraw();
  };
  return { canvas, redraw, destroy, resize };
}

/** About `count` round numbers from `lo` to `hi`. */
export function ticks(lo, hi, count) {
  const rough = (hi - lo) / Math.max(count, 1);
  if (!(rough > 0) || !Number.isFinite(rough)) return [lo];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= rough) * power;
  const found = [];
  for (let i = Math.ceil(lo / step - 1e-9); i * step <= hi + step * 1e-9; i += 1) found.push(i * step);
  return found;
}

/** A tick's number with no more digits than it needs. */
export function label(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const long = size >= 1e4 || size < 1e-3;
  const text = long ? value.toExponential(1).replace(/\.0e/, "e").replace("e+", "e") : `${+value.toPrecision(6)}`;
  return text.replaceAll("-", "−");
}

/** Powers of ten from `lo` to `hi`, at most about eight. */
export function decades(lo, hi) {
  const [first, last] = [Math.ceil(Math.log10(lo) - 1e-9), Math.floor(Math.log10(hi) + 1e-9)];
  const step = Math.max(1, Math.ceil((last - first) / 8));
  const found = [];
  for (let k = first; k <= last; k += step) found.push(10 ** k);
  return found;
}

/** A float32 array from a trait of bytes. */
export function floats(view) {
  if (!view?.byteLength) return new Float32Array(0);
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

/** A number out of JSON, which has no infinities. */
export function numeric(value) {
  if (value === null || value === undefined) return NaN;
  return value === "inf" ? Infinity : value === "-inf" ? -Infinity : Number(value);
}

/**
 * Sends messages with a running number, at most `flying` of them unanswered; of those that wait, the last one wins. The
 * other side answers with the number. `leaving(seq)` is called for each that is sent.
 */
export function sender(model, leaving, flying = 4) {
  let sent = 0;
  let answered = 0;
  let waiting = null;
  const send = (message) => {
    if (sent - answered >= flying) {
      waiting = message;
      return;
    }
    waiting = null;
    sent += 1;
    leaving(sent);
    model.send({ ...message, seq: sent });
  };
  /** Takes note of an answer; true if nothing newer is on its way. */
  const answer = (seq) => {
    answered = Math.max(answered, seq);
    if (waiting) send(waiting);
    return answered === sent;
  };
  return { send, answer };
}

/** A callback for every change of the named traits, with what undoes the subscription. */
export function follow(model, names, callback) {
  const events = names.map((name) => `change:${name}`);
  for (const event of events) model.on(event, callback);
  return () => {
    for (const event of events) model.off(event, callback);
  };
}
