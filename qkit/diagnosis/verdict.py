"""The fork of every diagnosis: 16 bits before 8.

Close at 16 bits and degraded at 8 means quantization; degraded at 16 bits too means something else is wrong (TI's flow
gives the rule and no number; the number here is the tolerance, in the metric's own unit). All is judged on pairs of the same
samples.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from qkit.errors import QkitError
from qkit.execution.evaluator import Evaluator
from qkit.execution.scores import Scores
from qkit.execution.statistics import CHANCE, Interval, Samples
from qkit.graph.share import Share
from qkit.quant.plan import Plan
from qkit.style import PLAIN, Units

VerdictName = Literal["no-degradation", "quantization", "not-quantization", "both", "inconclusive"]

#: Share of multiply-accumulates on integers from which on a verdict is about the whole network.
NEARLY_ALL = 0.99
#: Samples at the first look of an evaluation that ends as soon as the answer is sure.
_FIRST_LOOK = 48
#: On fewer samples nothing is said to be close, however far all decisions are from changing.
_FEWEST = 24
#: 16 bits that lose no more than this share of what 8 bits lose are not what is wrong, however few the samples.
_LITTLE = 0.25
#: What 8 bits lose beyond 16 is quantization if it is more than this share of what 16 bits lose.
_ON_TOP = 0.1


@dataclass(frozen=True)
class Verdict:
    """The answer, its reason in a sentence, and the losses it rests on.

    Attributes
    ----------
    name
        A word of the vocabulary.
    reason
        One or two sentences with the figures.
    wide, narrow
        Loss of the 16-bit and of the 8-bit lane against float on these samples, with paired intervals; None where no lane
        could be run.
    samples_needed
        For "inconclusive": about how many samples would tell.
    expected_wide, expected_narrow
        The same losses as they are to be expected on many such samples, which is what is judged; see
        `qkit.execution.statistics.expected_scores`.
    tolerance
        The loss that still counts as close, in the metric's unit.
    units
        How losses are shown.
    differs
        Whether 8 bits differ from float or from 16 bits by more than chance, whatever the verdict.
    stopped
        Samples after which the evaluation ended because the verdict was sure; None where all were taken.
    remarks
        What a reader has to know of the scores.
    base
        Float's own score on these samples, with its interval.
    """

    name: VerdictName
    reason: str
    wide: Interval | None
    narrow: Interval | None
    samples_needed: int | None = None
    expected_wide: Interval | None = None
    expected_narrow: Interval | None = None
    tolerance: float | None = None
    units: Units = PLAIN
    differs: bool = False
    stopped: int | None = None
    remarks: tuple[str, ...] = ()
    base: Interval | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers and strings."""
        losses = {
            "loss16": self.wide, "loss8": self.narrow, "expected16": self.expected_wide, "expected8": self.expected_narrow,
        }  # fmt: skip
        return {
            "verdict": self.name,
            "reason": self.reason,
            **{name: None if loss is None else loss.to_dict() for name, loss in losses.items()},
            "samples_needed": self.samples_needed,
            "tolerance": self.tolerance,
            "stopped": self.stopped,
            "remarks": list(self.remarks),
            "base": None if self.base is None else self.base.to_dict(),
        }

    def __str__(self) -> str:
        return " ".join([f"{self.name}: {self.reason}", *self.remarks])

    def _repr_html_(self) -> str:
        remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in self.remarks)
        return f"<p><b>{html.escape(self.name)}</b>: {html.escape(self.reason)}</p>{remarks}"


def judge(
    scores: Scores, *, wide: str = "int16", narrow: str = "int8", tolerance: float | None = None, expected: float | None = None,
    share: Share | None = None, looks: int = 1,
) -> Verdict:  # fmt: skip
    """The verdict from the scores of the float, 16-bit and 8-bit lanes.

    Losses are those to be expected on many such samples. A lane is *degraded* if it loses more than the tolerance, and that it
    loses at all is no chance (`Interval.above`); *close* if it loses no more, and the interval says so too (`Interval.within`).
    Where 16 bits are neither, but lose little of what 8 bits lose, the two are judged against each other.

    Parameters
    ----------
    tolerance
        Loss that still counts as close, in the metric's unit; by default the metric's own, see
        `qkit.execution.metrics.tolerance_of`.
    expected
        The float score that the user believes in; a float lane that misses it by more than its interval and the
        tolerance is itself a finding: what is wrong then was wrong before any quantization.
    share
        How much of the network is computed on integers. Where that is nothing there is no verdict, and where it is not nearly all
        the verdict says so.
    looks
        How often these lanes have been judged on growing parts of the data, this time included: the more often, the less may be
        chance.

    Raises
    ------
    QkitError
        If the tolerance is not above 0.
    """
    tolerance = scores.tolerance() if tolerance is None else tolerance
    if not (tolerance > 0.0 and math.isfinite(tolerance)):
        raise QkitError(f"tolerance={tolerance}: give a loss above 0 that still counts as close, in the unit of {scores.metric}.")
    if share is not None and share.macs == 0.0:
        reason = "nothing of this network's arithmetic is computed on integers here, so the lanes say nothing about it: "
        reason += "study.graph.notes says what stays float, and why."
        return Verdict(
            "inconclusive", reason, scores.loss(wide), scores.loss(narrow), tolerance=tolerance, units=scores.units,
            base=scores["float"],
        )  # fmt: skip
    found = _judged(scores, wide, narrow, tolerance, expected, looks)
    if share is None or share.macs >= NEARLY_ALL:
        return found
    part = f"{100 * (1.0 - share.macs):.1f} % of the multiply-accumulates run in float here, of which this says nothing."
    return replace(found, reason=f"{found.reason.rstrip('.')}. {part}")


def judge_until_sure(evaluator: Evaluator, plans: Mapping[str, Plan], options: Mapping[str, Any], *, progress: bool) -> Verdict:
    """The verdict on as much of the evaluation data as it takes to be sure, of lanes by name.

    The lanes are judged on 48 samples and whenever their number has doubled since; what is not decided takes all data. Data
    that come class by class are taken whole, since their front part is no sample of them.
    """
    looks, stopped = 0, None

    def sure(found: Mapping[str, Samples]) -> bool:
        nonlocal looks, stopped
        n = len(found["float"])
        if n < _FIRST_LOOK * 2**looks or _by_class(found["float"]):
            return False
        looks += 1
        scores = Scores.of(evaluator.metric, found)
        verdict = judge(scores, **{**options, "expected": None}, looks=looks + 1)
        stopped = n if verdict.name != "inconclusive" and _as_expected(scores, options["expected"]) else None
        return stopped is not None

    scores = Scores.of(evaluator.metric, evaluator.samples(plans, enough=sure, progress=progress))
    found = judge(scores, **options, looks=looks + 1)
    if stopped is None or scores.n != stopped:
        return found
    reason = f"{found.reason} Decided after {stopped} samples; batches= takes more."
    return replace(found, reason=reason, stopped=stopped)


def _as_expected(scores: Scores, expected: float | None) -> bool:
    base = scores["float"]
    return expected is None or base.low <= expected <= base.high


def _by_class(samples: Samples) -> bool:
    """Whether samples of one class follow each other far more often than in a random order."""
    if samples.labels is None or len(samples) < 2:
        return False
    _, counts = np.unique(samples.labels, return_counts=True)
    by_chance = float(((counts / counts.sum()) ** 2).sum())
    follow = float((samples.labels[1:] == samples.labels[:-1]).mean())
    return follow > 0.5 + 0.5 * by_chance


def _judged(scores: Scores, wide: str, narrow: str, tolerance: float, expected: float | None, looks: int) -> Verdict:
    units = scores.units
    loss_wide, loss_narrow = scores.loss(wide), scores.loss(narrow)
    likely_wide, likely_narrow = scores.expected_loss(wide, looks=looks), scores.expected_loss(narrow, looks=looks)
    further = scores.expected_loss(narrow, against=wide, looks=looks)
    state_wide, state_narrow = _state(likely_wide, tolerance), _state(likely_narrow, tolerance)
    # losses of 16 bits that are small beside those of 8 are not what is wrong
    if state_wide == "unclear" and further.above(tolerance) and likely_wide.value <= _LITTLE * likely_narrow.value:
        state_wide = "close"
    at_wide = f"{wide} loses {_both(loss_wide, likely_wide, units)}"
    at_narrow = f"{narrow} loses {_both(loss_narrow, likely_narrow, units)}"
    width = narrow.removeprefix("int")
    bits = f"{width} bits" if width.isdigit() else f"the bits of {narrow}"
    differs = any(loss.value > 0.0 and loss.p is not None and loss.p < CHANCE for loss in (likely_narrow, further))

    def verdict(name: VerdictName, reason: str, needed: int | None = None) -> Verdict:
        return Verdict(
            name, reason, loss_wide, loss_narrow, needed, likely_wide, likely_narrow, tolerance, units, differs,
            remarks=tuple(_remarks(scores)), base=scores["float"],
        )  # fmt: skip

    base = scores["float"]
    if expected is not None and not base.low - tolerance <= expected <= base.high + tolerance:
        found, wanted = units.score(base.value), units.score(-expected if units.lower else expected)
        reason = f"float itself scores {found} where {wanted} was expected: look at data, preprocessing and checkpoint first. "
        extra = f"Beside that, {at_wide} and {at_narrow} against this float score."
        beside = state_wide == "close" and state_narrow == "degraded"
        return verdict("both" if beside else "not-quantization", reason + extra)
    if "unclear" in (state_wide, state_narrow):
        unclear = likely_narrow if state_narrow == "unclear" else likely_wide
        needed = _samples_needed(unclear, tolerance)
        reason = f"{at_wide}, {at_narrow}: {scores.n} samples are too few to tell a loss of {units.said(tolerance)} "
        reason += f"from none; about {needed} would do."
        return verdict("inconclusive", reason, needed)
    if state_wide == "close":
        if state_narrow == "close" and scores.n < _FEWEST:
            reason = f"{at_wide} and {at_narrow}, which is close to float; but {scores.n} samples show no rare loss. "
            return verdict("inconclusive", f"{reason}{_FIRST_LOOK} would do.", _FIRST_LOOK)
        if state_narrow == "close":
            return verdict("no-degradation", f"{at_wide} and {at_narrow}: both are close to float.")
        return verdict(
            "quantization", f"16 bits are close to float and {bits} are not ({at_wide}, {at_narrow}): it is quantization."
        )
    if further.above(tolerance) and further.value > _ON_TOP * likely_wide.value:
        reason = (
            f"16 bits are degraded too ({at_wide}), so something other than rounding is wrong; {bits} lose a further "
            f"{amount(further, units)}, which is quantization on top."
        )
        return verdict("both", reason)
    reason = (
        f"16 bits are degraded as well as {bits} ({at_wide}, {at_narrow}): it is not rounding. Look at ranges that clip, the "
        "calibration data, the graph and the engine."
    )
    return verdict("not-quantization", reason)


def _state(loss: Interval, tolerance: float) -> Literal["degraded", "close", "unclear"]:
    if loss.above(tolerance):
        return "degraded"
    return "close" if loss.within(tolerance) else "unclear"


def _both(measured: Interval, likely: Interval, units: Units) -> str:
    """A loss on these samples, and where the margins say otherwise of many, that too."""
    shown, expected = (amount(loss, units) for loss in (measured, likely))
    if shown.partition(" ")[0] == expected.partition(" ")[0]:
        return expected
    return f"{amount(measured, units)} on these {measured.n} samples, {amount(likely, units)} to be expected on many"


def _samples_needed(loss: Interval, tolerance: float) -> int:
    """Samples at which the interval's half-width, shrinking with the root of their number, is the tolerance."""
    half = (loss.high - loss.low) / 2
    if not math.isfinite(half):
        return 2
    return math.ceil(loss.n * max((half / tolerance) ** 2, 1.1))


def _remarks(scores: Scores) -> list[str]:
    """What makes scores say less than they seem to."""
    said = []
    exact = scores.lanes["float"]
    n = len(exact)
    if scores.metric == "top1" and n >= 10 and (labels := scores.most_common) is not None:
        label, count = labels
        if count < n and float(exact.mean()) <= count / n:
            said.append(
                f"Float is right in {scores.units.score(float(exact.mean()))} of the samples, no more than who always answers "
                "class "
                f"{label} would be: are labels, preprocessing and checkpoint those of this model?"
            )
    if n > 1 and all(np.ptp(found) == 0.0 and found[0] == exact[0] for found in scores.lanes.values()) and scores.samples:
        margins = scores.samples["float"].margins
        if margins is None:
            said.append(f"{scores.metric} is the same for every sample in every lane: does it look at the outputs at all?")
    if scores.units.percent and not scores.units.lower and float(exact.mean()) <= scores.tolerance():
        said.append(
            f"Float scores {scores.units.score(float(exact.mean()))}, so that no more can be lost: are targets, class numbers "
            "and units (of boxes: corners in the same pixels) those of this model?"
        )
    said += scores.notes
    return said


def amount(loss: Interval, units: Units) -> str:
    """A loss or gain with its interval, for a sentence: in points if the score is a share of 1."""
    unit = f" {units.points}" if units.points else ""
    show = "{:.1f}" if units.percent else "{:.4g}"
    texts = (show.format(units.factor * end) for end in (loss.value, loss.low, loss.high))
    # what rounds to nothing has no sign
    value, low, high = (text.removeprefix("-") if float(text) == 0.0 else text for text in texts)
    return f"{value}{unit} [{low}, {high}]".replace("-", "−")
