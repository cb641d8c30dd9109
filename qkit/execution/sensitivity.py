"""Which layers matter: one layer quantized, or one layer spared, for every layer.

Both sweeps are lanes that share all they have in common. "only" lanes are float up to their layer, "except" lanes are the
full plan up to theirs: a lane costs the operations from its layer on, so L lanes cost about L/2 passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from qkit.errors import QkitError
from qkit.execution.evaluator import MEMORY_BUDGET, Evaluator
from qkit.execution.metrics import TOLERANCE
from qkit.execution.statistics import Interval, mean_interval, paired_interval
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.plan import FLOAT, Plan
from qkit.style import PLAIN, Units

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture

Mode = Literal["only", "except"]

#: Name of the lane that all are compared with; no layer has an empty one.
_BASE = ""


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Scores of a sweep.

    Attributes
    ----------
    mode
        "only": one layer quantized, the rest float; "except": one layer float, the rest quantized.
    metric
        Name of the score.
    layers
        Steps swept, in execution order.
    scores
        float64 (L, N): per-sample scores with that layer quantized alone, or spared.
    base
        float64 (N,): scores of the lane that all are compared with: float for "only", the full plan for "except".
    units
        How scores and losses are shown.
    ranks
        Whether effects are tested by ranks; not where the score is one of the whole set, see `paired_interval`.
    """

    mode: Mode
    metric: str
    layers: tuple[Operation, ...]
    scores: np.ndarray
    base: np.ndarray
    units: Units = PLAIN
    ranks: bool = True

    @property
    def base_score(self) -> Interval:
        """Score of float ("only") or of the full plan ("except")."""
        return mean_interval(self.base)

    def effect(self, layer: int) -> Interval:
        """What the layer costs when quantized alone ("only"), or what sparing it recovers ("except"); paired interval."""
        scores = self.scores[layer]
        first, second = (self.base, scores) if self.mode == "only" else (scores, self.base)
        return paired_interval(first, second, ranks=self.ranks)

    def table(self) -> pd.DataFrame:
        """A row per layer, the strongest effect first: kind, score, and ``loss`` or ``recovered`` with its 95 % interval.

        Each interval stands for itself: of 60 layers three may miss theirs by chance.
        """
        name = "loss" if self.mode == "only" else "recovered"
        rows = {}
        for i, op in enumerate(self.layers):
            effect = self.effect(i)
            rows[op.name] = {
                "kind": op.kind,
                "macs": op.macs,
                "score": float(self.scores[i].mean()),
                name: effect.value,
                f"{name} low": effect.low,
                f"{name} high": effect.high,
            }
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("layer")
        return frame.sort_values(name, ascending=False, kind="stable")

    def plot(self, top: int = 12) -> Picture:
        """The layers with the strongest effects, each with its interval, as a picture."""
        from qkit.figures.drawing import picture
        from qkit.figures.plots import bar_height, intervals

        name = "loss" if self.mode == "only" else "recovered"
        table = self.table().head(top)
        place = {op.name: i for i, op in enumerate(self.layers)}
        rows = {str(layer): self.effect(place[str(layer)]) for layer in table.index}
        points = f", {self.units.points}" if self.units.points else ""
        what = {"loss": "loss with this layer alone quantized", "recovered": "recovered by sparing this layer"}[name]
        return picture(
            intervals, rows, units=self.units, what=f"{what}{points} ({len(self.base)} samples); shaded: within the tolerance",
            tolerance=TOLERANCE, words=f"{name} by layer, the strongest {len(rows)} of {len(self.layers)}",
            height=bar_height(len(rows)),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, layers in execution order."""
        return {
            "mode": self.mode,
            "metric": self.metric,
            "base": self.base_score.to_dict(),
            "layers": {
                s.name: {"score": mean_interval(self.scores[i]).to_dict(), "effect": self.effect(i).to_dict()}
                for i, s in enumerate(self.layers)
            },
        }

    def __repr__(self) -> str:
        what = "quantized alone" if self.mode == "only" else "spared"
        on = f"{self.metric} on {len(self.base)} samples, base {self.base_score}"
        return f"Sensitivity({len(self.layers)} layers, each {what}; {on})"

    def _repr_html_(self) -> str:
        return str(self.table().to_html(float_format="{:.4f}".format))


def sweep(
    evaluator: Evaluator,
    plan: Plan,
    mode: Mode,
    *,
    layers: Sequence[str] | None = None,
    batches: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = True,
) -> Sensitivity:
    """Score every layer quantized alone ("only") or spared ("except").

    A layer is a tap's grid together with its weight's.

    Parameters
    ----------
    layers
        Tap names; all that the plan quantizes by default.
    batches
        Batches to take; None for all.
    memory_budget
        See `Evaluator.scores`.

    Raises
    ------
    QkitError
        For another mode, or a layer without a grid.
    DataError
        If the data are empty or do not fit.
    """
    if mode not in ("only", "except"):
        raise QkitError(f"mode is 'only' (one layer quantized) or 'except' (one layer spared), not {mode!r}.")
    operations = _layers(evaluator.graph, plan, layers)
    base = FLOAT if mode == "only" else plan
    lanes = {_BASE: base, **{op.name: _lane_plan(plan, op, mode) for op in operations}}
    found = evaluator.scores(
        lanes, base=base, batches=batches, memory_budget=memory_budget, what=f"sensitivity ({mode})", progress=progress
    )
    scores = np.stack([found[op.name] for op in operations])
    metric = evaluator.metric
    return Sensitivity(mode, metric.name, tuple(operations), scores, found[_BASE], metric.units, metric.whole is None)


def known_sweep(evaluator: Evaluator, plan: Plan, mode: Mode, *, batches: int | None = None) -> Sensitivity | None:
    """What `sweep` over all layers gives, if everything that it asks for has been measured; None otherwise.

    Raises
    ------
    QkitError
        If the plan quantizes nothing.
    """
    operations = _layers(evaluator.graph, plan, None)
    base = evaluator.known(FLOAT if mode == "only" else plan, batches)
    found = [evaluator.known(_lane_plan(plan, op, mode), batches) for op in operations]
    if base is None or any(scores is None for scores in found):
        return None
    scores = np.stack([scores for scores in found if scores is not None])
    return Sensitivity(mode, evaluator.metric_name, tuple(operations), scores, base, evaluator.metric.units)


def _layers(graph: Graph, plan: Plan, names: Sequence[str] | None) -> list[Operation]:
    operations = [s for s in graph.operations if s.quantized and (s.name in plan.grids or s.weight in plan.grids)]
    if not operations or (names is not None and not names):
        what = "the plan quantizes nothing" if not operations else "layers= names none"
        raise QkitError(f"there is no layer to sweep: {what}.")
    if names is None:
        return operations
    wanted = {graph.operation(name).name for name in names}
    missing = wanted - {s.name for s in operations}
    if missing:
        raise QkitError(f"the plan has no grid for {', '.join(sorted(missing))}: nothing to switch on or off there.")
    return [s for s in operations if s.name in wanted]


def _lane_plan(plan: Plan, op: Operation, mode: Mode) -> Plan:
    tensors = [name for name in (op.name, op.weight) if name in plan.grids]
    return plan.only(tensors) if mode == "only" else plan.without(tensors)  # type: ignore[arg-type]
