"""One pass over the calibration data in the float lane: a histogram for every tap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from qkit.errors import DataError, PlanError
from qkit.execution.lanes import Lane, run_lanes, value_at
from qkit.execution.loading import batches
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.progress import track, uninterrupted
from qkit.quant.estimators import Observation
from qkit.quant.histogram import Histogram
from qkit.quant.histogram import observe as observe_tensor


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

    def look(op: Operation, values: Mapping[str, Tensor]) -> None:
        histogram, low, high = observe_tensor(values["float"], op.channel_axis, name=op.name)
        seen[op.name] = Observation(histogram, (float(low.min()),), (float(high.max()),), low, high)

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
    op = graph.operation(tap)
    if not op.quantized:
        raise PlanError(f"{tap} has no grid of its own: it shares that of {op.tap}, or stays in float.")
    parts: list[list[Histogram]] = []
    for batch in track(batches(loader, limit), "counting per channel", unit="batch", show=progress):
        value = value_at(graph, Lane("float"), batch.inputs, op)
        rows = value.movedim(op.channel_axis, 0) if value.ndim > 1 else value[:, None]
        parts.append([Histogram.of(row.contiguous(), name=tap) for row in rows])
    if not parts:
        raise DataError("the calibration loader gave no batch: pass at least one.")
    return [Histogram.merge(channel) for channel in zip(*parts, strict=True)]
