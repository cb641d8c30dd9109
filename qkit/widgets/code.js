// Python code with a button that copies it.
import { follow, guarded, make } from "./common.js";

/** @import { CodeBox, View } from "./types" */

export default {
  /** @param {View<CodeBox>} view */
  render({ model, el }) {
    el.classList.add("qkit", "qkit-code");
    const text = make("pre", { tabindex: "0", "aria-label": "Python code for the current plan" });
    const copy = make("button", { type: "button" }, "copy");
    el.append(text, copy);
    const write = guarded(el, () => {
      text.textContent = model.get("code");
    });
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(model.get("code"));
        copy.textContent = "copied";
      } catch {
        // pages without leave to write the clipboard: mark the text, so that the keyboard copies it
        getSelection()?.selectAllChildren(text);
        copy.textContent = "press Ctrl+C";
      }
      setTimeout(() => (copy.textContent = "copy"), 2000);
    });
    write();
    return follow(model, ["code"], write);
  },
};
