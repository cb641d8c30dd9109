// Python code with a button that copies it.
import { make } from "./common.js";

/** A box with the code; `write` shows other code. */
export function codeBox() {
  const text = make("pre", { tabindex: "0", "aria-label": "Python code for the current plan" });
  const copy = make("button", { type: "button" }, "copy");
  const box = make("div", { class: "qkit-code" }, text, copy);
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent ?? "");
      copy.textContent = "copied";
    } catch {
      // pages without leave to write the clipboard: mark the text, so that the keyboard copies it
      getSelection()?.selectAllChildren(text);
      copy.textContent = "press Ctrl+C";
    }
    setTimeout(() => (copy.textContent = "copy"), 2000);
  });
  /** @param {string} code */
  const write = (code) => {
    text.textContent = code;
  };
  return { box, write };
}
