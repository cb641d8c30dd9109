"""The factors that even out channel ranges: a fixed point over all pairs of layers.

Scaling rows and columns of a weight scales the greatest magnitudes of its kernels alike, so the sweeps run on those: (G, R, C)
by group, row and column, which is small. One pair after the other gets its factors from the others' present ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from qkit.errors import GraphError
from qkit.graph import Graph, weighted
from qkit.ptq.channels import Channels, Layer

_ROWS = 256
#: Sweeps that acceleration looks back on, and growth of a sweep's changes at which it starts afresh.
_DEPTH = 3
_WORSE = 10.0


@dataclass(frozen=True, eq=False)
class Pair:
    """Layers whose channels were evened out against each other: mostly one and the next, more of them around joins.

    Attributes
    ----------
    writers, readers
        Names of the taps of the layers that were divided and of those that were multiplied.
    factors
        Of every channel that the writers have between them, float64.
    before, after
        Ratio of the widest channel to the narrowest that is not zero: (of the writers' rows, of the readers' columns).
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    factors: np.ndarray
    before: tuple[float, float]
    after: tuple[float, float]

    @property
    def name(self) -> str:
        """Both sides, the first of each."""
        return " -> ".join(
            f"{side[0]} and {len(side) - 1} more" if len(side) > 1 else side[0] for side in (self.writers, self.readers)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers."""
        return {
            "writers": list(self.writers),
            "readers": list(self.readers),
            "factors": self.factors.tolist(),
            "before": list(self.before),
            "after": list(self.after),
        }


def grouped(weight: Tensor, module: Any) -> Tensor:
    """A weight as (groups, outputs of a group, inputs of a group, kernel)."""
    groups = getattr(module, "groups", 1)
    if getattr(module, "transposed", False):
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).transpose(1, 2)
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def ungrouped(weight: Tensor, module: Any) -> Tensor:
    """Inverse of `grouped`."""
    return (weight.transpose(1, 2) if getattr(module, "transposed", False) else weight).reshape(module.weight.shape)


@dataclass(eq=False)
class _Ranges:
    """The greatest magnitudes of a layer's weight: (G, R, C) by group, row and column, and the slots of rows and columns."""

    layer: Layer
    peaks: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


@dataclass(eq=False)
class _Group:
    """Slots that are settled together, and the layers that write and read them."""

    slots: np.ndarray
    writers: list[_Ranges] = field(default_factory=list)
    readers: list[_Ranges] = field(default_factory=list)


class Solver:
    """Factors of all labels: free ones have a slot each, all others share the last, whose factor is one."""

    def __init__(self, graph: Graph, channels: Channels, limit: float) -> None:
        if not limit >= 1.0:
            raise GraphError(f"limit={limit!r} has to be at least 1: factors stay within 1/limit and limit.")
        self.channels, self.limit = channels, limit
        self.layers = [layer for layer in channels.layers if layer.refusal is None]
        roots = {int(r) for layer in self.layers for ids in (layer.reads, layer.writes) for r in channels.roots(ids)}
        self.slot = {root: i for i, root in enumerate(sorted(r for r in roots if channels.pinned(r) is None))}
        self.one = len(self.slot)
        self.values = np.ones(self.one + 1)
        self.ranges = [self._ranges(graph, layer) for layer in self.layers]
        self.groups = self._groups()
        self.spreads = [self._spread(group) for group in self.groups]

    def slots(self, labels: np.ndarray) -> np.ndarray:
        """Slot of each label."""
        return np.array([self.slot.get(int(root), self.one) for root in self.channels.roots(labels)], np.int64)

    def factors(self, labels: np.ndarray) -> np.ndarray:
        """Factor of each label."""
        values: np.ndarray = self.values[self.slots(labels)]
        return values

    def takes_part(self, layer: Layer) -> bool:
        """Whether any of the channels that the layer writes belongs to a pair."""
        return bool(np.isin(self.slots(layer.writes), self._paired()).any())

    def _paired(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.int64), *(group.slots for group in self.groups)])

    def _ranges(self, graph: Graph, layer: Layer) -> _Ranges:
        assert layer.op.weight is not None
        weight = graph.weights[layer.op.weight].detach().abs()
        if layer.op.groups > 1:
            weight = weighted.ungrouped(weight, layer.op.groups)
        peaks = grouped(weight, layer.module).amax(3).cpu().numpy()
        rows, columns = (self.slots(ids).reshape(peaks.shape[0], -1) for ids in (layer.writes, layer.reads))
        if len(peaks) == 1:  # rows and columns of one slot can be one; most of a classifier's are, and they may be many
            kept, rows = _by_slot(peaks[0], rows[0], 0)
            kept, columns = _by_slot(kept, columns[0], 1)
            peaks, rows, columns = kept[None], rows[None], columns[None]
        return _Ranges(layer, peaks, rows, columns)

    def _groups(self) -> list[_Group]:
        """Slots that one layer writes or reads are settled together, and so on through all layers that share them."""
        parent = list(range(self.one))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        ports = [ids[ids != self.one] for r in self.ranges for ids in (np.unique(r.rows), np.unique(r.columns))]
        for ids in ports:
            for other in ids[1:]:
                parent[root(int(other))] = root(int(ids[0]))
        slots: dict[int, list[int]] = {}
        for i in range(self.one):
            slots.setdefault(root(i), []).append(i)
        groups = {top: _Group(np.array(members)) for top, members in slots.items()}
        for ranges, write, read in zip(self.ranges, ports[::2], ports[1::2], strict=True):
            if len(write):
                groups[root(int(write[0]))].writers.append(ranges)
            if len(read):
                groups[root(int(read[0]))].readers.append(ranges)
        return [group for group in groups.values() if group.writers and group.readers]

    def _sides(self, group: _Group) -> tuple[np.ndarray, np.ndarray]:
        """By slot, the greatest range of a row of the writers and of a column of the readers; zero where there is none."""
        rows, columns = np.zeros(self.one + 1), np.zeros(self.one + 1)
        for r in group.writers:
            np.maximum.at(rows, r.rows, (r.peaks * self.values[r.columns][:, None, :]).max(2) / self.values[r.rows])
        for r in group.readers:
            np.maximum.at(columns, r.columns, (r.peaks / self.values[r.rows][:, :, None]).max(1) * self.values[r.columns])
        return rows[group.slots], columns[group.slots]

    def solve(self, iterations: int, tolerance: float) -> bool:
        """Sweep over the groups until no factor changes by more than that share of itself; whether that was reached.

        Sweeps alone carry a change from pair to pair and would take hundreds to even out how great whole tensors are. They are
        accelerated by Anderson's method (Walker and Ni 2011, "Anderson Acceleration for Fixed-Point Iterations", algorithm AA).
        """
        steps: list[tuple[np.ndarray, np.ndarray]] = []  # logarithms of the factors after a sweep, and what it added to them
        for _ in range(iterations):
            before = np.log(self.values)
            for group in self.groups:
                self._settle(group)
            after = np.log(self.values)
            move = after - before
            if np.abs(move).max() <= tolerance:
                return True
            if steps and np.abs(move).max() > _WORSE * np.abs(steps[-1][1]).max():
                steps.clear()
            steps = [*steps, (after, move)][-_DEPTH - 1 :]
            if len(steps) > 1:
                reached, added = (np.diff(np.stack(part, 1)) for part in zip(*steps, strict=True))
                after = after - reached @ np.linalg.lstsq(added, move, rcond=1e-10)[0]
                self.values = np.clip(np.exp(after), 1.0 / self.limit, self.limit)
        return False

    def _settle(self, group: _Group) -> None:
        first, second = self._sides(group)
        live = (first > 0) & (second > 0)  # dead channels keep their factors
        move = np.ones(len(first))
        move[live] = np.sqrt(first[live] / second[live])
        if any(r in group.readers for r in group.writers):
            move = np.sqrt(move)  # a layer that reads what its like writes reacts to the change: half the way, or it swings
        self.values[group.slots] = np.clip(self.values[group.slots] * move, 1.0 / self.limit, self.limit)

    def _spread(self, group: _Group) -> tuple[float, float]:
        spreads = []
        for ranges in self._sides(group):
            live = ranges[ranges > 0]
            spreads.append(float(live.max() / live.min()) if len(live) else 1.0)
        return spreads[0], spreads[1]

    def pairs(self) -> tuple[Pair, ...]:
        """What was settled together."""
        return tuple(
            Pair(_names(g.writers), _names(g.readers), self.values[g.slots], before, self._spread(g))
            for g, before in zip(self.groups, self.spreads, strict=True)
        )

    def pair_of(self, labels: np.ndarray) -> str | None:
        """Name of the pair that a tensor's channels belong to."""
        slots = self.slots(labels)
        for group in self.groups:
            if np.isin(slots, group.slots).any():
                return Pair(_names(group.writers), _names(group.readers), group.slots, (1, 1), (1, 1)).name
        return None

    def skipped(self) -> dict[str, str]:
        """Why layers' output channels were left."""
        found = {}
        paired = self._paired()
        for layer in self.channels.layers:
            left = [int(i) for i, slot in zip(layer.writes, self.slots(layer.writes), strict=True) if slot not in paired]
            if layer.refusal is not None:
                found[layer.op.name] = f"it {layer.refusal}"
            elif left:
                why = self.channels.pinned(left[0])
                some = (
                    "its output" if len(left) == len(layer.writes) else f"{len(left)} of {len(layer.writes)} channels: its output"
                )
                found[layer.op.name] = f"{some} {why or 'is read by no layer whose weights could make up for factors'}"
        return found


def _names(ranges: Sequence[_Ranges]) -> tuple[str, ...]:
    return tuple(r.layer.op.name for r in ranges)


def _by_slot(peaks: np.ndarray, slots: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The greatest of all rows (or columns) of one slot, and the slots that are left, in order."""
    kept, first = np.unique(np.sort(slots), return_index=True)
    if len(kept) == len(slots):
        return peaks, slots
    order = np.argsort(slots, kind="stable")
    if axis == 0:
        return np.maximum.reduceat(peaks[order], first, axis=0), kept
    parts = [np.maximum.reduceat(peaks[i : i + _ROWS, order], first, axis=1) for i in range(0, len(peaks), _ROWS)]
    return np.concatenate(parts), kept
