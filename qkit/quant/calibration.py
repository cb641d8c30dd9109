"""From what calibration observed to a plan: the range of every tap and weight, by an estimator, on the grid of a scheme."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from qkit.errors import DataError, PlanError
from qkit.graph import Graph
from qkit.progress import track
from qkit.quant.biases import coarser_scales
from qkit.quant.estimators import Method, Observation, activation_grid, check_method, weight_grid
from qkit.quant.plan import Grid, Plan
from qkit.quant.schemes import Scheme

__all__ = ["check_weights", "make_plan"]


def make_plan(
    graph: Graph,
    seen: Mapping[str, Observation],
    scheme: Scheme,
    *,
    method: str = "minmax",
    weight_method: str = "minmax",
    percentile: float = 99.99,
    methods: Mapping[str, str] | None = None,
) -> Plan:
    """The grids of a scheme for every tap and weight of the graph; biases fit their width where that costs nothing.

    Parameters
    ----------
    method, weight_method
        Estimators for activations and weights.
    percentile
        For the method of that name.
    methods
        Estimators by tap or weight name, which win over the general ones.

    Raises
    ------
    PlanError
        For an unknown method, a name in `methods` or the scheme's overrides that has no grid of its own, or a tap that
        `seen` lacks.
    GraphError
        For such a name that the graph does not have.
    """
    special = {name: check_method(m) for name, m in (methods or {}).items()}
    for name in (*special, *scheme.overrides):
        op = graph.operation(name)
        if name != op.weight and not op.quantized:
            shares = f"shares that of {op.tap}: name that" if op.tap is not None else "stays in float"
            raise PlanError(f"{name} was given a rule or a method, and has no grid of its own: it {shares}.")
    general: Method = check_method(method)
    weights: Method = check_method(weight_method)
    grids: dict[str, Grid] = {}
    for op in track(graph.operations, "choosing ranges", unit="layer", show=False):
        if op.weight is not None and (spec := scheme.spec(op.weight, weight=True)) is not None:
            weight = graph.weights[op.weight]
            grids[op.weight] = weight_grid(weight, spec, special.get(op.weight, weights), op.weight_axis, percentile)
        if op.quantized and (spec := scheme.spec(op.name, weight=False)) is not None:
            if op.name not in seen:
                raise PlanError(
                    f"{op.name} was not observed: calibrate on this graph's own taps, with qkit.observe(graph, loader)."
                )
            grids[op.name] = activation_grid(seen[op.name], spec, special.get(op.name, general), op.channel_axis, percentile)
    grids |= coarser_scales(graph, grids, scheme.bias_bits, seen)
    return Plan(grids, scheme.bias_bits, scheme.name, accumulator_bits=scheme.accumulator_bits, arithmetic=scheme.arithmetic)


def check_weights(graph: Graph) -> None:
    """Raise `DataError` naming the first weight or bias that is not finite."""
    for name, tensor in (*graph.weights.items(), *graph.biases.items()):
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise DataError(
                f"{name} (batch norm folded in): {bad} of {tensor.numel()} elements are NaN or infinite. The "
                "checkpoint is broken, or a batch norm's running variance is."
            )
