"""What each layer costs by itself: measured where it has been, else estimated from gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qkit.execution.gradient import GradientRanking
from qkit.execution.sensitivity import Sensitivity, known_sweep
from qkit.graph import Graph
from qkit.quant.plan import Plan
from qkit.style import number

if TYPE_CHECKING:
    from qkit.study import Study


@dataclass(frozen=True)
class Losses:
    """Loss of each layer with nothing else quantized.

    Attributes
    ----------
    by_layer
        By tap, larger is worse; in points or in the metric's unit where measured, in the loss function's where estimated.
    measured
        Whether it was measured, by a score for every layer.
    unit
        Short, for an axis.
    said
        Where it comes from, a sentence.
    show
        How a loss reads.
    """

    by_layer: Mapping[str, float]
    measured: bool
    unit: str
    said: str
    show: Callable[[Any], str]

    @property
    def order(self) -> list[str]:
        """The layers, the dearest first."""
        return sorted(self.by_layer, key=lambda layer: -self.by_layer[layer])

    @property
    def dearest(self) -> str | None:
        """The layer that costs most; None where none costs anything."""
        return next((layer for layer in self.order[:1] if self.by_layer[layer] > 0.0), None)


def losses_of(found: Sensitivity | GradientRanking, graph: Graph) -> Losses:
    """The losses in a sweep of single layers ("only") or in a ranking by gradients."""
    if isinstance(found, Sensitivity):
        units = found.units
        by_layer = {op.name: units.factor * found.effect(i).value for i, op in enumerate(found.layers)}
        of = f", {units.points}" if units.points else ""
        said = f"Loss: measured with each layer quantized alone, on {found.scores.shape[1]} samples{of}."
        return Losses(by_layer, True, f"loss alone{of}", said, lambda value: number(value, 3))
    by_layer = {}
    for tensor, cost in found.costs.items():
        name = graph.operation(tensor).name
        by_layer[name] = by_layer.get(name, 0.0) + float(cost.mean())
    order = {name: i for i, name in enumerate(graph.taps)}
    samples = len(next(iter(found.costs.values())))
    said = (
        f"Loss: estimated from gradients on {samples} samples, as the rise of the {found.loss} with each layer quantized alone."
    )
    return Losses(
        {name: by_layer[name] for name in sorted(by_layer, key=lambda name: order.get(name, 0))}, False, "loss, estimated", said,
        lambda value: number(value, 3),
    )  # fmt: skip


def known_losses(study: Study, plan: Plan) -> Losses | None:
    """The measured losses of the plan's layers, if every one has been measured on all evaluation data."""
    if not plan.grids:
        return None
    found = known_sweep(study.evaluator, plan, "only")
    return None if found is None else losses_of(found, study.graph)
