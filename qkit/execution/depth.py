"""Where along the network the loss arises: the first k operations quantized, for growing k, in weights, activations and both.

Lanes of one curve share everything up to where they stop quantizing, so a curve of P points costs about P/2 passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qkit.errors import QkitError
from qkit.execution.evaluator import MEMORY_BUDGET, Evaluator
from qkit.execution.statistics import Interval, mean_interval, paired_interval
from qkit.quant.plan import FLOAT, Plan
from qkit.style import PLAIN, Units, plain

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture

__all__ = ["CURVES", "POINTS", "Depth", "along_depth"]

CURVES = ("weights", "activations", "both")
#: Points of a curve where none are asked for.
POINTS = 32


@dataclass(frozen=True, eq=False)
class Depth:
    """What the first k quantized operations cost, in three curves.

    Attributes
    ----------
    metric
        Name of the score.
    counts
        k of every point, in growing order; the last is all of them.
    operations
        The operation at which each point stops, which is the last that is quantized.
    scores
        By curve ("weights", "activations", "both"), float64 (P, N): per-sample scores at every point.
    errors
        By curve, float64 (P,): the output's squared error over float's energy, the mean over samples.
    base
        float64 (N,): float's scores.
    units
        How scores and losses are shown.
    """

    metric: str
    counts: tuple[int, ...]
    operations: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    errors: Mapping[str, np.ndarray]
    base: np.ndarray
    units: Units = PLAIN

    def loss(self, curve: str, point: int) -> Interval:
        """What is lost at a point of a curve, against float on the same samples; paired interval.

        Raises
        ------
        QkitError
            If there is no such curve.
        """
        if curve not in self.scores:
            raise QkitError(f"there is no curve {curve!r}: the curves are {', '.join(self.scores)}.")
        return paired_interval(self.base, self.scores[curve][point])

    def table(self) -> pd.DataFrame:
        """A row per point: ``k``, and by curve ``loss`` with its 95 % interval and the output's ``sqnr`` in dB."""
        rows = []
        for point, count in enumerate(self.counts):
            row: dict[tuple[str, str], Any] = {("", "k"): count}
            for curve in self.scores:
                loss = self.loss(curve, point)
                row |= {(curve, "loss"): loss.value, (curve, "loss low"): loss.low, (curve, "loss high"): loss.high}
                row[curve, "sqnr"] = _decibels(float(self.errors[curve][point]))
            rows.append(row)
        columns = pd.MultiIndex.from_tuples(list(rows[0]))
        return pd.DataFrame([list(row.values()) for row in rows], pd.Index(self.operations, name="up to"), columns)

    def plot(self) -> Picture:
        """Loss and the output's SQNR along the depth, as a picture."""
        from qkit.figures.curves import depth_figure

        return depth_figure(self, f"loss along the depth, {len(self.counts)} points of {self.counts[-1]} operations")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, by curve, a point a row."""
        return {
            "metric": self.metric,
            "float": mean_interval(self.base).to_dict(),
            "operations": list(self.operations),
            "k": list(self.counts),
            "curves": {
                curve: [
                    {"loss": self.loss(curve, point).to_dict(), "sqnr": plain(_decibels(float(self.errors[curve][point])))}
                    for point in range(len(self.counts))
                ]
                for curve in self.scores
            },
        }

    def __repr__(self) -> str:
        ends = ", ".join(f"{curve} {self.units.loss(self.loss(curve, -1).value)}" for curve in self.scores)
        return f"Depth({len(self.counts)} points of {self.counts[-1]} operations; lost in all: {ends} {self.units.points})"

    def _repr_html_(self) -> str:
        return str(self.table().to_html(float_format="{:.4f}".format))


def along_depth(
    evaluator: Evaluator,
    plan: Plan,
    *,
    points: int = POINTS,
    batches: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = True,
) -> Depth:
    """Loss with the first k operations quantized, k along the execution order: weights alone, activations alone, both.

    An interrupt loses no finished batch of a finished curve: the same call goes on from there.

    Parameters
    ----------
    points
        Most points of a curve, evenly spread over the operations; the last one is always all of them.
    batches
        Batches to take; None for all.
    memory_budget
        See `Evaluator.samples`.

    Raises
    ------
    QkitError
        If there is no point, or the plan quantizes nothing.
    DataError
        If the data are empty or do not fit.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 1:
        raise QkitError(f"points= is how many points a curve has, at least 1, not {points!r}.")
    tensors: dict[str, list[str]] = {}
    for op in evaluator.graph.operations:
        own = [name for name in (op.weight, op.name) if name is not None and name in plan.grids]
        if own:
            tensors[op.name] = own
    if not tensors:
        raise QkitError("the plan quantizes nothing, so that nothing is lost along the depth: pass a plan with grids.")
    names = list(tensors)
    counts = [-(-len(names) * (at + 1) // points) for at in range(points)] if points < len(names) else [*range(1, len(names) + 1)]
    parts = dict(zip(CURVES, (plan.weights_only(), plan.activations_only(), plan), strict=True))
    found: dict[str, np.ndarray] = {}
    errors: dict[str, np.ndarray] = {}
    base = np.empty(0)
    for curve, part in parts.items():
        cuts = []
        for count in counts:
            first = {tensor for name in names[:count] for tensor in tensors[name]}
            cuts.append(part.only(first & set(part.grids)))
        lanes = {"": FLOAT, **{str(count): cut for count, cut in zip(counts, cuts, strict=True)}}
        scores = evaluator.scores(
            lanes, base=part, batches=batches, errors=True, memory_budget=memory_budget, what=f"along the depth ({curve})",
            progress=progress,
        )  # fmt: skip
        found[curve] = np.stack([scores[str(count)] for count in counts])
        errors[curve] = np.array([evaluator.error(cut, batches) for cut in cuts])
        base = scores[""]
    stops = tuple(names[count - 1] for count in counts)
    return Depth(evaluator.metric_name, tuple(counts), stops, found, errors, base, evaluator.metric.units)


def _decibels(error: float) -> float:
    return float("inf") if error == 0.0 else float(-10.0 * np.log10(error))
