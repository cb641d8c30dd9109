"""Scores per sample, their means with intervals, and paired comparisons of lanes.

All lanes see the same samples, so their difference is judged on the pairs: an interval of the difference is far narrower
than the two scores' own intervals suggest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from qkit.errors import DataError, QkitError
from qkit.execution.loading import targets_tensor
from qkit.graph.structures import float_tensors
from qkit.style import SHARES

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture

#: ``metric(outputs, targets)`` gives one score per sample, higher is better; or the name of one of these.
MetricFunction = Callable[[Any, Any], Any]
MetricName = Literal["top1", "top5", "agreement"]

CONFIDENCE = 0.95
#: Loss that still counts as close, in units of the score: one point of accuracy.
TOLERANCE = 0.01


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval, over `n` samples."""

    value: float
    low: float
    high: float
    n: int

    def __format__(self, spec: str) -> str:
        spec = spec or ".4f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def to_dict(self) -> dict[str, float]:
        """As plain numbers."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def _classes(outputs: Any) -> Tensor:
    """Class scores: the only output, or what is called logits among several."""
    if not isinstance(outputs, Tensor):
        named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        tensors = float_tensors(outputs)
        outputs = named if isinstance(named, Tensor) else tensors[0] if len(tensors) == 1 else outputs
    if not isinstance(outputs, Tensor) or outputs.ndim < 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise QkitError(
            f"the model's output is {shape}, not (samples, classes, …): pass metric= a function "
            "(outputs, targets) -> scores per sample."
        )
    if bool(outputs.isnan().any()):
        bad = int(outputs.flatten(1).isnan().any(1).sum())
        raise DataError(
            f"the class scores of {bad} of {len(outputs)} samples are NaN, which no class is: study.diagnose() says where they "
            "arise, in the weights, the inputs, or a division."
        )
    return outputs


def top1(outputs: Any, targets: Any) -> Tensor:
    """Per sample 1 where the greatest class is the target, else 0; for dense outputs (N, C, …) the share of positions."""
    scores = _classes(outputs)
    if scores.ndim == 2:
        targets = targets_tensor(targets, len(scores))
    classes = scores.argmax(1)
    labels = torch.as_tensor(targets)
    if labels.shape != classes.shape:
        raise DataError(
            f"top-1 of an output of shape {tuple(scores.shape)} needs class indices of shape {tuple(classes.shape)}, not targets "
            f"of shape {tuple(labels.shape)}: give the targets that shape, pass metric= a function (outputs, targets) -> scores "
            "per sample, or metric='agreement'."
        )
    hit: Tensor = classes == labels.to(scores.device)
    return hit.double().flatten(1).mean(1) if hit.ndim > 1 else hit.double()


def top5(outputs: Any, targets: Any) -> Tensor:
    """Per sample 1 where the target is among the five greatest classes, else 0."""
    scores = _classes(outputs)
    labels = targets_tensor(targets, len(scores)).to(scores.device)
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(1).double()


def agreement(outputs: Any, reference: Any) -> Tensor:
    """Per sample 1 where the greatest class is the float lane's, else 0; for dense outputs the share of positions."""
    same = _classes(outputs).argmax(1) == _classes(reference).argmax(1)
    return same.double().flatten(1).mean(1) if same.ndim > 1 else same.double()


NAMED: Mapping[str, MetricFunction] = {"top1": top1, "top5": top5, "agreement": agreement}


def score_batch(metric: str | MetricFunction, outputs: Any, targets: Any, reference: Any, size: int) -> np.ndarray:
    """Scores of one batch, float64 (N,).

    Raises
    ------
    DataError
        If the metric does not give one finite score for each of the `size` samples, or needs targets that are not there.
    """
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    if isinstance(metric, str) and metric not in NAMED:
        raise QkitError(f"there is no metric {metric!r}; the named ones are {', '.join(NAMED)}. For another, pass a function.")
    function = NAMED[metric] if isinstance(metric, str) else metric
    if metric == "agreement":
        targets = reference
    elif targets is None:
        raise DataError(f"metric {name!r} needs targets, the evaluation loader gives none: add them, or use metric='agreement'.")
    scores = torch.as_tensor(function(outputs, targets)).detach().double().cpu().numpy()
    if scores.shape != (size,):
        raise DataError(f"metric {name!r} gave scores of shape {scores.shape} for {size} samples: return one score per sample.")
    if not np.isfinite(scores).all():
        raise DataError(f"metric {name!r} gave NaN or infinity for {int((~np.isfinite(scores)).sum())} of {size} samples.")
    return scores


def _is_binary(scores: np.ndarray) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def mean_interval(scores: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Mean of per-sample scores: Wilson's interval for 0/1 scores, Student's for others."""
    n = len(scores)
    if n == 0:
        raise DataError("there are no scores: the evaluation loader gave no sample.")
    value = float(scores.mean())
    if _is_binary(scores):
        low, high = stats.binomtest(int(scores.sum()), n).proportion_ci(confidence, method="wilson")
        return Interval(value, float(low), float(high), n)
    if n < 2:
        return Interval(value, -math.inf, math.inf, n)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * scores.std(ddof=1) / math.sqrt(n))
    return Interval(value, value - half, value + half, n)


def paired_interval(first: np.ndarray, second: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Mean of ``first - second`` over the same samples.

    For 0/1 scores the adjusted Wald interval of Bonett and Price (2012, "Adjusted Wald Confidence Interval for a
    Difference of Binomial Proportions Based on Paired Data"), which does not collapse to zero width where no sample
    differs; Student's for other scores.
    """
    if first.shape != second.shape or len(first) == 0:
        raise DataError(f"a paired comparison needs the same samples in both lanes, not {len(first)} and {len(second)}.")
    n = len(first)
    difference = first - second
    value = float(difference.mean())
    if _is_binary(first) and _is_binary(second):
        gained = (float((difference > 0).sum()) + 1.0) / (n + 2.0)
        lost = (float((difference < 0).sum()) + 1.0) / (n + 2.0)
        z = float(stats.norm.ppf(0.5 + confidence / 2))
        centre = gained - lost
        half = z * math.sqrt(max(gained + lost - centre**2, 0.0) / (n + 2.0))
        return Interval(value, max(centre - half, -1.0), min(centre + half, 1.0), n)
    if n < 2:
        return Interval(value, -math.inf, math.inf, n)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * difference.std(ddof=1) / math.sqrt(n))
    return Interval(value, value - half, value + half, n)


@dataclass(frozen=True, eq=False)
class Scores:
    """Per-sample scores of several lanes on the same samples: `lanes` maps a name to float64 (N,)."""

    metric: str
    lanes: Mapping[str, np.ndarray]

    def __getitem__(self, lane: str) -> Interval:
        """The lane's mean score with its interval."""
        return mean_interval(self._of(lane))

    def loss(self, lane: str, against: str = "float") -> Interval:
        """How much the lane loses against another, with the paired interval; positive is worse."""
        return paired_interval(self._of(against), self._of(lane))

    def _of(self, lane: str) -> np.ndarray:
        if lane not in self.lanes:
            raise QkitError(f"lane {lane!r} was not evaluated; there are {', '.join(self.lanes)}.")
        return self.lanes[lane]

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(next(iter(self.lanes.values())))

    def table(self) -> pd.DataFrame:
        """A row per lane: score, interval, loss against float, interval."""
        rows = {}
        for lane in self.lanes:
            score = self[lane]
            rows[lane] = {"score": score.value, "low": score.low, "high": score.high}
            if "float" in self.lanes:
                loss = self.loss(lane)
                rows[lane] |= {"loss": loss.value, "loss low": loss.low, "loss high": loss.high}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("lane")

    def plot(self) -> Picture:
        """Every lane's score with its interval, as a picture."""
        from qkit.figures.drawing import picture
        from qkit.figures.plots import bar_height, intervals

        rows = {lane: self[lane] for lane in self.lanes}
        unit = ", %" if self.metric in SHARES else ""
        what = f"{self.metric} on {self.n} samples{unit}"
        words = f"{self.metric} of {', '.join(self.lanes)}"
        return picture(intervals, rows, metric=self.metric, what=what, words=words, scores=True, height=bar_height(len(rows)))

    def to_dict(self) -> dict[str, Any]:
        """Intervals by lane, as plain numbers."""
        return {
            "metric": self.metric,
            "samples": self.n,
            "lanes": {
                lane: {"score": self[lane].to_dict(), "loss": self.loss(lane).to_dict() if "float" in self.lanes else None}
                for lane in self.lanes
            },
        }

    def __repr__(self) -> str:
        return f"Scores({self.metric} on {self.n} samples: " + ", ".join(f"{lane} {self[lane]}" for lane in self.lanes) + ")"

    def _repr_html_(self) -> str:
        return str(self.table().to_html(float_format="{:.4f}".format))
