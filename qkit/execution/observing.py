"""One pass over the calibration data in the float lane: a histogram for every tap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.errors import DataError, PlanError
from qkit.execution.lanes import Lane, run_lanes, value_at
from qkit.execution.loading import batches
from qkit.execution.products import Sums
from qkit.execution.replay import Replayed
from qkit.execution.tensor_errors import Figures, describe, finite, on_host
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.progress import track, uninterrupted
from qkit.quant.compiled import kernels_for
from qkit.quant.estimators import Observation
from qkit.quant.histogram import KEYS, Histogram, count_on_device, counted, from_tables, refuse_non_finite
from qkit.quant.histogram import observe as observe_tensor


def observe(graph: Graph, loader: Iterable[Any], *, limit: int | None = None, progress: bool = True) -> Mapping[str, Observation]:
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
    return Observations().run(graph, loader, limit=limit, progress=progress)


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


class Observations:
    """What every tap has shown so far, batch by batch. They are joined a few at a time, which saves most of the cost.

    Attributes
    ----------
    count
        Batches added.
    whole
        Whether a pass over a loader, by `run`, has come to its end.
    """

    _JOIN_AT = 8

    def __init__(self, seen: Mapping[str, Observation] | None = None) -> None:
        self._parts: tuple[Mapping[str, Observation], ...] = (dict(seen),) if seen else ()
        self._tables: Tables | None = None
        self.count = 0
        self.whole = False

    def __bool__(self) -> bool:
        return bool(self._parts)

    def run(
        self, graph: Graph, loader: Iterable[Any], *, limit: int | None = None, progress: bool = True
    ) -> Mapping[str, Observation]:
        """What all batches show, by tap; the pass is made once. Run again after an interrupt, over the same loader, it goes on
        from the finished batches.
        """
        if not self.whole:
            try:
                for at, batch in enumerate(track(batches(loader, limit), "calibrating", unit="batch", show=progress)):
                    if at >= self.count:
                        self._take(graph, batch.inputs)
            finally:
                if self._tables is not None:
                    self._tables.settle()
            if self._tables is not None:
                self._parts, self._tables = (*self._parts, self._tables.all()), None
            if not self.count:
                raise DataError("the calibration loader gave no batch: pass at least one (about 100 images are usual).")
            self.whole = True
        return self.all()

    def _take(self, graph: Graph, inputs: tuple[Any, ...]) -> None:
        if kernels_for(graph.device) is None:
            self.add(glimpse(graph, inputs)[0])
            return
        self._tables = Tables(graph) if self._tables is None else self._tables
        self._tables.add(inputs)
        self.count = self._tables.count

    def add(self, batch: Mapping[str, Observation]) -> None:
        """Count a batch's; all of it, or nothing where it is interrupted."""
        parts = (_joined(self._parts),) if len(self._parts) >= self._JOIN_AT else self._parts
        with uninterrupted():
            self._parts, self.count = (*parts, batch), self.count + 1

    def all(self) -> Mapping[str, Observation]:
        """By tap."""
        if len(self._parts) > 1:
            self._parts = (_joined(self._parts),)
        return self._parts[0] if self._parts else {}


class Tables:
    """What every tap of a graph on a GPU shows, counted there: histograms come to the host once, at the end.

    Two tables a tap, 1 MiB each, hold the counts of all batches and of the one that is being counted.

    Attributes
    ----------
    count
        Batches added.
    """

    def __init__(self, graph: Graph) -> None:
        self.count = 0
        self._graph = graph
        self._taps = [op for op in graph.operations if op.quantized]
        self._places = {op.index: at for at, op in enumerate(self._taps)}
        self._batch = torch.empty((len(self._taps), 2, KEYS), dtype=torch.int64, device=graph.device)
        self._total = torch.zeros_like(self._batch)
        # of every batch its taps' least and greatest values, (T,), and of all batches those by channel
        self._lows: list[np.ndarray] = []
        self._highs: list[np.ndarray] = []
        self._channels: list[np.ndarray] = []
        self._replayed: Replayed[list[Figures]] | None = None

    def _count(self, inputs: tuple[Any, ...]) -> list[Figures]:
        """Fill the batch's tables; what `describe` says of every tap."""
        described: list[Figures] = []

        def finish(op: Operation, y: Tensor | Sums, _params: Any, _lanes: Any, _reference: Any) -> Tensor:
            value, figures = describe(op, y)
            described.append(figures)
            count_on_device(value, self._batch[self._places[op.index]])
            return value

        run_lanes(self._graph, [Lane("float")], inputs, finish=finish)
        return described

    def add(self, inputs: tuple[Any, ...]) -> None:
        """Count a batch; all of it, or nothing where it is interrupted.

        Raises
        ------
        DataError
            If a tap holds NaN or infinity (named).
        """
        if self._replayed is None:
            self._replayed = Replayed(self._count, self._graph.device)
        found = on_host(self._replayed(inputs))
        if not all(map(finite, found)):
            at = next(at for at, figures in enumerate(found) if not finite(figures))
            keys, counts, _ = counted(self._batch[at])
            refuse_non_finite(self._taps[at].name, keys, counts)
        extremes = [figures[1:].astype(np.float32) for figures in found]
        lows, highs = (np.array([getattr(e[row], of)() for e in extremes]) for row, of in ((0, "min"), (1, "max")))
        before = self._channels or extremes
        channels = [np.stack([np.minimum(a[0], b[0]), np.maximum(a[1], b[1])]) for a, b in zip(before, extremes, strict=True)]
        with uninterrupted():
            self._total += self._batch
            self._channels = channels
            self._lows.append(lows)
            self._highs.append(highs)
            self.count += 1

    def settle(self) -> None:
        """No batch comes for now: what running them would go on with is given up."""
        self._replayed = None

    def all(self) -> dict[str, Observation]:
        """By tap."""
        low, high = np.stack(self._lows, 1), np.stack(self._highs, 1)
        histograms = from_tables(self._total, [(float(a.min()), float(b.max())) for a, b in zip(low, high, strict=True)])
        return {
            op.name: Observation(histogram, tuple(lows.tolist()), tuple(highs.tolist()), channels[0], channels[1])
            for op, histogram, lows, highs, channels in zip(self._taps, histograms, low, high, self._channels, strict=True)
        }


def _joined(parts: Sequence[Mapping[str, Observation]]) -> dict[str, Observation]:
    """The observations of some batches after those of others, by tap."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _as_one([part[name] for part in parts if name in part]) for name in names}


def _as_one(parts: Sequence[Observation]) -> Observation:
    return Observation(
        Histogram.merge([part.histogram for part in parts]),
        tuple(low for part in parts for low in part.batch_min),
        tuple(high for part in parts for high in part.batch_max),
        np.min([part.channel_min for part in parts], axis=0),
        np.max([part.channel_max for part in parts], axis=0),
    )


def observe_channels(
    graph: Graph, loader: Iterable[Any], tap: str, *, limit: int | None = None, progress: bool = True
) -> list[Histogram]:
    """A histogram for every channel of one tap over the loader, for grids with one scale per channel.

    An interrupt ends it without a result.
    """
    op = graph.operation(tap)
    if not op.quantized:
        raise PlanError(f"{tap} has no grid of its own: it shares that of {op.tap}, or stays in float.")
    parts = [
        Histogram.of_channels(value_at(graph, Lane("float"), batch.inputs, op), op.channel_axis, name=tap)
        for batch in track(batches(loader, limit), "counting per channel", unit="batch", show=progress)
    ]
    if not parts:
        raise DataError("the calibration loader gave no batch: pass at least one.")
    return [Histogram.merge(channel) for channel in zip(*parts, strict=True)]
