"""What counts as good: a score for every sample, with its unit and the loss that still counts as close.

A metric is a name of the list below, a function of outputs and targets, or a `Metric` that says more of itself. Inside, scores
are higher where they are better; what is better when lower (an error) is kept with its sign changed and shown as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from qkit.errors import DataError, QkitError
from qkit.execution import measures
from qkit.execution.statistics import Samples
from qkit.execution.whole import Weighing, WholeSamples, WholeScore
from qkit.graph.structures import float_tensors
from qkit.style import Units

__all__ = [
    "NAMED",
    "TOLERANCE",
    "AnyMetric",
    "Metric",
    "MetricFunction",
    "check_expected",
    "choose",
    "metric_label",
    "metric_of",
    "part_of",
    "score_batch",
    "tolerance_of",
    "unlabelled",
    "whole_samples",
]

MetricFunction = Callable[[Any, Any], Any]
#: Loss that still counts as close where a score is a share: one point.
TOLERANCE = 0.01
#: The same as a share of the float lane's own score, for every other metric: MLPerf's rule, 99 % of the reference.
RELATIVE_TOLERANCE = 0.01


_BETTER = ("higher", "lower")
_AGAINST = ("targets", "float", "either")


@dataclass(frozen=True)
class Metric:
    """A score for every sample.

    Attributes
    ----------
    function
        ``function(outputs, other) -> one score per sample``, where `other` is the targets or the float lane's outputs.
    name
        Said beside every figure.
    unit
        Of the score, such as "m" or "dB"; "%" for a share of 1, which is shown in percent and its differences in points.
    better
        Whether "higher" or "lower" scores are better.
    against
        What outputs are measured against: "targets", "float" (the float lane's outputs), or "either", targets where the data have
        them.
    tolerance
        Loss that still counts as close, in the unit; None for one point of a share, and for 1 % of the float lane's score
        otherwise.
    output
        Key or position of the output to measure, where the network has several; targets that are a mapping or a sequence alike
        are taken apart in the same way.
    among
        For class scores of which the right one has to be among so many greatest: decisions then have margins, which tell a loss
        on few samples. None for other metrics.
    whole
        Of a score of the whole set, such as mAP, which no mean over samples gives: `function` gives a record a sample then, and
        ``whole(records)`` a function of weights, float64 (B, N), that gives the scores of B sets in which each sample counts so
        often, float64 (B,). Its intervals come from resampled sets.
    """

    function: MetricFunction
    name: str
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"
    against: Literal["targets", "float", "either"] = "targets"
    tolerance: float | None = None
    output: str | int | None = None
    among: int | None = None
    whole: WholeScore | None = None

    def __post_init__(self) -> None:
        for said, given, allowed in (("better", self.better, _BETTER), ("against", self.against, _AGAINST)):
            if given not in allowed:
                raise QkitError(f"{said} of {self.name} is {given!r}: it has to be {' or '.join(map(repr, allowed))}.")
        if self.tolerance is not None and not self.tolerance > 0.0:
            raise QkitError(f"the tolerance of {self.name} is {self.tolerance}: it has to be above 0, in the metric's own unit.")

    @property
    def units(self) -> Units:
        """How its scores and losses are shown."""
        return Units(percent=self.unit == "%", unit="" if self.unit == "%" else self.unit, lower=self.better == "lower")

    def needs_float(self, targets: Any) -> bool:
        """Whether outputs are measured against the float lane's, where the data have these targets."""
        return self.against == "float" or (self.against == "either" and targets is None)

    def of(self, output: str | int) -> Metric:
        """The same of one output of several."""
        return replace(self, output=output, name=f"{self.name} of {output}")

    def __str__(self) -> str:
        return self.name


def metric_label(name: str) -> str:
    """What a metric of that name is called beside its figures: agreement is no accuracy, and is not to be taken for it."""
    return f"{name} with float (not accuracy)" if name == "agreement" else name


#: How a metric can be given.
AnyMetric = str | Metric | MetricFunction

#: Metrics by name.
NAMED: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(measures.top1, "top1", "%", among=1),
        Metric(measures.top5, "top5", "%", among=5),
        # a point of what float believed in its class, which is what a changed decision costs there, not of decisions
        Metric(measures.agreement, "agreement", "%", against="float", among=1, tolerance=TOLERANCE),
        Metric(measures.closeness, "closeness", "%", against="float"),
        Metric(measures.cross_entropy, "cross-entropy", "nats", "lower"),
        Metric(measures.mean_iou, "mean-iou", "%"),
        Metric(measures.psnr, "psnr", "dB", against="either", tolerance=0.3),
        Metric(measures.ssim, "ssim", "%", against="either"),
        Metric(measures.absolute_error, "absolute-error", "", "lower", against="either"),
        Metric(measures.relative_error, "relative-error", "%", "lower", against="either"),
        Metric(measures.cosine, "cosine", "%", against="either"),
        Metric(measures.characters_right, "characters", "%"),
    )
}


def metric_of(metric: AnyMetric) -> Metric:
    """A metric by name, of a function, or as it is.

    Raises
    ------
    QkitError
        If there is none of that name.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        if metric not in NAMED:
            raise QkitError(
                f"there is no metric {metric!r}; the named ones are {', '.join(NAMED)}. For another, pass a function; "
                "detection's mAP is qkit.mean_average_precision(decode=…)."
            )
        return NAMED[metric]
    if not callable(metric):
        raise QkitError(f"a metric is a name, a function (outputs, targets) -> scores per sample, or a Metric, not {metric!r}.")
    return Metric(metric, getattr(metric, "__name__", "metric"))


def unlabelled(metric: Metric) -> Metric:
    """What stands in for a metric where data have no targets: the metric itself if it needs none, agreement for one that decides
    between classes, closeness for any other.
    """
    if metric.against != "targets":
        return metric
    return NAMED["closeness" if metric.among is None else "agreement"]


def choose(outputs: Any, targets: Any) -> tuple[Metric, str]:
    """The metric that the outputs ask for, and why, in a sentence; "" where that is top-1 of labelled class scores.

    Class scores with a class index a sample (or a position) have top-1; class scores without labels agreement with the float
    lane's classes; everything else closeness to the float lane's outputs.
    """
    tensors = float_tensors(outputs)
    try:
        scores = measures.class_scores(outputs)
    except QkitError:
        scores = None
    if scores is not None and targets is not None:
        try:
            measures.labels_of(targets, scores)
        except DataError as error:
            if "outside" in str(error):
                raise
        else:
            return NAMED["top1"], ""
    if scores is not None and targets is None and scores.ndim == 2 and not _unit_rows(scores):
        return NAMED["agreement"], (
            "The data have no targets: the score is agreement with the float lane's classes, which is no accuracy. Most "
            "decisions that "
            "change are close ones, so the loss is what the float lane itself believed in its class more than in the other."
        )
    shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
    why = "there are no targets" if targets is None else "the targets are no class indices"
    return NAMED["closeness"], (
        f"The outputs ({shapes}) are scored by their closeness to the float lane's, since {why}: the share of their variance "
        "that is not "
        "error, 1 % being 20 dB. Name a metric for a score of your own task."
    )


def _unit_rows(scores: Tensor) -> bool:
    """Whether all rows have the length 1, as embeddings do."""
    lengths = scores.double().square().sum(1)
    return bool(torch.allclose(lengths, torch.ones_like(lengths), atol=1e-3)) and bool((scores < 0.0).any())


def tolerance_of(metric: Metric, exact: np.ndarray) -> float:
    """The loss that still counts as close: the metric's own, one point of a share, or 1 % of the float lane's mean score.

    Raises
    ------
    QkitError
        If the float lane's scores are all 0, of which there is no 1 %, or all the greatest PSNR there is.
    """
    if metric.function is measures.psnr and float(exact.min()) >= measures.MOST_PSNR:
        raise QkitError(
            f"float equals what it is measured against, which counts as {measures.MOST_PSNR:g} dB, and a loss from there says "
            "nothing: give targets, or pass tolerance= (60 lets lanes through that have 40 dB to float), or use "
            "metric='closeness'."
        )
    if metric.tolerance is not None:
        return metric.tolerance
    if metric.unit == "%":
        return TOLERANCE
    own = RELATIVE_TOLERANCE * abs(float(exact.mean()))
    if own == 0.0:
        raise QkitError(f"the float lane's {metric.name} is 0 throughout, so that no tolerance follows from it: pass tolerance=.")
    return own


def check_expected(metric: Metric, expected: float | None) -> None:
    """Nothing, if the score that a user believes in can be one.

    Raises
    ------
    QkitError
        If it is no share of 1 where scores are.
    """
    if expected is None or not metric.units.percent or metric.units.lower or 0.0 <= expected <= 1.0:
        return
    hint = f"; give {expected / 100:.4g} for {expected:g} %" if 1.0 < expected <= 100.0 else ""
    raise QkitError(f"expected={expected:g}: {metric} is a share, from 0 to 1{hint}.")


def part_of(value: Any, output: str | int | None, *, name: str) -> Any:
    """One output of several, or one target of as many."""
    if output is None:
        return value
    if isinstance(value, Mapping) or (isinstance(output, int) and isinstance(value, (tuple, list))):
        try:
            return value[output]  # type: ignore[index]
        except (KeyError, IndexError) as error:
            there = ", ".join(map(repr, value)) if isinstance(value, Mapping) else f"0 to {len(value) - 1}"
            raise DataError(f"{name}: there is no output {output!r}; there are {there}.") from error
    if isinstance(output, str) and hasattr(value, output):
        return getattr(value, output)
    raise DataError(f"{name}: the outputs are a {type(value).__name__}, which has no part {output!r}.")


def score_batch(metric: Metric, outputs: Any, targets: Any, reference: Any, size: int) -> Samples:
    """Scores of one batch, with margins and stakes where the metric decides between classes.

    Raises
    ------
    DataError
        If the metric does not give one finite score for each of the `size` samples, or needs targets that are not there.
    """
    name = metric.name
    by_float = metric.needs_float(targets)
    if not by_float and targets is None:
        raise DataError(
            f"metric {name!r} needs targets, and the evaluation loader gives none: add them, or use metric='closeness' or "
            "'agreement'."
        )
    outputs = part_of(outputs, metric.output, name=name)
    other = part_of(reference, metric.output, name=name) if by_float else targets
    if not by_float and metric.output is not None and isinstance(other, (Mapping, tuple, list)):
        other = part_of(other, metric.output, name=name)
    found = metric.function(outputs, other)
    if metric.whole is not None:
        return whole_samples(metric, found, size)
    try:
        scores = torch.as_tensor(found).detach().double().cpu().numpy()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"metric {name!r} gave a {type(found).__name__}: return one score per sample, as a tensor.") from error
    if scores.shape != (size,):
        raise DataError(f"metric {name!r} gave scores of shape {scores.shape} for {size} samples: return one score per sample.")
    if not np.isfinite(scores).all():
        raise DataError(f"metric {name!r} gave NaN or infinity for {int((~np.isfinite(scores)).sum())} of {size} samples.")
    if metric.better == "lower":
        scores = -scores
    if metric.function is measures.closeness:
        ratios = torch.stack(measures.noise_ratios(outputs, other), 1).cpu().numpy()
        return Samples(scores, ratios=ratios, outputs=measures.output_names(outputs))
    if metric.among is None:
        return Samples(scores)
    classes = measures.class_scores(outputs)
    if classes.ndim != 2:
        return Samples(scores)
    return _with_margins(scores, classes, other, by_float=by_float, among=metric.among)


def whole_samples(metric: Metric, records: Any, size: int) -> Samples:
    """What a batch left for a score of the whole set, a record a sample; see `score_batch`."""
    if not isinstance(records, (list, tuple)) or len(records) != size:
        count = len(records) if hasattr(records, "__len__") else "no"
        raise DataError(
            f"metric {metric.name!r} gave {count} records for {size} samples: a score of the whole set needs a list with one "
            "record per sample."
        )
    score = metric.whole
    assert score is not None
    return WholeSamples(records, _negated(score) if metric.better == "lower" else score, metric.name)


def _negated(score: WholeScore) -> WholeScore:
    def other(records: Sequence[Any]) -> Weighing:
        weigh = score(records)
        return lambda weights: -weigh(weights)

    return other


def _with_margins(scores: np.ndarray, classes: Tensor, other: Any, *, by_float: bool, among: int) -> Samples:
    hits = torch.from_numpy(scores).to(classes.device)
    said = classes.argmax(1)
    if not by_float:
        right = measures.labels_of(other, classes)
        found = measures.margins(classes, right, hits, among)
        return Samples(scores, found.cpu().numpy(), np.ones_like(scores), said.cpu().numpy(), right.cpu().numpy())
    exact = measures.class_scores(other)
    right = exact.argmax(1)
    believed = measures.beliefs(exact)
    runner_up = believed.scatter(1, right[:, None], -1.0).argmax(1)
    chosen = torch.where(hits > 0.0, runner_up, said)
    stakes = believed.gather(1, right[:, None]) - believed.gather(1, chosen[:, None])
    found = measures.margins(classes, right, hits)
    return Samples(scores, found.cpu().numpy(), stakes[:, 0].cpu().numpy(), said.cpu().numpy(), right.cpu().numpy())
