"""The diagnosis as steps that a person walks through: question, what was measured, a picture, what it means, what to do."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import ipywidgets
import pandas as pd
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qkit.diagnosis.answer import Diagnosis
from qkit.diagnosis.remedies import Remedy
from qkit.errors import DataError, QkitError
from qkit.execution.edits import History
from qkit.execution.metrics import metric_label
from qkit.execution.scores import Scores
from qkit.figures import drawing
from qkit.quant.plan import FLOAT, Plan
from qkit.report.contents.data import make
from qkit.report.writing import check_path, write
from qkit.widgets.composite import discard
from qkit.widgets.guide_steps import PARTS, GuideStep, guide_steps
from qkit.widgets.numbers import change_words, facts, loss_words, score_words
from qkit.widgets.panel import Panel, button, row
from qkit.widgets.stepper import State, Stepper
from qkit.widgets.work import STATE

if TYPE_CHECKING:
    from qkit.report.contents.data import Report
    from qkit.study import Study

#: Most characters of the places on a button.
_LONGEST_PLACE = 60


class Guide(Panel):
    """Walk through the diagnosis of a study, apply its remedies and see what each does, and write the report.

    The study stays as it is; `study` is a new one with the remedies applied.

    Parameters
    ----------
    study
        Calibrated, or about to be.
    diagnosis
        Of this study; by default it is diagnosed in the background.
    tolerance
        Loss that still counts as close.
    batches
        Evaluation batches to work on; None for all.
    """

    step = traitlets.Int(0)

    def __init__(
        self, study: Study, diagnosis: Diagnosis | None = None, *, tolerance: float | None = None, batches: int | None = None
    ) -> None:
        self._given, self._tolerance, self._batches = study, tolerance, batches
        self.diagnosis: Diagnosis | None = None
        self._diagnosed: Study | None = None
        self.steps: tuple[GuideStep, ...] = ()
        try:
            base = study.plan
        except DataError:
            base = FLOAT  # nothing can be calibrated: the diagnosis says why
        self.history = History((base,))
        self._asking = False
        self._names: dict[Plan, tuple[Remedy, ...]] = {base: ()}
        self.scores: Scores | None = None
        self._seen: set[int] = set()
        self._build()
        self._walk = row(self._back, self._forth)
        super().__init__(self.stepper)
        # what is waited for is said between the buttons and what they measure
        frame, _, *below = self.trait_values()["children"]
        waiting = [each for each in below if each is self._working]
        right = [self._text, self._picture, self._buttons, *waiting, self._effect, self._ending, self._walk]
        panes = ipywidgets.Box([self.stepper, ipywidgets.VBox(right)])
        panes.add_class("qkit-walk")
        self.children = [frame, panes, *(each for each in below if each is not self._working)]
        self.add_class("qkit-guide")
        self.observe(lambda _: self._present(), "step")
        for part in (self._walk, self._ending, self.stepper):
            part.layout.display = "none"
        if diagnosis is None:
            self.diagnose()
        else:
            self._take(diagnosis)

    def _release(self) -> None:
        super()._release()
        self._diagnosed, self.steps = None, ()

    def _build(self) -> None:
        self._back = button("back", "The step before", icon="arrow-left")
        self._forth = button("next", "The next step", icon="arrow-right")
        self.stepper = Stepper()
        self._back.on_click(lambda _: self._to(self.step - 1))
        self._forth.on_click(lambda _: self._to(self.step + 1))
        self.stepper.observe(lambda change: self._to(change["new"]), "step")
        self._text, self._picture, self._effect = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self._picture.add_class("qkit-picture")
        self._buttons = ipywidgets.VBox()
        self._rows: list[ipywidgets.Box] = []
        self._apply: list[tuple[Remedy, ipywidgets.Button]] = []
        self._undo = button("undo", "Take the last remedy back", icon="undo")
        self._redo = button("redo", "Apply it again", icon="repeat")
        self._undo.on_click(lambda _: self._pressed(self.undo))
        self._redo.on_click(lambda _: self._pressed(self.redo))
        self._undoing = row(self._undo, self._redo)
        self._file = ipywidgets.Text("degradation.html", description="file", layout=ipywidgets.Layout(width="min(420px, 100%)"))
        self._write = button("write the report", "Measure what the report holds, and write it", icon="file-text")
        self._write.on_click(lambda _: self._pressed(lambda: self.report(self._file.value)))
        self._written = ipywidgets.HTML()
        self._again = button(
            "diagnose the study as it is now", "The diagnosis once more, with the remedies applied", icon="refresh"
        )
        self._again.on_click(lambda _: self._pressed(self.diagnose))
        self._ending = ipywidgets.VBox([row(self._file, self._write), row(self._again), self._written])

    @traitlets.validate("step")
    def _within(self, proposal: Any) -> int:
        return min(max(int(proposal["value"]), 0), max(len(self.steps) - 1, 0))

    # what it holds

    @property
    def plan(self) -> Plan:
        """The plan with the remedies applied."""
        return self.history.plan

    @property
    def study(self) -> Study:
        """A study with the remedies applied."""
        return self._origin if self.plan is self.history.base else self._origin.with_plan(self.plan)

    @property
    def applied(self) -> tuple[Remedy, ...]:
        """The remedies in the current plan, in the order in which they were applied."""
        return self._names[self.plan]

    # what one can do with it

    def diagnose(self) -> None:
        """Diagnose the study as it is now, in the background; cancelled, it keeps what was found."""
        study, tolerance, batches = self.study, self._tolerance, self._batches
        self._asking = True
        self._text.value = facts([["question", "Is it quantization, where, why, and what fixes it?"]])
        self.work("diagnosing", lambda: study.diagnose(tolerance=tolerance, batches=batches, progress=False), self._take)

    def _without_result(self) -> None:
        """The step is shown again, or the way to start the diagnosis once more."""
        self._asking = False
        if self.steps:
            self._present()
        else:
            self._text.value = ""
            self._ending.layout.display = ""

    def apply(self, remedy: Remedy) -> None:
        """Apply a remedy to the plan as it is, and measure what that does.

        Raises
        ------
        QkitError
            If the remedy changes no plan, or is applied already.
        """
        if not remedy.changes:
            raise QkitError(f"{remedy.kind} is not a change of a plan: {remedy.text}")
        if remedy in self.applied:
            raise QkitError(f"{remedy.kind} at {remedy.layer or 'all layers'} is applied already.")
        applied = (*self.applied, remedy)
        plan = remedy.plan(self.plan)
        self._names.setdefault(plan, applied)
        self._go(self.history.then(plan))

    def undo(self) -> None:
        """Take the last remedy back."""
        self._go(self.history.undone())

    def redo(self) -> None:
        """Apply again what was taken back."""
        self._go(self.history.redone())

    def report(self, path: str | Path) -> None:
        """Write the report of the study as diagnosed, in the background; ``.html``, ``.md``, ``.json`` or ``.csv``."""
        self._check_open()
        if self.diagnosis is None:
            raise QkitError("there is no diagnosis yet: wait for it, or start it again.")
        target, diagnosis, tolerance, batches = check_path(path), self.diagnosis, self._tolerance, self._batches
        study = self._diagnosed
        assert study is not None

        if self._asking:
            self._without_result()

        def run() -> Report:
            return make(study, diagnosis=diagnosis, tolerance=tolerance, batches=batches, progress=False)

        def keep(report: Report) -> None:
            write(report, target)
            where = html.escape(str(target))
            self._written.value = f'Written to <a href="{quote(str(target))}" target="_blank" rel="noopener">{where}</a>.'

        self._written.value = ""
        self.work("measuring for the report", run, keep)

    # from the front end

    def _to(self, step: int | None) -> None:
        if step is not None and self.steps:
            self.step = step

    # the state

    def _take(self, diagnosis: Diagnosis) -> None:
        self.diagnosis, self._diagnosed = diagnosis, self.study
        self.steps = guide_steps(self.study, diagnosis, self._tolerance)
        self.stepper.steps = [{"title": f"{i}. {step.title}", "part": PARTS[step.kind]} for i, step in enumerate(self.steps, 1)]
        self._seen.clear()
        self._asking = False
        self._walk.layout.display = self.stepper.layout.display = ""
        self.step = 0
        self._present()
        self._measure()

    def _go(self, history: History) -> None:
        with STATE:
            self._check_open()
            self.history = history
            if self._asking:
                self._without_result()  # measuring takes the place of a diagnosis that ran
            self._update_buttons()
            self._measure()
            self.changed()

    def _measure(self) -> None:
        """Scores of the plan as diagnosed, before and now; those known cost nothing."""
        if not self.diagnosis or not self.diagnosis.samples:
            return  # nothing can be scored
        plans = {"float": FLOAT, "as opened": self.history.base, "before": self.history.previous, "now": self.plan}
        origin, batches = self._origin, self._batches

        def keep(scores: Scores) -> None:
            self.scores = scores
            self._show_effect()

        self.work("scoring", lambda: origin.evaluate(plans, batches=batches, progress=False), keep)

    def _show_effect(self) -> None:
        scores = self.scores
        if scores is None:
            return
        metric, units = metric_label(scores.metric), scores.units
        rows = [
            ["float", score_words(scores["float"], units), ""],
            ["as opened", score_words(scores["as opened"], units), ""],
            ["now", score_words(scores["now"], units), _named(self.applied)],
        ]
        words = []
        if self.history.at:
            words.append(f"The last step: {change_words(scores.loss('before', against='now'), units)}.")
            words.append(f"All together: {change_words(scores.loss('as opened', against='now'), units)}.")
        words.append(f"Still lost against float: {loss_words(scores.loss('now'), units)}; {scores.n} evaluation samples, paired.")
        words += map(html.escape, scores.notes)
        self._effect.value = facts(rows, ["", metric, "remedies applied"]) + f'<div class="qkit-note">{" ".join(words)}</div>'

    def _present(self) -> None:
        if not self.steps:
            return
        step = self.steps[self.step]
        self._seen.add(self.step)
        self.stepper.step = self.step
        self._back.disabled, self._forth.disabled = self.step == 0, self.step == len(self.steps) - 1
        parts = [f"<h3>{html.escape(step.question)}</h3>", step.card or facts(step.measured)]
        parts += [f"<p><b>What it means.</b> {html.escape(step.meaning)}</p>"] if step.meaning else []
        parts += [f"<p><b>What to do next.</b> {html.escape(step.then)}</p>"] if step.then else []
        self._text.value = "".join(parts)
        drawn = "" if step.draw is None else drawing.svg(_call, step.draw, width=6.8, height=step.height)
        self._picture.value = drawn + (f'<div class="qkit-note">{html.escape(step.caption)}</div>' if step.caption else "")
        self._apply = [(remedy, self._button(remedy)) for remedy in step.remedies]
        before, self._rows = self._rows, [row(knob, ipywidgets.HTML(html.escape(r.text))) for r, knob in self._apply]
        self._buttons.children = [*self._rows, self._undoing] if self._rows else []
        discard(*before)
        self._ending.layout.display = "" if self.step == len(self.steps) - 1 else "none"
        self._update_buttons()

    def _button(self, remedy: Remedy) -> ipywidgets.Button:
        first, *others = (remedy.layer or "").split(", ")
        where = f" at {remedy.layer}" if remedy.layer else " everywhere"
        if len(where) > _LONGEST_PLACE and others:
            where = f" at {first} and {len(others)} more"
        knob = button(f"apply {remedy.kind}{where}", remedy.text, icon="check")
        knob.on_click(lambda _: self._pressed(lambda: self.apply(remedy)))
        return knob

    def _update_buttons(self) -> None:
        for remedy, knob in self._apply:
            knob.disabled = not remedy.changes or remedy in self.applied
        self._undo.disabled, self._redo.disabled = not self.history.can_undo, not self.history.can_redo
        self.stepper.states = [self._state(i) for i in range(len(self.steps))]

    def _state(self, step: int) -> State:
        if step == self.step:
            return "here"
        changing = [remedy for remedy in self.steps[step].remedies if remedy.changes]
        if changing and all(remedy in self.applied for remedy in changing):
            return "applied"
        return "seen" if step in self._seen else "open"

    # where there is no front end

    def draw(self, figure: Figure) -> None:
        """The picture of the current step, or of the verdict."""
        ax = figure.add_subplot()
        step = self.steps[self.step] if self.steps else None
        drawn = [s for s in (step, *self.steps) if s is not None and s.draw is not None]
        if not drawn:
            ax.text(0.5, 0.5, "not diagnosed yet", ha="center", va="center", transform=ax.transAxes)
            ax.set_axis_off()
            return
        assert drawn[0].draw is not None
        drawn[0].draw(ax)
        ax.set_title(drawn[0].question, loc="left", fontsize=10)

    def summary(self) -> pd.DataFrame:
        """All steps: question, what was measured, what it means."""
        rows = [
            (s.question, "; ".join(": ".join(part for part in line if part) for line in s.measured), s.meaning)
            for s in self.steps
        ]
        return pd.DataFrame(rows, columns=["question", "measured", "meaning"])

    def brief(self) -> str:
        """The verdict, and how many remedies are applied."""
        if self.diagnosis is None:
            return "not diagnosed yet"
        return f"{self.diagnosis.verdict.name}, {len(self.steps)} steps, {len(self.applied)} remedies applied"


def _named(remedies: Sequence[Remedy]) -> str:
    return "; ".join(f"{r.kind}{f' at {r.layer}' if r.layer else ''}" for r in remedies) or "none"


def _call(draw: Callable[[Axes], Axes], ax: Axes) -> Axes:
    return draw(ax)
