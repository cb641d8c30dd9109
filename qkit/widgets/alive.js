// A widget that lives hides its static stand-in: the picture and the table among the outputs of its cell. One whose kernel is
// gone says so.
import { guarded } from "./common.js";

/** @import { Model, Tuner } from "./types" */

/** Milliseconds after which a kernel that does not answer is taken for gone. */
const PATIENCE = 1500;

/**
 * Widgets inside widgets mark the same outputs: the last one to go takes the mark along.
 * @param {HTMLElement} outputs
 * @param {number} change
 */
function count(outputs, change) {
  const alive = Number(outputs.dataset.qkitAlive ?? 0) + change;
  outputs.dataset.qkitAlive = String(alive);
  outputs.classList.toggle("qkit-live", alive > 0);
}

/**
 * Marks the outputs around the element until what it returns is called.
 * @param {HTMLElement} el
 */
export function alive(el) {
  let frame = 0;
  /** @type {HTMLElement | null} */
  let outputs = null;
  const mark = guarded(el, () => {
    // the front end puts the element into the page after its view is made
    if (!el.isConnected) {
      frame = requestAnimationFrame(mark);
      return;
    }
    outputs = el.closest(".jp-OutputArea, .output_container, .output");
    if (outputs) count(outputs, 1);
  });
  mark();
  return () => {
    cancelAnimationFrame(frame);
    if (outputs) count(outputs, -1);
  };
}

/**
 * Asks the kernel whether it still knows the widget, whenever the front end says that their connection has changed; without an
 * answer the element gets the class "qkit-lost". Returns what ends it.
 * @param {Model<Tuner>} model
 * @param {HTMLElement} el
 */
export function watched(model, el) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let waiting;
  /** @param {boolean} gone */
  const show = (gone) => {
    el.classList.toggle("qkit-lost", gone);
    for (const part of el.children) part.toggleAttribute("inert", gone);
  };
  const ask = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => show(true), PATIENCE);
    try {
      model.send({ event: "ping" });
    } catch {
      // the kernel is not up yet: there will be no answer
    }
  };
  const answered = () => {
    clearTimeout(waiting);
    show(false);
  };
  model.on("comm_live_update", ask);
  model.on("msg:custom", answered);
  return () => {
    clearTimeout(waiting);
    model.off("comm_live_update", ask);
    model.off("msg:custom", answered);
  };
}
