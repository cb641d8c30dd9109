// Feature maps side by side: lanes on one colour scale, differences on another.
import { contextOf, floats, follow, guarded, label, make, watchKernel } from "./common.js";

/** @import { MapPlot, View } from "./types" */

export default {
  /** @param {View<MapPlot>} view */
  render({ model, el }) {
    el.classList.add("qkit");
    const maps = make("div", { class: "qkit-maps" });
    const keys = make("div", { class: "qkit-tools" });
    const said = make("div", { class: "qkit-note" });
    said.textContent = "\u00a0";
    el.append(maps, keys, said);

    /**
     * The colour of a share of the scale, opaque.
     * @param {Uint8Array} table
     * @param {number} share
     */
    const colour = (table, share) => {
      const k = 3 * Math.min(Math.max(Math.round(share * 255), 0), 255);
      return [table[k], table[k + 1], table[k + 2], 255];
    };
    const tables = () => {
      const view = model.get("colours");
      const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
      return [bytes.subarray(0, 768), bytes.subarray(768)];
    };

    const draw = guarded(el, () => {
      const [height, width] = model.get("shape");
      const values = floats(model.get("maps"));
      const titles = model.get("titles");
      if (!values.length) {
        maps.replaceChildren();
        keys.replaceChildren();
        return;
      }
      const [sequential, diverging] = tables();
      const scales = model.get("scales"); // for each map [from, to, diverging]
      maps.replaceChildren(
        ...titles.map((title, m) => {
          const canvas = make("canvas", { ".width": width, ".height": height, role: "img", "aria-label": title });
          canvas.style.aspectRatio = `${width} / ${Math.max(height, width / 12)}`;
          const context = contextOf(canvas);
          const image = context.createImageData(width, height);
          const [from, to, signed] = scales[m];
          for (let i = 0; i < width * height; i += 1) {
            const share = to > from ? (values[m * width * height + i] - from) / (to - from) : 0.5;
            image.data.set(colour(signed ? diverging : sequential, share), 4 * i);
          }
          context.putImageData(image, 0, 0);
          canvas.addEventListener("pointermove", (event) => {
            const box = canvas.getBoundingClientRect();
            const column = Math.min(Math.floor(((event.clientX - box.left) / box.width) * width), width - 1);
            const row = Math.min(Math.floor(((event.clientY - box.top) / box.height) * height), height - 1);
            if (column < 0 || row < 0) return;
            const at = titles.map((t, k) => `${t}: ${label(+values[k * width * height + row * width + column].toPrecision(4))}`);
            said.textContent = `row ${row}, column ${column}: ${at.join(", ")}`;
          });
          return make("figure", {}, make("figcaption", {}, title), canvas);
        }),
      );
      /**
       * @param {string} name
       * @param {Uint8Array} table
       * @param {MapPlot["scales"][number]} scale
       */
      const key = (name, table, [from, to]) => {
        const bar = make("canvas", { ".width": 256, ".height": 1 });
        bar.style.cssText = "width:160px;height:12px;border:1px solid var(--qkit-lines);vertical-align:middle";
        const context = contextOf(bar);
        const image = context.createImageData(256, 1);
        for (let i = 0; i < 256; i += 1) image.data.set(colour(table, i / 255), 4 * i);
        context.putImageData(image, 0, 0);
        return make("span", {}, `${name}: ${label(+from.toPrecision(3))} `, bar, ` ${label(+to.toPrecision(3))}`);
      };
      const plain = scales.find((s) => !s[2]);
      const signed = scales.find((s) => s[2]);
      keys.replaceChildren();
      if (plain) keys.append(key("values", sequential, plain));
      if (signed) keys.append(key("differences", diverging, signed));
    });
    draw();
    const undo = [watchKernel(model, el), follow(model, ["maps", "shape", "titles", "scales"], draw)];
    return () => {
      for (const stop of undo) stop();
    };
  },
};
