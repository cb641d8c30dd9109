// Shows nothing; marks the cell's outputs as living, so that the static stand-in (a picture, then a table) hides.
import { guarded } from "./common.js";

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
      outputs?.classList.add("qkit-live");
    });
    mark();
    return () => {
      cancelAnimationFrame(frame);
      outputs?.classList.remove("qkit-live");
    };
  },
};
