"""The diagnosis as steps that a person walks through: question, what was measured, a picture, what it means, what to do."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import ipywidgets
import numpy as np
import pandas as pd
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qkit.diagnosis.candidates import OUTSIDE, Cause
from qkit.diagnosis.remedies import Remedy
from qkit.diagnosis.result import Diagnosis
from qkit.diagnosis.verdict import TOLERANCE
from qkit.editing import History
from qkit.errors import DataError, QkitError
from qkit.metrics import Interval, Scores
from qkit.plan import FLOAT, Plan
from qkit.report import pictures
from qkit.report.data import make
from qkit.report.files import check_path, write
from qkit.report.words import CAUSES, VERDICTS
from qkit.report.worst import describe
from qkit.widgets.panel import Panel, button, row, shown
from qkit.widgets.words import change_words, facts, score_words, units
from qkit.widgets.work import STATE

if TYPE_CHECKING:
    from qkit.report.data import Report
    from qkit.study import Study

#: Causes that are shown one by one.
_MOST_CAUSES = 8
_ON = "Go on: what part of it costs the score, where, and why. The cheap cures come before any training."


@dataclass(frozen=True)
class GuideStep:
    """One step of the walk.

    Attributes
    ----------
    title
        Shown in the list of steps.
    question
        What is being asked.
    measured
        What was measured, as rows of a table.
    meaning, then
        What it means, and what to do next.
    draw
        Draws the picture on an ``ax``; None where there is none.
    caption
        What the picture shows.
    remedies
        That can be applied here.
    """

    title: str
    question: str
    measured: Sequence[Sequence[str]]
    meaning: str
    then: str
    draw: Callable[[Axes], Any] | None = None
    height: float = 2.4
    caption: str = ""
    remedies: tuple[Remedy, ...] = field(default_factory=tuple)


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
        self, study: Study, diagnosis: Diagnosis | None = None, *, tolerance: float = TOLERANCE, batches: int | None = None
    ) -> None:
        self._origin, self._tolerance, self._batches = study, tolerance, batches
        self.diagnosis: Diagnosis | None = None
        self.steps: tuple[GuideStep, ...] = ()
        try:
            base = study.plan
        except DataError:
            base = FLOAT  # nothing can be calibrated: the diagnosis says why
        self.history = History((base,))
        self._asking = False
        self._names: dict[Plan, tuple[Remedy, ...]] = {base: ()}
        self.scores: Scores | None = None
        self._build()
        self._walk = row(self._back, self._list, self._forth)
        super().__init__(self._walk, self._text, self._picture, self._buttons, self._effect, self._ending)
        self.observe(lambda _: self._present(), "step")
        self._walk.layout.display = self._ending.layout.display = "none"
        if diagnosis is None:
            self.diagnose()
        else:
            self._take(diagnosis)

    def _build(self) -> None:
        self._back = button("back", "The step before", icon="arrow-left")
        self._forth = button("next", "The next step", icon="arrow-right")
        self._list = ipywidgets.Dropdown(layout=ipywidgets.Layout(width="min(520px, 100%)"))
        self._back.on_click(lambda _: self._to(self.step - 1))
        self._forth.on_click(lambda _: self._to(self.step + 1))
        self._list.observe(lambda change: self._to(change["new"]), "value")
        self._text, self._picture, self._effect = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self._picture.add_class("qkit-picture")
        self._buttons = ipywidgets.VBox()
        self._apply: list[tuple[Remedy, ipywidgets.Button]] = []
        self._undo = button("undo", "Take the last remedy back", icon="undo")
        self._redo = button("redo", "Apply it again", icon="repeat")
        self._undo.on_click(lambda _: self._pressed(self.undo))
        self._redo.on_click(lambda _: self._pressed(self.redo))
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

    def stopped(self, what: str) -> None:
        """Cancelled before there was anything to show: the diagnosis can be started again."""
        super().stopped(what)
        self._unanswered()

    def show_error(self, error: Exception) -> None:
        """Under the widget; the step is shown again, or the way to try once more."""
        super().show_error(error)
        self._unanswered()

    def _unanswered(self) -> None:
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
        if self.diagnosis is None:
            raise QkitError("there is no diagnosis yet: wait for it, or start it again.")
        target, diagnosis, tolerance, batches = check_path(path), self.diagnosis, self._tolerance, self._batches
        study = self._diagnosed

        if self._asking:
            self._unanswered()

        def run() -> Report:
            return make(study, diagnosis=diagnosis, tolerance=tolerance, batches=batches, progress=False)

        def keep(report: Report) -> None:
            write(report, target)
            where = html.escape(str(target))
            self._written.value = f'Written to <a href="{quote(str(target))}" target="_blank" rel="noopener">{where}</a>.'

        self._written.value = ""
        self.work("measuring for the report", run, keep)

    # from the front end

    @shown
    def _pressed(self, action: Callable[[], None]) -> None:
        action()

    def _to(self, step: int | None) -> None:
        if step is not None and self.steps:
            self.step = step

    # the state

    def _take(self, diagnosis: Diagnosis) -> None:
        self.diagnosis, self._diagnosed = diagnosis, self.study
        self.steps = guide_steps(self._diagnosed, diagnosis, self._tolerance)
        self._list.options = [(f"{i}. {step.title}", i - 1) for i, step in enumerate(self.steps, 1)]
        self._asking = False
        self._walk.layout.display = ""
        self.step = 0
        self._present()
        self._measure()

    def _go(self, history: History) -> None:
        with STATE:
            self.history = history
            if self._asking:
                self._unanswered()  # measuring takes the place of a diagnosis that ran
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
        metric = scores.metric
        rows = [
            ["float", score_words(scores["float"], metric), ""],
            ["as opened", score_words(scores["as opened"], metric), ""],
            ["now", score_words(scores["now"], metric), _named(self.applied)],
        ]
        words = []
        if self.history.at:
            words.append(f"The last step: {change_words(scores.loss('before', against='now'), metric)}.")
            words.append(f"All together: {change_words(scores.loss('as opened', against='now'), metric)}.")
        words.append(f"Still lost against float: {_loss(scores.loss('now'), metric)}; {scores.n} evaluation samples, paired.")
        self._effect.value = facts(rows, ["", metric, "remedies applied"]) + f'<div class="qkit-note">{" ".join(words)}</div>'

    def _present(self) -> None:
        if not self.steps:
            return
        step = self.steps[self.step]
        self._list.value = self.step
        self._back.disabled, self._forth.disabled = self.step == 0, self.step == len(self.steps) - 1
        parts = [f"<h3>{html.escape(step.question)}</h3>", facts(step.measured)]
        parts += [f"<p><b>What it means.</b> {html.escape(step.meaning)}</p>"] if step.meaning else []
        parts += [f"<p><b>What to do next.</b> {html.escape(step.then)}</p>"] if step.then else []
        self._text.value = "".join(parts)
        drawn = "" if step.draw is None else pictures.svg(_call, step.draw, width=8.6, height=step.height)
        self._picture.value = drawn + (f'<div class="qkit-note">{html.escape(step.caption)}</div>' if step.caption else "")
        self._apply = [(remedy, self._button(remedy)) for remedy in step.remedies]
        rows = [row(knob, ipywidgets.HTML(html.escape(remedy.text))) for remedy, knob in self._apply]
        self._buttons.children = [*rows, row(self._undo, self._redo)] if rows else []
        self._ending.layout.display = "" if self.step == len(self.steps) - 1 else "none"
        self._update_buttons()

    def _button(self, remedy: Remedy) -> ipywidgets.Button:
        where = f" at {remedy.layer}" if remedy.layer else " everywhere"
        knob = button(f"apply {remedy.kind}{where}", remedy.text, icon="check")
        knob.on_click(lambda _: self._pressed(lambda: self.apply(remedy)))
        return knob

    def _update_buttons(self) -> None:
        for remedy, knob in self._apply:
            knob.disabled = not remedy.changes or remedy in self.applied
        self._undo.disabled, self._redo.disabled = not self.history.can_undo, not self.history.can_redo

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

    def __repr__(self) -> str:
        if self.diagnosis is None:
            return "Guide(not diagnosed yet)"
        return f"Guide({self.diagnosis.verdict.name}, {len(self.steps)} steps, {len(self.applied)} remedies applied)"


def guide_steps(study: Study, found: Diagnosis, tolerance: float = TOLERANCE) -> tuple[GuideStep, ...]:
    """The diagnosis as steps, in the order in which it asks."""
    metric = found.metric
    meaning = VERDICTS[found.verdict.name]
    then = _ON if found.verdict.name in ("quantization", "both") else meaning.then
    steps = [_gate(study, found), _fork(found, study.narrow, meaning.meaning, then, tolerance)]
    if found.parts is not None:
        steps.append(_parts(found, tolerance))
    inside = [cause for cause in found.causes if cause.kind not in OUTSIDE]
    if inside:
        steps.append(_where(found, inside, tolerance))
        steps += [_why(study, cause, number, metric) for number, cause in enumerate(inside[:_MOST_CAUSES], 1)]
    steps.append(_remedies(found))
    steps.append(_end(found))
    return tuple(steps)


def _gate(study: Study, found: Diagnosis) -> GuideStep:
    outside = [cause for cause in found.causes if cause.kind in OUTSIDE]
    rows = [[cause.kind, f"{cause.layer + ': ' if cause.layer else ''}{cause.evidence}"] for cause in outside]
    rows += [
        [f"{cause.kind}, said and not measured", ": ".join(part for part in (cause.layer, cause.evidence) if part)]
        for cause in found.findings[:5]
    ]
    rows += [["remark", remark] for remark in study.remarks]
    graph = f"folded graph and model differ by {study.graph.deviation:.1e} relative"
    rows.append(["graph", graph])
    if study.expected is not None:
        rows.append(["expected of float", units(found.metric).score(study.expected)])
    if outside:
        text = " ".join(CAUSES[cause.kind] for cause in outside)
        then = " ".join(cause.remedy.text for cause in outside)
    elif found.verdict.name in ("not-quantization", "both"):
        text, then = found.verdict.reason, VERDICTS[found.verdict.name].then
    else:
        text = "Nothing is wrong before quantization: numbers are finite, two passes agree, the graph equals the model."
        then = "Go on: compare 16 bits with 8."
    remedies = tuple(cause.remedy for cause in outside if cause.remedy.changes)
    return GuideStep("before quantization", "Is anything wrong before quantization?", rows, text, then, remedies=remedies)


def _fork(found: Diagnosis, narrow: str, meaning: str, then: str, tolerance: float) -> GuideStep:
    verdict = found.verdict
    rows = [["verdict", verdict.name], ["because", verdict.reason]]
    losses = {"int16": verdict.wide, narrow: verdict.narrow}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    rows += [[f"{name} loses", _loss(loss, found.metric)] for name, loss in known.items()]
    draw = partial(_bars, known, found.metric, tolerance, "loss against float") if known else None
    return GuideStep("16 bits, then fewer", "Is it quantization?", rows, meaning, then, draw, 1.7)


def _parts(found: Diagnosis, tolerance: float) -> GuideStep:
    assert found.parts is not None
    parts = {
        "weights alone": found.parts.weights,
        "activations alone": found.parts.activations,
        "the same ranges, 16-bit steps": found.parts.clipping,
    }
    greatest = max(list(parts)[:2], key=lambda name: parts[name].value)
    text = f"Most is lost by the {greatest.removesuffix(' alone')}."
    if found.parts.clipping.value > tolerance:
        text += " A part is lost at the ends of the ranges, where finer steps do not help."
    else:
        text += " The ends of the ranges cost nothing: it is the steps."
    rows = [[name, _loss(loss, found.metric)] for name, loss in parts.items()]
    draw = partial(_bars, parts, found.metric, tolerance, "loss against float")
    return GuideStep("weights or activations", "What part of it costs the score?", rows, text, "Go on: which tensors.", draw, 2.0)


def _where(found: Diagnosis, causes: Sequence[Cause], tolerance: float) -> GuideStep:
    alone = {cause.tensor: cause.alone for cause in causes if cause.alone is not None and cause.tensor}
    rows = [[tensor, f"loses {_loss(loss, found.metric)} quantized alone"] for tensor, loss in alone.items()]
    rows += [[tensor, f"{sqnr:.0f} dB: looks bad and costs nothing"] for tensor, sqnr in found.harmless]
    text = "These tensors cost score by themselves." if alone else "No tensor costs much by itself; many together do."
    if found.harmless:
        text += " A low signal to noise ratio is not enough to be a cause."
    draw = partial(_bars, alone, found.metric, tolerance, "loss with this tensor alone quantized") if alone else None
    return GuideStep("which tensors", "Where is it lost?", rows, text, "Go on: why there.", draw, 1.0 + 0.32 * len(alone))


def _why(study: Study, cause: Cause, number: int, metric: str) -> GuideStep:
    rows = [["cause", cause.kind], ["where", cause.tensor or "the whole network"], ["evidence", cause.evidence]]
    if cause.alone is not None:
        rows.append(["it loses alone", _loss(cause.alone, metric)])
    if cause.alone_gain is not None:
        rows.append(["of that the remedy recovers", change_words(cause.alone_gain, metric)])
    if cause.gain is not None:
        rows.append(["in the whole network it recovers", change_words(cause.gain, metric)])
    draw, caption = None, ""
    if cause.tensor:
        step = study.graph.step(cause.tensor)
        entry = describe(study.graph, study.plan, step.name, study.observe(progress=False), [])
        if cause.tensor == step.weight and entry["weight"] is not None:
            draw, caption = partial(_drawn, pictures.channels, entry), pictures.channels_caption(entry)
        elif entry["histogram"] is not None:
            draw, caption = partial(_drawn, pictures.histogram, entry), pictures.histogram_caption(entry)
    question = f"Why at {cause.layer}?" if cause.layer else "Why everywhere?"
    then = cause.remedy.text if cause.remedy.changes else f"Yours to do: {cause.remedy.text}"
    return GuideStep(
        f"cause {number}: {cause.kind}", question, rows, CAUSES[cause.kind], then, draw, 2.5, caption, (cause.remedy,)
    )


def _remedies(found: Diagnosis) -> GuideStep:
    rows = [
        [str(i), f"{r.kind}{f' at {r.layer}' if r.layer else ' everywhere'}: {r.text}"] for i, r in enumerate(found.remedies, 1)
    ]
    if not found.remedies:
        return GuideStep(
            "what to do", "What is there to do?", [["remedies", "none that helps by more than chance"]], "", found.qat
        )
    if not any(remedy.changes for remedy in found.remedies):
        text = "What is wrong lies before quantization, in the model or its inputs: no change of a plan puts it right."
        return GuideStep(
            "what to do", "What is there to do?", rows, text, "Put it right, then make a new study.", remedies=found.remedies
        )
    text = "These were measured on the evaluation samples, the cheapest first; they are meant to be applied in this order."
    if found.best_loss is not None:
        text += f" With all of them, {_loss(found.best_loss, found.metric)} are still lost."
    then = "Apply them one by one and watch the score below; every step can be undone."
    return GuideStep("what to do", "What is the cheapest thing that fixes it?", rows, text, then, remedies=found.remedies)


def _end(found: Diagnosis) -> GuideStep:
    rows = [["verdict", found.verdict.name], ["samples", str(found.samples)], ["evaluations spent", str(found.evaluations)]]
    rows += [["remark", remark] for remark in found.remarks]
    then = "Write the report of the study as diagnosed, and hand it on; or diagnose again with the remedies applied."
    return GuideStep("training and report", "Is quantization-aware training needed?", rows, found.qat, then)


def _loss(loss: Interval, metric: str) -> str:
    return units(metric).amount(loss.value, loss.low, loss.high)


def _named(remedies: Sequence[Remedy]) -> str:
    return "; ".join(f"{r.kind}{f' at {r.layer}' if r.layer else ''}" for r in remedies) or "none"


def _call(draw: Callable[[Axes], Axes], ax: Axes) -> Axes:
    return draw(ax)


def _drawn(draw: Callable[..., Axes], entry: dict[str, Any], ax: Axes) -> Axes:
    return draw(entry, ax=ax)


def _bars(losses: dict[str, Interval], metric: str, tolerance: float, label: str, ax: Axes) -> Axes:
    """Losses with their intervals, against the band that counts as close."""
    u = units(metric)
    names = list(losses)
    values = np.array([u.factor * losses[name].value for name in names])
    ends = np.array([[u.factor * (loss.value - loss.low), u.factor * (loss.high - loss.value)] for loss in losses.values()]).T
    ends = np.where(np.isfinite(ends), np.maximum(ends, 0.0), 0.0)
    ax.axvspan(-u.factor * tolerance, u.factor * tolerance, color=pictures.GOOD, alpha=0.16, lw=0)
    ax.barh(np.arange(len(names)), values, height=0.55, color=pictures.NARROW_COLOUR, alpha=0.8, lw=0)
    ax.errorbar(values, np.arange(len(names)), xerr=ends, fmt="none", ecolor=pictures.INK, elinewidth=1.0, capsize=3)
    ax.axvline(0, color=pictures.MUTED, lw=0.8)
    ax.set_yticks(range(len(names)), [pictures.short(name) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel(f"{label}{f' ({u.points})' if u.points else ''}; shaded: within the tolerance")
    ax.grid(axis="x")
    return ax
