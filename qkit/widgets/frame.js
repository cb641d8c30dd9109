// Shows nothing; hides the static stand-in (a picture and, after it, a table) while the widget lives.
import {} from "./common.js";

export default {
  render({ model, el }) {
    const name = model.get("stand_in");
    const output = ".jp-OutputArea-child";
    const rule = document.createElement("style");
    rule.textContent = `.${name}, ${output}:has(.${name}), ${output}:has(+ ${output} .${name}) { display: none !important; }`;
    document.head.append(rule);
    el.style.display = "none";
    return () => rule.remove();
  },
};
