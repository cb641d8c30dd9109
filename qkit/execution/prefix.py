"""What an edited plan does to the score and to the tensors, computed from the changed node on.

A :class:`Prefix` keeps, for every batch, what the unchanged part of the base plan hands to the rest of the network. A plan
that differs from the base only behind that point starts there, not at the input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from qkit.errors import DataError, QkitError
from qkit.execution.lanes import Frontier, Lane, decide, run_lanes, run_to, value_at
from qkit.execution.loading import batches
from qkit.execution.metrics import AnyMetric, Metric, metric_of, score_batch
from qkit.execution.statistics import Samples
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.structures import float_tensors
from qkit.progress import track
from qkit.quant.plan import Plan
from qkit.quant.sqnr import sqnr


def first_difference(graph: Graph, a: Plan, b: Plan) -> int | None:
    """Index of the first operation at which two plans decide differently, None if they never do."""
    for op in graph.operations:
        if decide(op, a, graph).key != decide(op, b, graph).key:
            return op.index
    return None


def agree(graph: Graph, a: Plan, b: Plan, index: int) -> bool:
    """Whether two plans decide alike at all operations before `index`."""
    first = first_difference(graph, a, b)
    return first is None or first >= index


@dataclass(frozen=True)
class Effect:
    """What a plan does to one tap, to the network's output and to the score.

    Attributes
    ----------
    tap
        The tensor looked at.
    local, layer, output
        Signal to quantization noise ratio against the float lane in dB: of the tap by its layer's quantization alone on float
        inputs, of the tap with what it inherits, and of the network's output.
    parts
        What was scored, batch by batch.
    """

    tap: str
    local: float
    layer: float
    output: float
    parts: tuple[Samples, ...]

    @property
    def scores(self) -> np.ndarray:
        """Per sample, float64 (N,)."""
        return Samples.joined(self.parts).values


@dataclass(frozen=True, eq=False)
class Part:
    """One batch: the values of the base lane, and where errors are wanted those of the float lane, and what scoring needs."""

    frontier: Frontier
    inputs: tuple[Any, ...] | None
    targets: Any
    reference: Any
    size: int
    exact: Frontier | None

    @property
    def nbytes(self) -> int:
        """Bytes held by the values."""
        return self.frontier.nbytes + (0 if self.exact is None else self.exact.nbytes)


@dataclass(frozen=True, eq=False)
class Prefix:
    """The base plan's values at operation `index`, batch by batch, with what is needed to score what follows."""

    graph: Graph
    plan: Plan
    index: int
    metric: Metric
    parts: tuple[Part, ...]

    @property
    def nbytes(self) -> int:
        """Bytes held by the values."""
        return sum(part.nbytes for part in self.parts)

    @property
    def has_errors(self) -> bool:
        """Whether the float lane's values are kept too."""
        return self.parts[0].exact is not None

    def advanced(self, index: int) -> Prefix:
        """The same for a later operation, computed from this one's values."""
        if index < self.index:
            raise QkitError(f"a prefix at operation {self.index} cannot go back to operation {index}: make a new one.")
        base = Lane("base", self.plan)
        parts = []
        for part in self.parts:
            frontier = run_to(self.graph, base, part.inputs, index, start=part.frontier)
            exact = part.exact and run_to(self.graph, Lane("float"), part.inputs, index, start=part.exact)
            parts.append(replace(part, frontier=frontier, exact=exact))
        return replace(self, index=index, parts=tuple(parts))

    def scores(self, plan: Plan) -> np.ndarray:
        """Per-sample scores of the plan, float64 (N,), from `index` on."""
        return Samples.joined(self.scores_by_batch(plan)).values

    def scores_by_batch(self, plan: Plan) -> list[Samples]:
        """The same, batch by batch."""
        parts = []
        for part in track(self.parts, "scoring", unit="batch", show=False):
            output = run_lanes(self.graph, [Lane("edited", plan)], part.inputs, start=part.frontier)["edited"]
            parts.append(score_batch(self.metric, output, part.targets, part.reference, part.size))
        return parts

    def effect(self, plan: Plan) -> Effect:
        """What the plan does to the tap of operation `index`, to the output and to the score; needs a prefix with errors.

        The float lane's output is what the lanes' scores refer to, so it is kept; its values at the tap are one step away.
        """
        if not self.has_errors:
            raise QkitError("this prefix was made for scores alone: make it with errors=True.")
        op = self.graph.operations[self.index]
        local, layer, output = (_Ratio() for _ in range(3))
        scores = []
        for part in track(self.parts, "scoring", unit="batch", show=False):
            true = value_at(self.graph, Lane("float"), part.inputs, op, start=part.exact)
            own = value_at(self.graph, Lane("local", plan), part.inputs, op, start=part.exact)
            seen: dict[str, Tensor] = {}

            def look(at: Operation, values: Mapping[str, Tensor], seen: dict[str, Tensor] = seen) -> None:
                if at is op:
                    seen.update(values)

            outputs = run_lanes(self.graph, [Lane("edited", plan)], part.inputs, start=part.frontier, observe=look)["edited"]
            local.add(true, own)
            layer.add(true, seen["edited"])
            for exact, edited in zip(float_tensors(part.reference), float_tensors(outputs), strict=True):
                output.add(exact, edited)
            scores.append(score_batch(self.metric, outputs, part.targets, part.reference, part.size))
        return Effect(op.name, local.sqnr, layer.sqnr, output.sqnr, tuple(scores))


class _Ratio:
    """Signal and noise of a tensor, summed in float64 over batches."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, exact: Tensor, other: Tensor) -> None:
        self.signal += float(exact.double().square().sum())
        self.noise += float((other.double() - exact.double()).square().sum())

    @property
    def sqnr(self) -> float:
        return float(sqnr(self.signal, self.noise))


def prefix(
    graph: Graph,
    loader: Iterable[Any],
    plan: Plan,
    index: int,
    metric: AnyMetric,
    *,
    limit: int | None = None,
    errors: bool = False,
) -> Prefix:
    """Run the base plan up to operation `index` over the loader and keep its values there.

    Parameters
    ----------
    errors
        Keep the float lane's values too, which `Prefix.effect` compares with.

    Raises
    ------
    DataError
        If the loader is empty or does not fit.
    """
    parts, metric = [], metric_of(metric)
    reads_inputs = any(op.argument is not None for op in graph.operations[index:])
    for batch in track(batches(loader, limit), "running up to the change", unit="batch", show=False):
        exact = run_to(graph, Lane("float"), batch.inputs, index) if errors else None
        reference = None
        if errors or metric.needs_float(batch.targets):
            reference = run_lanes(graph, [Lane("float")], batch.inputs, start=exact)["float"]
        frontier = run_to(graph, Lane("base", plan), batch.inputs, index)
        parts.append(Part(frontier, batch.inputs if reads_inputs else None, batch.targets, reference, batch.size, exact))
    if not parts:
        raise DataError("the evaluation loader gave no batch: pass at least one.")
    return Prefix(graph, plan, index, metric, tuple(parts))
