"""Signatures: the same few thousand elements of a tensor, in the kit's lanes and in a trace under every order of its axes.

A signature takes all channels at some places, so that channels can be compared with each other too. Which places, follows from
the tensor's shape alone: two tensors of one shape are compared element by element.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from qkit.engines.traces.dumped_tensors import TraceTensor
from qkit.errors import DataError
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.loading import Batch, batches
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.progress import track
from qkit.quant.plan import FLOAT, Plan

#: Elements of a signature over all frames together, about; a frame has at least `_LEAST`, and one a channel up to `_MOST`.
_BUDGET = 1 << 16
_LEAST, _MOST = 256, 8192
_SEED = 20240611

Order = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Places:
    """Where a signature of `dims` is taken.

    Attributes
    ----------
    dims
        Shape of a sample without axes of size 1; `axis` its channel axis.
    coordinates
        By axis of `dims`, of every element; elements run channel by channel.
    channels
        How many channels the signature has; each has ``len(coordinates[0]) // channels`` elements.
    """

    dims: tuple[int, ...]
    axis: int
    coordinates: tuple[np.ndarray, ...]
    channels: int

    def flat(self, order: Order | None = None) -> np.ndarray:
        """Positions in a sample that is stored with its axes in this order, outermost first; by default as they are."""
        order = tuple(range(len(self.dims))) if order is None else order
        positions = np.zeros(len(self.coordinates[0]) if self.dims else 1, np.int64)
        for axis in order:
            positions = positions * self.dims[axis] + self.coordinates[axis]
        return positions


@functools.lru_cache(maxsize=1024)
def places(dims: tuple[int, ...], axis: int, frames: int) -> Places:
    """The places for tensors of these dims, `frames` of which are compared."""
    channels = dims[axis] if dims else 1
    rest = math.prod(dims) // channels
    budget = max(_BUDGET // max(frames, 1), _LEAST)
    random = np.random.default_rng(_SEED)
    taken = np.arange(channels) if channels <= _MOST else np.sort(random.choice(channels, _MOST, replace=False))
    count = min(rest, max(budget // len(taken), 1))
    spots = np.sort(random.choice(rest, count, replace=False))
    others = [i for i in range(len(dims)) if i != axis]
    found = np.unravel_index(np.tile(spots, len(taken)), tuple(dims[i] for i in others)) if others else ()
    coordinates = dict(zip(others, found, strict=True))
    coordinates[axis] = np.repeat(taken, count)
    return Places(dims, axis, tuple(coordinates[i] for i in range(len(dims))) if dims else (np.zeros(1, np.int64),), len(taken))


def squeezed(op: Operation) -> tuple[tuple[int, ...], int]:
    """Dims of an operation's sample without axes of size 1, and its channel axis among them."""
    sample = op.shape[1:]
    axis = op.channel_axis % max(len(op.shape), 1) - 1
    kept = [i for i, size in enumerate(sample) if size > 1]
    dims = tuple(sample[i] for i in kept)
    return dims, kept.index(axis) if axis in kept else 0


def orders(dims: Sequence[int]) -> list[Order]:
    """Orders in which a sample's axes may be stored, the kit's own first."""
    if len(dims) > 4:
        return [tuple(range(len(dims)))]
    return list(itertools.permutations(range(len(dims))))


@dataclass(frozen=True, eq=False)
class References:
    """The kit's own tensors on the inputs of the frames.

    Attributes
    ----------
    lanes
        Their names, "float" first.
    values
        By operation name and lane, (samples, elements of the signature), float32.
    samples
        How many.
    groups
        Room for what a search by content makes of them once.
    """

    lanes: tuple[str, ...]
    values: Mapping[str, Mapping[str, np.ndarray]]
    samples: int
    groups: dict[tuple[tuple[int, ...], int], Any] = field(default_factory=dict)


def references(
    graph: Graph, loader: Iterable[Any], plans: Mapping[str, Plan], samples: Sequence[int], *, progress: bool = True
) -> References:
    """Signatures of every tap, and of operations between taps, for these samples of the loader, in the order given.

    Raises
    ------
    DataError
        If the loader has fewer samples.
    """
    lanes = {"float": FLOAT, **plans}
    wanted = {sample: row for row, sample in enumerate(samples)}
    kept = {op.name: (op, places(*squeezed(op), len(samples))) for op in graph.operations if _comparable(op)}
    values = {
        name: {lane: np.full((len(samples), len(p.coordinates[0])), np.nan, np.float32) for lane in lanes}
        for name, (_, p) in kept.items()
    }
    start = seen = 0
    for batch in track(batches(loader), "aligning", unit="batch", show=progress):
        rows = [i for i in range(batch.size) if start + i in wanted]
        if rows:
            targets = [wanted[start + i] for i in rows]
            for name, by_lane in _signatures(graph, lanes, batch, rows, kept).items():
                for lane, signature in by_lane.items():
                    values[name][lane][targets] = signature
        start += batch.size
        seen += len(rows)
        if seen == len(samples):
            break
    if seen < len(samples):
        raise DataError(
            f"the loader has {start} samples; the trace's frames belong to {len(samples)}, up to number {max(samples)}. Pass the "
            "inputs that the device was given, or samples=."
        )
    return References(tuple(lanes), values, len(samples))


def _comparable(op: Operation) -> bool:
    return bool(op.shape) and (op.quantized or op.kind == "keep")


def _signatures(
    graph: Graph, lanes: Mapping[str, Plan], batch: Batch, rows: Sequence[int], kept: Mapping[str, tuple[Operation, Places]]
) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    # what operations without a grid make of a tap (a maximum pool, a flatten) is not observed: it is made again
    derived: dict[int, list[Operation]] = {}
    for op in graph.operations:
        if op.kind == "keep" and op.name in kept and len(op.inputs) == 1:
            derived.setdefault(op.inputs[0], []).append(op)

    def take(op: Operation, values: Mapping[str, Tensor]) -> None:
        if op.name in kept:
            spots = kept[op.name][1].flat()
            found[op.name] = {
                lane: value.detach().reshape(value.shape[0], -1).cpu().numpy()[:, spots] for lane, value in values.items()
            }
        for after in derived.get(op.index, ()):
            take(after, {lane: after.call(value) for lane, value in values.items()})

    cut = cut_batch(batch, rows)
    run_lanes(graph, [Lane(name, plan) for name, plan in lanes.items()], cut.inputs, observe=take)
    return found


def cut_batch(batch: Batch, rows: Sequence[int]) -> Batch:
    """The batch's samples `rows`, with their targets."""
    if list(rows) == list(range(batch.size)):
        return batch

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch.size:
            return value[list(rows)]
        if isinstance(value, np.ndarray) and value.ndim and len(value) == batch.size:
            return value[list(rows)]
        if isinstance(value, (list, tuple)) and len(value) == batch.size and not any(isinstance(v, Tensor) for v in value):
            return [value[i] for i in rows]
        if isinstance(value, (list, tuple)):
            return type(value)(cut(v) for v in value)
        return value

    return Batch(tuple(cut(x) for x in batch.inputs), cut(batch.targets))


def real(raw: np.ndarray, tensor: TraceTensor, spots: Places) -> np.ndarray:
    """The real numbers that stored ones stand for, float64; codes without a known step count in steps."""
    values = raw.astype(np.float64)
    if not tensor.is_integer:
        return values
    each = len(spots.coordinates[0]) // spots.channels
    zero, step = (np.asarray(n, np.float64) for n in (tensor.zero_point, tensor.step or (1.0,)))
    if zero.size > 1 or step.size > 1:
        along = spots.coordinates[spots.axis] if each else np.zeros(1, np.int64)
        zero = zero if zero.size == 1 else zero[along]
        step = step if step.size == 1 else step[along]
    return (values - zero) * step
