// Shows nothing; marks the cell's outputs as living, so that the static stand-in (a picture, then a table) hides.
import { guarded } from "./common.js";

/** Widgets inside widgets mark the same outputs: the last one to go takes the mark along. */
function count(outputs, change) {
  const alive = Number(outputs.dataset.qkitAlive ?? 0) + change;
  outputs.dataset.qkitAlive = alive;
  outputs.classList.toggle("qkit-live", alive > 0);
}

export default {
  render({ el }) {
    el.style.display = "none";
    let frame = 0;
    let outputs = null;
    const mark = guarded(el, () => {
      // the front end puts the element into the page after this returns
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
  },
};
