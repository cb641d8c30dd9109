"""The score of an edited plan, computed from the changed node on.

A :class:`Prefix` keeps, for every batch, what the unchanged part of the base plan hands to the rest of the network. A plan
that differs from the base only behind that point starts there, not at the input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qkit.errors import DataError, QkitError
from qkit.graph import Graph
from qkit.lanes import Frontier, Lane, decide, run_lanes, run_to
from qkit.loading import batches
from qkit.metrics import MetricFunction, score_batch
from qkit.plan import Plan


def first_difference(graph: Graph, a: Plan, b: Plan) -> int | None:
    """Index of the first step at which two plans decide differently, None if they never do."""
    for step in graph.steps:
        if decide(step, a, graph).key != decide(step, b, graph).key:
            return step.index
    return None


@dataclass(frozen=True, eq=False)
class Prefix:
    """The base plan's values at step `index`, batch by batch, with what is needed to score what follows."""

    graph: Graph
    plan: Plan
    index: int
    metric: str | MetricFunction
    parts: tuple[tuple[Frontier, tuple[Any, ...] | None, Any, Any, int], ...]

    @property
    def nbytes(self) -> int:
        """Bytes held by the values."""
        return sum(frontier.nbytes for frontier, *_ in self.parts)

    def advanced(self, index: int) -> Prefix:
        """The same for a later step, computed from this one's values."""
        if index < self.index:
            raise QkitError(f"a prefix at step {self.index} cannot go back to step {index}: make a new one.")
        base = Lane("base", self.plan)
        parts = [
            (run_to(self.graph, base, inputs, index, start=frontier), inputs, *rest) for frontier, inputs, *rest in self.parts
        ]
        return replace(self, index=index, parts=tuple(parts))

    def scores(self, plan: Plan) -> np.ndarray:
        """Per-sample scores of the plan, float64 (N,), from `index` on."""
        parts = []
        for frontier, inputs, targets, reference, size in self.parts:
            output = run_lanes(self.graph, [Lane("edited", plan)], inputs, start=frontier)["edited"]
            parts.append(score_batch(self.metric, output, targets, reference, size))
        return np.concatenate(parts)


def prefix(
    graph: Graph, loader: Iterable[Any], plan: Plan, index: int, metric: str | MetricFunction, *, limit: int | None = None
) -> Prefix:
    """Run the base plan up to step `index` over the loader and keep its values there.

    Raises
    ------
    DataError
        If the loader is empty or does not fit.
    """
    parts = []
    reads_inputs = any(step.argument is not None for step in graph.steps[index:])
    for batch in batches(loader, limit):
        reference = run_lanes(graph, [Lane("float")], batch.inputs)["float"] if metric == "agreement" else None
        frontier = run_to(graph, Lane("base", plan), batch.inputs, index)
        parts.append((frontier, batch.inputs if reads_inputs else None, batch.targets, reference, batch.size))
    if not parts:
        raise DataError("the evaluation loader gave no batch: pass at least one.")
    return Prefix(graph, plan, index, metric, tuple(parts))
