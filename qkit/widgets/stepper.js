// The steps of a walk: ticks and words say which are done, where one is, what is to come.
import { follow, guarded, make } from "./common.js";

/** @import { StepState, Stepper, View } from "./types" */

/** @type {Record<StepState, [string, string]>} */
const SAID = { here: ["▶", "here"], seen: ["✓", "seen"], applied: ["✓", "applied"], open: ["○", "not seen"] };
/** @type {Record<string, number>} */
const MOVES = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1, Home: -1e9, End: 1e9 };

export default {
  /** @param {View<Stepper>} view */
  render({ model, el }) {
    el.classList.add("qkit");
    const list = make("nav", { class: "qkit-steps", "aria-label": "steps of the diagnosis" });
    el.append(list);
    /** @type {HTMLButtonElement[]} */
    let buttons = [];

    /** @param {number} to */
    const choose = (to) => {
      if (to === model.get("step")) return;
      model.set("step", to);
      model.save_changes();
    };

    const mark = guarded(el, () => {
      const states = model.get("states");
      buttons.forEach((button, i) => {
        const state = states[i] ?? "open";
        const [tick, word] = SAID[state];
        button.dataset.state = state;
        button.tabIndex = state === "here" ? 0 : -1;
        if (state === "here") button.setAttribute("aria-current", "step");
        else button.removeAttribute("aria-current");
        const [before, , after] = button.children;
        before.textContent = tick;
        after.textContent = word;
      });
    });

    const fill = guarded(el, () => {
      const steps = model.get("steps");
      buttons = steps.map((step, i) => {
        const tick = make("span", { class: "qkit-tick", "aria-hidden": "true" });
        const button = make("button", { type: "button" }, tick, make("span", {}, step.title), make("small", {}));
        button.addEventListener("click", () => choose(i));
        return button;
      });
      const parts = [...new Set(steps.map((step) => step.part))];
      list.replaceChildren(
        ...parts.map((part) => {
          const items = buttons.filter((_, i) => steps[i].part === part).map((button) => make("li", {}, button));
          return make("div", { role: "group", "aria-label": part }, make("b", {}, part), make("ol", {}, ...items));
        }),
      );
      mark();
    });

    list.addEventListener("keydown", (event) => {
      const move = MOVES[event.key];
      const at = document.activeElement instanceof HTMLButtonElement ? buttons.indexOf(document.activeElement) : -1;
      if (move === undefined || at < 0) return;
      event.preventDefault();
      event.stopPropagation();
      const to = Math.min(Math.max(at + move, 0), buttons.length - 1);
      buttons[to].focus();
      choose(to);
    });

    fill();
    const undo = [follow(model, ["steps"], fill), follow(model, ["states"], mark)];
    return () => {
      for (const stop of undo) stop();
    };
  },
};
