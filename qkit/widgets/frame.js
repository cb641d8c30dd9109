// Shows nothing; marks the cell's outputs as living, so that the static stand-in (a picture, then a table) hides. Where the
// kernel has gone, the style sheet says what to do, and nothing in the panel can be focused any more.
import { alive } from "./alive.js";
import { guarded } from "./common.js";

/** @import { View } from "./types" */

/**
 * Whether the front end has marked a panel as one without a kernel's end.
 * @param {Element} panel
 */
const lost = (panel) => panel.classList.contains("jupyter-widgets-disconnected");

export default {
  /** @param {View<object>} view */
  render({ el }) {
    el.style.display = "none";
    let frame = 0;
    /** @type {MutationObserver | null} */
    let watching = null;
    /** @param {Element} panel */
    const watch = (panel) => {
      const look = () => {
        for (const child of panel.children) child.toggleAttribute("inert", lost(panel));
      };
      watching = new MutationObserver(look);
      watching.observe(panel, { attributes: true, attributeFilter: ["class"] });
      look();
    };
    const find = guarded(el, () => {
      // the front end puts the element into the page after this returns
      if (!el.isConnected) {
        frame = requestAnimationFrame(find);
        return;
      }
      const panel = el.closest(".qkit-panel");
      if (panel) watch(panel);
    });
    find();
    const dead = alive(el);
    return () => {
      watching?.disconnect();
      cancelAnimationFrame(frame);
      dead();
    };
  },
};
