// A weight's channels by themselves, as the explorer shows them.
import { channelPlot } from "./channels.js";
import { follow } from "./common.js";

/** @import { ChannelStrip, View } from "./types" */

const STRIP_HEIGHT = 150;

export default {
  /** @param {View<ChannelStrip>} view */
  render({ model, el }) {
    el.classList.add("qkit");
    /**
     * @template {keyof ChannelStrip} Name
     * @param {Name} name
     * @param {ChannelStrip[Name]} value
     */
    const set = (name, value) => {
      model.set(name, value);
      model.save_changes();
    };
    const plot = channelPlot(el, el, STRIP_HEIGHT, {
      ranges: () => model.get("ranges"),
      selected: () => model.get("selected"),
      log: () => model.get("log"),
      title: () => model.get("title"),
      ratio: () => "",
      worst: () => null,
      pick: (channel) => set("selected", channel),
      rescale: () => set("log", !model.get("log")),
    });
    const unfollow = follow(model, ["ranges", "selected", "log", "title"], plot.redraw);
    return () => {
      unfollow();
      plot.destroy();
    };
  },
};
