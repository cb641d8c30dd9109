"""One pass over the calibration data in the float lane: a histogram for every tap, then a plan from the estimators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.errors import DataError, PlanError
from qkit.estimators import Method, Observation, activation_grid, check_method, weight_grid
from qkit.graph import Graph
from qkit.graph.step import Step
from qkit.histogram import Histogram
from qkit.histogram import observe as observe_tensor
from qkit.lanes import Lane, decide, run_lanes, value_at
from qkit.loading import batches
from qkit.numerics import saturated_biases
from qkit.plan import Grid, Plan
from qkit.progress import track, uninterrupted
from qkit.schemes import Scheme


def observe(graph: Graph, loader: Iterable[Any], *, limit: int | None = None, progress: bool = True) -> dict[str, Observation]:
    """Histograms and extremes of every tap over the loader, one float pass a batch.

    Parameters
    ----------
    limit
        Most batches to take; None for all.

    Raises
    ------
    DataError
        If the loader is empty, a batch does not fit, or a tap holds NaN or infinity (named).
    """
    return Observing(graph).run(loader, limit=limit, progress=progress)


class Observing:
    """A pass of `observe` that can be interrupted: run again over the same loader, it goes on from the finished batches."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._seen = Observations()
        #: By tap; None until the pass is made.
        self.found: dict[str, Observation] | None = None

    def run(self, loader: Iterable[Any], *, limit: int | None = None, progress: bool = True) -> dict[str, Observation]:
        """What all batches showed, by tap; the pass is made once."""
        if self.found is not None:
            return self.found
        for at, batch in enumerate(track(batches(loader, limit), "calibrating", unit="batch", show=progress)):
            if at >= self._seen.count:
                self._seen.add(glimpse(self._graph, batch.inputs)[0])
        if not self._seen.count:
            raise DataError("the calibration loader gave no batch: pass at least one (about 100 images are usual).")
        self.found = self._seen.all()
        return self.found


def glimpse(graph: Graph, inputs: tuple[Any, ...]) -> tuple[dict[str, Observation], Any]:
    """What one batch shows of every tap in float, and the float output.

    Raises
    ------
    DataError
        If a tap holds NaN or infinity (named).
    """
    seen: dict[str, Observation] = {}

    def look(step: Step, values: Mapping[str, Tensor]) -> None:
        histogram, low, high = observe_tensor(values["float"], step.channel_axis, name=step.name)
        seen[step.name] = Observation(histogram, (float(low.min()),), (float(high.max()),), low, high)

    output = run_lanes(graph, [Lane("float")], inputs, observe=look)["float"]
    return seen, output


def joined(parts: Sequence[Observation]) -> Observation:
    """One tap's observations on one batch after the other, as of all of them."""
    return Observation(
        Histogram.merge([part.histogram for part in parts]),
        tuple(low for part in parts for low in part.batch_min),
        tuple(high for part in parts for high in part.batch_max),
        np.min([part.channel_min for part in parts], axis=0),
        np.max([part.channel_max for part in parts], axis=0),
    )


class Observations:
    """What every tap has shown so far, batch by batch. They are joined a few at a time, which saves most of the cost."""

    _JOIN_AT = 8

    def __init__(self, seen: Mapping[str, Observation] | None = None) -> None:
        self._parts: tuple[Mapping[str, Observation], ...] = (dict(seen),) if seen else ()
        #: Batches added.
        self.count = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, batch: Mapping[str, Observation]) -> None:
        """Count a batch's; all of it, or nothing where it is interrupted."""
        parts = (self._joined(),) if len(self._parts) >= self._JOIN_AT else self._parts
        with uninterrupted():
            self._parts, self.count = (*parts, batch), self.count + 1

    def _joined(self) -> dict[str, Observation]:
        names = dict.fromkeys(name for part in self._parts for name in part)
        return {name: joined([part[name] for part in self._parts if name in part]) for name in names}

    def all(self) -> dict[str, Observation]:
        """By tap."""
        found = self._joined()
        self._parts = (found,) if found else ()
        return found


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


def zero_divisors(graph: Graph, plan: Plan, seen: Mapping[str, Observation]) -> dict[str, float]:
    """Taps that are divided by, and what share of their observed values rounds to 0 on the plan's grid, where any does."""
    found = {}
    for step in graph.steps:
        tap = None if step.divisor is None else graph.steps[step.divisor].tap
        grid = plan.params(tap)
        if tap is not None and tap in seen and grid is not None and plan.params(step.name) is not None:
            half = 0.5 * float(grid.scale.max())
            if share := seen[tap].histogram.share_between(-half, half):
                found[tap] = share
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
