"""Float lane and quantized lane side by side through the network, layer after layer, with all calibration batches in flight.

Whoever changes a layer by what reaches it (adaptive rounding, batch norms, bias correction) has to see what the layers before
it hand on *after they were changed*. So all batches advance together, and a layer's change is in force before the next is
looked at: one pass of each lane for the whole network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.errors import DataError
from qkit.execution.lanes import Frontier, Lane, run_lanes, run_to
from qkit.execution.loading import Batch
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.running import execution
from qkit.progress import track
from qkit.quant.memory import by_channel
from qkit.quant.plan import Plan

logger = logging.getLogger(__name__)

#: Bytes of values in flight; more batches than fit are left out, and that is said.
MEMORY_BUDGET = 4 << 30


@dataclass(eq=False)
class _Part:
    inputs: tuple[Any, ...]
    exact: Frontier | None = None
    quantized: Frontier | None = None


class Walk:
    """The lanes of all batches at one operation, which only moves forward.

    Parameters
    ----------
    graph, batches
        The network, and what it is calibrated on.
    plan
        The quantized lane's; each `to` may bring another one, which must agree with it before the operation reached so far.

    Raises
    ------
    DataError
        If there is no batch.
    """

    def __init__(self, graph: Graph, batches: Iterable[Batch], plan: Plan, *, memory_budget: int = MEMORY_BUDGET) -> None:
        self.graph, self.plan = graph, plan
        self.index = 0
        most = max(1, memory_budget // max(1, 2 * 4 * peak_elements(graph)))
        self._parts: list[_Part] = []
        samples = left = 0
        for batch in batches:
            if self._parts and samples + batch.size > most:
                left += batch.size
                continue
            samples += batch.size
            self._parts.append(_Part(batch.inputs))
        if not self._parts:
            raise DataError("the calibration loader gave no batch: pass at least one (about 100 images are usual).")
        if left:
            logger.warning(
                "%d of %d calibration samples are left out: the values of more do not fit %d MiB.",
                left, samples + left, memory_budget >> 20,
            )  # fmt: skip

    def to(self, op: Operation, plan: Plan) -> None:
        """Advance both lanes of every batch up to but without the operation."""
        if op.index < self.index:
            raise ValueError(f"the walk is at operation {self.index} and does not go back to {op.index}")
        self.plan, self.index = plan, op.index
        for part in self._parts:
            part.exact = run_to(self.graph, Lane("float"), part.inputs, op.index, start=part.exact)
            part.quantized = run_to(self.graph, Lane("quantized", plan), part.inputs, op.index, start=part.quantized)

    def outputs_of_network(self, plan: Plan) -> Iterator[Any]:
        """The quantized lane's outputs, batch by batch, run on from where the walk stands."""
        for part in self._parts:
            lane = Lane("quantized", plan)
            yield run_lanes(self.graph, [lane], part.inputs, start=part.quantized)["quantized"]

    def inputs(self, op: Operation) -> Iterator[tuple[Tensor, Tensor]]:
        """What the operation reads in the float and in the quantized lane, batch by batch."""
        for part in self._parts:
            assert part.exact is not None
            assert part.quantized is not None
            source = op.inputs[0]
            yield part.exact.values[source].data, part.quantized.values[source].data

    def outputs(self, op: Operation, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """What the weighted operation gives before its activation: in float, and quantized with this weight and bias."""
        graph = self.graph
        exact = graph.weights[op.weight or ""], None if op.bias is None else graph.biases[op.bias]
        for x, quantized in self.inputs(op):
            with execution(graph.device):
                pair = op.call(x, *exact), op.call(quantized, weight, bias)
            yield pair


def layers(graph: Graph, plan: Plan, what: str, *, progress: bool = True) -> Iterator[Operation]:
    """Weighted operations whose weight has a grid, in execution order; of a module that is called twice the first call."""
    found: dict[str, Operation] = {}
    for op in graph.operations:
        if op.weight is not None and op.weight in plan.grids:
            found.setdefault(op.weight, op)
    yield from track(list(found.values()), what, unit="layer", show=progress)


def called_twice(graph: Graph, op: Operation) -> bool:
    """Whether another operation has the same weight."""
    return sum(other.weight == op.weight for other in graph.operations) > 1


def peak_elements(graph: Graph) -> int:
    """Most elements per sample of the values that are alive at once."""
    alive = peak = 0
    sizes = [int(np.prod(op.shape[1:])) if op.shape else 0 for op in graph.operations]
    for op in graph.operations:
        alive += sizes[op.index]
        peak = max(peak, alive)
        alive -= sum(size for i, size in enumerate(sizes) if graph.last_use.get(i) == op.index)
    return peak


@dataclass(eq=False)
class Moments:
    """Mean and deviation of every channel of two lanes, float64 (C,) on the CPU, over any number of batches."""

    count: int = 0
    sums: Any = 0.0
    squares: Any = 0.0

    def add(self, exact: Tensor, quantized: Tensor, axis: int) -> None:
        """Count a batch's values of both lanes."""
        rows = torch.stack([by_channel(value, axis).double() for value in (exact, quantized)])
        self.count += rows.shape[2]
        self.sums = self.sums + rows.sum(2).cpu()
        self.squares = self.squares + rows.square().sum(2).cpu()

    @property
    def means(self) -> Tensor:
        """(2, C): float lane, quantized lane."""
        return torch.as_tensor(self.sums) / max(self.count, 1)

    @property
    def deviations(self) -> Tensor:
        """(2, C): float lane, quantized lane."""
        variance = torch.as_tensor(self.squares) / max(self.count, 1) - self.means.square()
        return variance.clamp(min=0.0).sqrt()


def moments(walk: Walk, op: Operation, weight: Tensor, bias: Tensor | None) -> Moments:
    """Of the operation's output before its activation, in both lanes."""
    found = Moments()
    for exact, quantized in walk.outputs(op, weight, bias):
        found.add(exact, quantized, op.channel_axis)
    return found
