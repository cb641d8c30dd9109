"""What a layer's output suffers from the grids of its weight and of itself, channel by channel, on a few samples.

An error that is summed over a weight says little where its channels differ: the channels with the largest weights decide it, and
the network may hardly hear them. Behind the layer every channel stands at its own scale. So the layer is computed on the float
inputs of a few samples, in float and on its grids, and every output channel's signal and noise are compared: the local error of
`qkit.execution.prefix.Effect`, on fewer samples and by channel, quick enough to follow a handle.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from qkit.errors import DataError
from qkit.execution.lanes import Lane, Operands, compute, decide, run_to
from qkit.execution.loading import batches
from qkit.execution.tensor_errors import describe, local_errors, on_host
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.running import execution, place_inputs, walk_float
from qkit.graph.structures import flatten, rebuild
from qkit.quant.memory import by_channel
from qkit.quant.plan import Plan
from qkit.quant.sqnr import sqnr

__all__ = ["ChannelErrors", "LayerSample", "few_inputs", "grid_errors", "layer_errors", "layer_sample"]

#: Multiply-accumulates of all samples through the whole network, and their number.
_NETWORK_MACS, _FEWEST, _MOST = 2_000_000_000, 4, 32
#: Multiply-accumulates, and elements of the output, that one answer of a `LayerSample` may take: some ten milliseconds.
_LAYER_MACS, _LAYER_ELEMENTS = 60_000_000, 300_000
#: Pixels that a cut image keeps at least along each side.
_LEAST_SIDE = 16


@dataclass(frozen=True, eq=False)
class ChannelErrors:
    """Signal and noise of a layer's output channels.

    Attributes
    ----------
    signal, noise
        Sum of the squared float values, and of the squared errors, float64 (C,).
    lost
        Channels of the weight that are 0 as a whole on its grid, though in float they are not; None without a weight's grid.
    """

    signal: np.ndarray
    noise: np.ndarray
    lost: int | None = None

    @property
    def channels(self) -> int:
        """Output channels."""
        return len(self.signal)

    @functools.cached_property
    def by_channel(self) -> np.ndarray:
        """Every channel's signal to quantization noise ratio in dB, float64 (C,); NaN where it has neither signal nor noise."""
        ratio = sqnr(self.signal, self.noise)
        return np.where((self.signal == 0.0) & (self.noise == 0.0), np.nan, ratio)

    @property
    def total(self) -> float:
        """The same of all channels together."""
        return float(sqnr(float(self.signal.sum()), float(self.noise.sum())))

    @property
    def worst(self) -> float:
        """The worst channel's, among those that have a signal; NaN where none has."""
        alive = self.by_channel[self.signal > 0.0]
        return float(alive.min()) if len(alive) else math.nan

    @property
    def worst_channel(self) -> int | None:
        """Its number; None where no channel has a signal."""
        if not (self.signal > 0.0).any():
            return None
        return int(np.where(self.signal > 0.0, self.by_channel, np.inf).argmin())

    @property
    def median(self) -> float:
        """The median channel's, among those that have a signal; NaN where none has."""
        alive = np.sort(self.by_channel[self.signal > 0.0])
        # of infinities on both sides of the middle there is no mean
        return float(alive[(len(alive) - 1) // 2]) if len(alive) else math.nan


@dataclass(frozen=True, eq=False)
class LayerSample:
    """What a layer reads in float on a few samples, and what it gives there: enough to tell what any plan does to it.

    Attributes
    ----------
    op
        The layer.
    values
        What it reads.
    exact
        Its float output behind the fused activation.
    signal
        Sum of the squares by channel, float64 (C,).
    """

    graph: Graph
    op: Operation
    values: Sequence[Any]
    exact: Tensor
    signal: np.ndarray

    @classmethod
    def of(cls, graph: Graph, op: Operation, values: Sequence[Any]) -> LayerSample:
        """From what the layer reads."""
        with execution(graph.device):
            exact, figures = describe(op, compute(op, list(values), decide(op, Plan(), graph), Operands(graph, op)))
        return cls(graph, op, values, exact, on_host([figures])[0][0])

    @property
    def quick(self) -> bool:
        """Whether an answer comes within some ten milliseconds."""
        weight = 0 if self.op.weight is None else self.graph.weights[self.op.weight].numel()
        return weight <= 16 * _LAYER_ELEMENTS

    def errors(self, plan: Plan) -> ChannelErrors:
        """What the plan's grids do to the layer: its weight's, its bias's and its output's, on float inputs."""
        op, graph = self.op, self.graph
        operands = Operands(graph, op)
        with execution(graph.device):
            decision = decide(op, plan, graph)
            y = compute(op, list(self.values), decision, operands)
            errors = local_errors(op, y, self.exact, decision.output if op.quantized else None, weighted=False)
            lost = None
            if op.weight is not None and decision.weight is not None:
                axis = op.weight_axis or 0
                exact, grid = (by_channel(w, axis) for w in (graph.weights[op.weight], operands.weight(decision)))
                lost = int(((grid == 0).all(1) & (exact != 0).any(1)).sum())
        return ChannelErrors(self.signal, on_host([errors])[0][0], lost)


def few_inputs(graph: Graph, data: Iterable[Any]) -> tuple[Any, ...]:
    """The model's inputs for the first samples of the data, as few as a large network asks for.

    Raises
    ------
    DataError
        If the data have no batch.
    """
    first = next(iter(batches(data, 1)), None)
    if first is None:
        raise DataError("the loader gave no batch: pass at least one.")
    macs = max(sum(op.macs for op in graph.operations), 1)
    count = min(max(_NETWORK_MACS // macs, _FEWEST), _MOST)
    leaves, spec = flatten(first.inputs)
    size = first.size
    cut = [x[:count] if isinstance(x, Tensor) and x.ndim and x.shape[0] == size else x for _, x in leaves]
    inputs: tuple[Any, ...] = rebuild(spec, cut)
    return inputs


def layer_sample(graph: Graph, inputs: tuple[Any, ...], tensor: str) -> LayerSample:
    """What the layer of a tap or weight reads on these inputs; of large layers a part, so that answers stay quick.

    Raises
    ------
    GraphError
        If there is no such tensor.
    """
    op = graph.operation(tensor)
    if op.argument is not None:
        values: list[Any] = [place_inputs(graph, inputs)[op.argument]]
    else:
        start = run_to(graph, Lane("float"), inputs, op.index)
        values = [start.values[i].data for i in op.inputs]
    return LayerSample.of(graph, op, _part(op, values))


def grid_errors(graph: Graph, inputs: tuple[Any, ...], plans: Sequence[Plan]) -> list[dict[str, ChannelErrors]]:
    """For each plan what every grid of it does alone to the output of its layer, by tap or weight name, in one float pass."""
    found: list[dict[str, ChannelErrors]] = [{} for _ in plans]
    known: dict[Any, ChannelErrors] = {}

    def look(op: Operation, read: Sequence[Any], _before: Any, _after: Any) -> None:
        names = [name for name in (op.weight, op.name if op.quantized else None) if name is not None]
        if not any(name in plan.grids for plan in plans for name in names):
            return
        sample = LayerSample.of(graph, op, read)
        for plan, errors in zip(plans, found, strict=True):
            for name in names:
                if name not in plan.grids:
                    continue
                alone = plan.only([name])
                key = (name, alone.params(name), alone.codes(name))
                if key not in known:
                    known[key] = sample.errors(alone)
                worse = name in errors and errors[name].worst <= known[key].worst
                if not worse:  # of layers that share a weight the one that suffers most
                    errors[name] = known[key]
        known.clear()

    with execution(graph.device):
        walk_float(graph, inputs, look)
    return [{name: errors[name] for name in plan.grids if name in errors} for plan, errors in zip(plans, found, strict=True)]


def layer_errors(graph: Graph, inputs: tuple[Any, ...], layer: str, plan: Plan) -> Mapping[str, ChannelErrors]:
    """A layer's local error: "weight" and "activation" each alone on its grid, and "both"; without those that it has not."""
    sample = layer_sample(graph, inputs, layer)
    op = sample.op
    found = {}
    if op.weight is not None and op.weight in plan.grids:
        found["weight"] = sample.errors(plan.only([op.weight]))
    if op.quantized and op.name in plan.grids:
        found["activation"] = sample.errors(plan.only([op.name]))
    return {**found, "both": sample.errors(plan)}


def _part(op: Operation, values: list[Any]) -> list[Any]:
    """Fewer samples, and of a convolution's image the middle, where the layer is large."""
    samples = next((int(v.shape[0]) for v in values if isinstance(v, Tensor) and v.ndim), 0)
    if not samples or any(not isinstance(v, Tensor) or not v.ndim or v.shape[0] != samples for v in values):
        return values
    elements = math.prod(op.shape[1:]) or 1
    share = min(_LAYER_MACS / max(op.macs, 1), _LAYER_ELEMENTS / elements)
    values = [v[: max(min(int(share), samples), 1)] for v in values]
    if share < 1.0 and op.kind == "conv" and values[0].ndim > 2:
        for axis in range(2, values[0].ndim):
            size = values[0].shape[axis]
            kept = max(min(size, _LEAST_SIDE), int(size * share ** (1 / (values[0].ndim - 2))))
            values = [v.narrow(axis, (size - kept) // 2, kept) for v in values]
    return values
