"""A diagnosis as the steps of a walk: question, what was measured, a picture, what it means, what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes

from qkit import style
from qkit.diagnosis.answer import Diagnosis
from qkit.diagnosis.candidates import OUTSIDE, Cause
from qkit.diagnosis.meanings import CAUSES, VERDICTS
from qkit.diagnosis.remedies import Remedy
from qkit.execution.statistics import Interval
from qkit.figures import tensors
from qkit.figures.entries import describe
from qkit.style import Units
from qkit.widgets.numbers import change_words, loss_words

if TYPE_CHECKING:
    from qkit.study import Study

#: The parts of a diagnosis, in its order; each kind of confirmed cause inside quantization has a step of its own.
StepKind = Literal["answer", "gate", "verdict", "parts", "tensors", "cause", "remedies", "training"]
#: The parts of the walk, by kind of step.
PARTS: Mapping[StepKind, str] = {
    "answer": "the answer", "gate": "how it was found", "verdict": "how it was found", "parts": "how it was found",
    "tensors": "how it was found", "cause": "how it was found", "remedies": "what to do", "training": "what to do",
}  # fmt: skip

#: Said where nothing is wrong before quantization.
SOUND = "Nothing is wrong before quantization: numbers are finite, two passes agree, the graph equals the model."

#: Kinds of causes that are shown one by one.
_MOST_KINDS = 8
_ON = "Go on: what part of it costs the score, where, and why. The cheap cures come before any training."


@dataclass(frozen=True)
class GuideStep:
    """One step of the walk.

    Attributes
    ----------
    kind
        Which part of the diagnosis it shows.
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
    card
        The answer's card as HTML; "" where the step has none.
    """

    kind: StepKind
    title: str
    question: str
    measured: Sequence[Sequence[str]]
    meaning: str
    then: str
    draw: Callable[[Axes], Any] | None = None
    height: float = 2.4
    caption: str = ""
    remedies: tuple[Remedy, ...] = field(default_factory=tuple)
    card: str = ""


def guide_steps(study: Study, found: Diagnosis, tolerance: float | None = None) -> tuple[GuideStep, ...]:
    """The diagnosis as steps: the answer, then how it was found in the order in which it asks, then what to do."""
    units = found.units
    tolerance = (found.verdict.tolerance or 0.0) if tolerance is None else tolerance
    meaning = VERDICTS[found.verdict.name]
    then = _ON if found.verdict.name in ("quantization", "both") else meaning.then
    steps = [_answer(found), _gate(study, found), _fork(found, study.narrow, meaning.meaning, then, tolerance)]
    if found.parts is not None:
        steps.append(_parts(found, tolerance))
    inside = [cause for cause in found.causes if cause.kind not in OUTSIDE]
    if inside:
        steps.append(_where(found, inside, tolerance))
        kinds = list(dict.fromkeys(cause.kind for cause in inside))
        for number, kind in enumerate(kinds[:_MOST_KINDS], 1):
            steps.append(_why(study, [cause for cause in inside if cause.kind == kind], number, units))
    steps.append(_remedies(found))
    steps.append(_end(found))
    return tuple(steps)


def _answer(found: Diagnosis) -> GuideStep:
    rows = [["verdict", found.verdict.name], ["because", found.verdict.reason]]
    rows += [["cause", f"{cause.kind}{f' at {cause.layer}' if cause.layer else ''}"] for cause in found.causes[:1]]
    rows += [["what to do", remedy.text] for remedy in found.remedies]
    then = "Go on to see how it was found."
    if any(remedy.changes for remedy in found.remedies):
        then = "Apply it here and watch the score below. Or go on to see how it was found."
    question = "Is it quantization, where, why, and what fixes it?"
    card = str(found.as_card(details=False))
    return GuideStep("answer", "in short", question, rows, "", then, remedies=found.remedies, card=card)


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
        rows.append(["expected of float", found.units.score(-study.expected if found.units.lower else study.expected)])
    if outside:
        text = " ".join(CAUSES[cause.kind] for cause in outside)
        then = " ".join(cause.remedy.text for cause in outside)
    elif found.verdict.name in ("not-quantization", "both"):
        text, then = found.verdict.reason, VERDICTS[found.verdict.name].then
    else:
        text = SOUND
        then = "Go on: compare 16 bits with 8."
    remedies = tuple(cause.remedy for cause in outside if cause.remedy.changes)
    return GuideStep("gate", "before quantization", "Is anything wrong before quantization?", rows, text, then, remedies=remedies)


def _fork(found: Diagnosis, narrow: str, meaning: str, then: str, tolerance: float) -> GuideStep:
    verdict = found.verdict
    rows = [["verdict", verdict.name], ["because", verdict.reason]]
    losses = {"int16": verdict.wide, narrow: verdict.narrow}
    known = {name: loss for name, loss in losses.items() if loss is not None}
    rows += [[f"{name} loses on these samples", loss_words(loss, found.units)] for name, loss in known.items()]
    draw = partial(_bars, known, found.units, tolerance, "loss against float on these samples") if known else None
    return GuideStep("verdict", "16 bits, then fewer", "Is it quantization?", rows, meaning, then, draw, 1.7)


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
    rows = [[name, loss_words(loss, found.units)] for name, loss in parts.items()]
    draw = partial(_bars, parts, found.units, tolerance, "loss against float")
    return GuideStep(
        "parts", "weights or activations", "What part of it costs the score?", rows, text, "Go on: which tensors.", draw, 2.0
    )


def _where(found: Diagnosis, causes: Sequence[Cause], tolerance: float) -> GuideStep:
    alone = {cause.tensor: cause.alone for cause in causes if cause.alone is not None and cause.tensor}
    rows = [[tensor, f"loses {loss_words(loss, found.units)} quantized alone"] for tensor, loss in alone.items()]
    rows += [[place, f"the same cause as at {cause.tensor}"] for cause in causes for place in cause.places if place not in alone]
    rows += [[tensor, f"{sqnr:.0f} dB: looks bad and costs nothing"] for tensor, sqnr in found.harmless]
    text = "These tensors cost score by themselves." if alone else "No tensor costs much by itself; many together do."
    if found.harmless:
        text += " A low signal to noise ratio is not enough to be a cause."
    draw = partial(_bars, alone, found.units, tolerance, "loss with this tensor alone quantized") if alone else None
    return GuideStep(
        "tensors", "which tensors", "Where is it lost?", rows, text, "Go on: why there.", draw, 1.0 + 0.32 * len(alone)
    )


def _why(study: Study, causes: Sequence[Cause], number: int, units: Units) -> GuideStep:
    """One kind of cause, at all its places; the picture is that of the first, which gains most."""
    first = causes[0]
    rows = [["cause", first.kind]]
    for cause in causes:
        rows += [["where", cause.tensor or "the whole network"], ["evidence", cause.evidence]]
        if cause.alone is not None:
            rows.append(["it loses alone", loss_words(cause.alone, units)])
        if cause.alone_gain is not None:
            rows.append(["of that the remedy recovers", change_words(cause.alone_gain, units)])
        if cause.gain is not None:
            rows.append(["in the whole network it recovers", change_words(cause.gain, units)])
    draw, caption = None, ""
    if first.tensor:
        step = study.graph.operation(first.tensor)
        entry = describe(study.graph, study.plan, step.name, study.observe(progress=False), [])
        if first.tensor == step.weight and entry["weight"] is not None:
            draw, caption = partial(_drawn, tensors.channels, entry), tensors.channels_caption(entry)
        elif entry["histogram"] is not None:
            draw, caption = partial(_drawn, tensors.histogram, entry), tensors.histogram_caption(entry)
    places = sum(len({cause.tensor, *cause.places}) for cause in causes)
    question = (f"Why at {places} places?" if places > 1 else f"Why at {first.layer}?") if first.layer else "Why everywhere?"
    title = f"cause {number}: {first.kind}{f', {places} places' if places > 1 else ''}"
    remedies: tuple[Remedy, ...] = ()
    for cause in causes:
        remedies += () if cause.remedy in remedies else (cause.remedy,)
    then = " ".join(r.text if r.changes else f"Yours to do: {r.text}" for r in remedies)
    return GuideStep("cause", title, question, rows, CAUSES[first.kind], then, draw, 2.5, caption, remedies)


def _remedies(found: Diagnosis) -> GuideStep:
    rows = [
        [str(i), f"{r.kind}{f' at {r.layer}' if r.layer else ' everywhere'}: {r.text}"] for i, r in enumerate(found.remedies, 1)
    ]
    if not found.remedies:
        return GuideStep(
            "remedies", "what to do", "What is there to do?", [["remedies", "none that helps by more than chance"]], "", found.qat
        )
    if not any(remedy.changes for remedy in found.remedies):
        text = "What is wrong lies before quantization, in the model or its inputs: no change of a plan puts it right."
        return GuideStep(
            "remedies",
            "what to do",
            "What is there to do?",
            rows,
            text,
            "Put it right, then make a new study.",
            remedies=found.remedies,
        )
    text = "These were measured on the evaluation samples, the cheapest first; they are meant to be applied in this order."
    if found.best_loss is not None:
        text += f" With all of them, {loss_words(found.best_loss, found.units)} are still lost."
    then = "Apply them one by one and watch the score below; every step can be undone."
    return GuideStep(
        "remedies", "what to do", "What is the cheapest thing that fixes it?", rows, text, then, remedies=found.remedies
    )


def _end(found: Diagnosis) -> GuideStep:
    rows = [["verdict", found.verdict.name], ["samples", str(found.samples)], ["evaluations spent", str(found.evaluations)]]
    rows += [["remark", remark] for remark in found.remarks]
    then = "Write the report of the study as diagnosed, and hand it on; or diagnose again with the remedies applied."
    return GuideStep("training", "training and report", "Is quantization-aware training needed?", rows, found.qat, then)


def _drawn(draw: Callable[..., Axes], entry: dict[str, Any], ax: Axes) -> Axes:
    return draw(entry, ax=ax)


def _bars(losses: dict[str, Interval], units: Units, tolerance: float, label: str, ax: Axes) -> Axes:
    """Losses with their intervals, against the band that counts as close."""
    names = list(losses)
    values = np.array([units.factor * losses[name].value for name in names])
    ends = np.array(
        [[units.factor * (loss.value - loss.low), units.factor * (loss.high - loss.value)] for loss in losses.values()]
    ).T
    ends = np.where(np.isfinite(ends), np.maximum(ends, 0.0), 0.0)
    ax.axvspan(-units.factor * tolerance, units.factor * tolerance, color=style.GOOD, alpha=0.16, lw=0)
    ax.barh(np.arange(len(names)), values, height=0.55, color=style.NARROW_COLOUR, alpha=0.8, lw=0)
    ax.errorbar(values, np.arange(len(names)), xerr=ends, fmt="none", ecolor=style.INK, elinewidth=1.0, capsize=3)
    ax.axvline(0, color=style.MUTED, lw=0.8)
    ax.set_yticks(range(len(names)), [style.short(name) for name in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel(f"{label}{f' ({units.points})' if units.points else ''}; shaded: within the tolerance")
    ax.grid(axis="x")
    return ax
