"""One pass over the calibration data in the float lane: a histogram for every tap, then a plan from the estimators."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.errors import DataError, PlanError
from qkit.estimators import Method, Observation, activation_grid, check_method, weight_grid
from qkit.graph import Graph
from qkit.histogram import Histogram
from qkit.histogram import observe as observe_tensor
from qkit.lanes import Lane, decide, run_lanes, value_at
from qkit.loading import batches
from qkit.numerics import saturated_biases
from qkit.plan import Grid, Plan
from qkit.progress import track
from qkit.schemes import Scheme
from qkit.steps import Step

logger = logging.getLogger(__name__)


def observe(graph: Graph, loader: Iterable[Any], *, limit: int | None = None, progress: bool = True) -> dict[str, Observation]:
    """Histograms and extremes of every tap over the loader, one float pass a batch.

    An interrupt keeps what was seen, and says so.

    Parameters
    ----------
    limit
        Most batches to take; None for all.

    Raises
    ------
    DataError
        If the loader is empty, a batch does not fit, or a tap holds NaN or infinity (named).
    """
    tallies: dict[str, _Tally] = {}

    def look(step: Step, values: Mapping[str, Tensor]) -> None:
        tallies.setdefault(step.name, _Tally()).add(*observe_tensor(values["float"], step.channel_axis, name=step.name))

    done = 0
    try:
        for batch in track(batches(loader, limit), "calibrating", unit="batch", show=progress):
            run_lanes(graph, [Lane("float")], batch.inputs, observe=look)
            done += 1
    except KeyboardInterrupt:
        if done == 0:
            raise
        logger.warning("calibration was interrupted: the ranges come from the %d whole batches before that.", done)
    if done == 0:
        raise DataError("the calibration loader gave no batch: pass at least one (about 100 images are usual).")
    return {name: tally.observation(done) for name, tally in tallies.items()}


def observe_channels(
    graph: Graph, loader: Iterable[Any], tap: str, *, limit: int | None = None, progress: bool = True
) -> list[Histogram]:
    """A histogram for every channel of one tap over the loader, for grids with one scale per channel.

    An interrupt ends it without a result.
    """
    step = graph.step(tap)
    if not step.quantized:
        raise PlanError(f"{tap} has no grid of its own: it shares that of {step.tap}, or stays in float.")
    parts: list[list[Histogram]] = []
    for batch in track(batches(loader, limit), "counting per channel", unit="batch", show=progress):
        value = value_at(graph, Lane("float"), batch.inputs, step)
        rows = value.movedim(step.channel_axis, 0) if value.ndim > 1 else value[:, None]
        parts.append([Histogram.of(row.contiguous(), name=tap) for row in rows])
    if not parts:
        raise DataError("the calibration loader gave no batch: pass at least one.")
    return [Histogram.merge(channel) for channel in zip(*parts, strict=True)]


class _Tally:
    """What one tap has shown so far. Histograms are merged a few batches at a time, which saves most of a merge's cost."""

    _MERGE_AT = 8

    def __init__(self) -> None:
        self.histograms: list[Histogram] = []
        self.lows: list[np.ndarray] = []
        self.highs: list[np.ndarray] = []

    def add(self, histogram: Histogram, low: np.ndarray, high: np.ndarray) -> None:
        if len(self.histograms) >= self._MERGE_AT:
            self.histograms = [Histogram.merge(self.histograms)]
        self.histograms.append(histogram)
        self.lows.append(low)
        self.highs.append(high)

    def observation(self, count: int) -> Observation:
        # an interrupted batch may have reached some of the taps: its histogram is the last one, still apart
        kept = self.histograms[:-1] if len(self.lows) > count else self.histograms
        lows, highs = self.lows[:count], self.highs[:count]
        return Observation(
            Histogram.merge(kept),
            tuple(float(low.min()) for low in lows),
            tuple(float(high.max()) for high in highs),
            np.min(lows, axis=0),
            np.max(highs, axis=0),
        )


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
    """The grids of a scheme for every tap and weight of the graph.

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
        step = graph.step(name)
        if name != step.weight and not step.quantized:
            shares = f"shares that of {step.tap}: name that" if step.tap is not None else "stays in float"
            raise PlanError(f"{name} was given a rule or a method, and has no grid of its own: it {shares}.")
    general: Method = check_method(method)
    weights: Method = check_method(weight_method)
    grids: dict[str, Grid] = {}
    for step in track(graph.steps, "choosing ranges", unit="layer", show=False):
        if step.weight is not None and (spec := scheme.spec(step.weight, weight=True)) is not None:
            weight = graph.weights[step.weight]
            grids[step.weight] = weight_grid(weight, spec, special.get(step.weight, weights), step.weight_axis, percentile)
        if step.quantized and (spec := scheme.spec(step.name, weight=False)) is not None:
            if step.name not in seen:
                raise PlanError(
                    f"{step.name} was not observed: calibrate on this graph's own taps, with qkit.observe(graph, loader)."
                )
            grids[step.name] = activation_grid(
                seen[step.name], spec, special.get(step.name, general), step.channel_axis, percentile
            )
    return Plan(grids, scheme.bias_bits, scheme.name, accumulator_bits=scheme.accumulator_bits)


def saturations(graph: Graph, plan: Plan) -> dict[str, int]:
    """Layers with biases beyond what their width holds at the accumulator's scale, and how many entries saturate there."""
    found = {}
    for step in graph.steps:
        grid = decide(step, plan, graph).bias_scale
        if grid is not None and step.bias is not None:
            source, weight, bits = grid
            count = saturated_biases(graph.biases[step.bias], source.scale.double() * weight.scale.double(), bits)
            if count:
                found[step.name] = count
    return found


def check_weights(graph: Graph) -> None:
    """Raise `DataError` naming the first weight or bias that is not finite."""
    for name, tensor in (*graph.weights.items(), *graph.biases.items()):
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise DataError(
                f"{name} (batch norm folded in): {bad} of {tensor.numel()} elements are NaN or infinite. The "
                "checkpoint is broken, or a batch norm's running variance is."
            )
