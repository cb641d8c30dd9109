// Shows nothing; marks the cell's outputs as living, so that the static stand-in (a picture, then a table) hides.
import { alive } from "./alive.js";

/** @import { View } from "./types" */

export default {
  /** @param {View<object>} view */
  render({ el }) {
    el.style.display = "none";
    return alive(el);
  },
};
