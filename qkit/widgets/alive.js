// A widget that lives hides its static stand-in: the picture and the table among the outputs of its cell.
import { guarded } from "./common.js";

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
