"""Which calibration samples set the ranges: every tap's least and greatest value, sample by sample, in one float pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qkit.errors import DataError
from qkit.execution.evaluator import Evaluator
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.loading import batches
from qkit.execution.pictures import images_of, look_of
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.progress import track, uninterrupted
from qkit.style import frame_dict

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture

__all__ = ["RangeSamples", "range_samples"]


@dataclass(frozen=True, eq=False)
class RangeSamples:
    """Every sample's least and greatest value in every tap.

    Attributes
    ----------
    taps
        In execution order; those whose first dimension is not the samples' are left out.
    low, high
        float32 (T, N).
    left_out
        Taps of which no sample's own values can be told.
    images
        Pictures of the samples that set most ranges, by number, uint8 (H, W, 3).
    """

    taps: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    left_out: tuple[str, ...] = ()
    images: Mapping[int, np.ndarray] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.low.shape[1])

    def table(self) -> pd.DataFrame:
        """A row per tap: ``low`` and ``high``, the ``sample`` that sets each, and how far ``beyond`` the next sample that is.

        ``beyond`` is a share of the tap's whole range: 0.3 is a range that would be 30 % narrower at this end without the sample.
        With one sample alone it is missing. Of samples with the same extreme the first is named, and it is 0 beyond.
        """
        rows = []
        for low, high in zip(self.low.astype(float), self.high.astype(float), strict=True):
            width = float(high.max() - low.min())
            row: dict[tuple[str, str], Any] = {}
            for end, values, sign in (("low", low, -1.0), ("high", high, 1.0)):
                at = int((sign * values).argmax())
                others = np.delete(sign * values, at)
                beyond = (sign * values[at] - others.max()) / (width or 1.0) if len(others) else np.nan
                row |= {(end, "value"): float(values[at]), (end, "sample"): at, (end, "beyond"): float(beyond)}
            rows.append(row)
        columns = pd.MultiIndex.from_product([("low", "high"), ("value", "sample", "beyond")])
        return pd.DataFrame([list(row.values()) for row in rows], pd.Index(self.taps, name="tap"), columns)

    def ranking(self) -> pd.DataFrame:
        """A row per sample that sets an end of a range alone, those that set most first.

        Columns: ``ends`` that it sets, ``beyond``, the mean of how far beyond the next sample it is there (see `table`), the
        ``most`` of these, and the tap ``where`` that is.
        """
        table = self.table()
        ends = [
            (int(sample), float(beyond), tap)
            for end in ("low", "high")
            for tap, sample, beyond in zip(self.taps, table[end, "sample"], table[end, "beyond"], strict=True)
        ]
        found: dict[int, list[tuple[float, str]]] = {}
        for sample, beyond, tap in ends:
            # where several samples reach the same end, as 0 after a ReLU, none of them sets it
            if not beyond <= 0.0:
                found.setdefault(sample, []).append((beyond, tap))
        rows = {}
        for sample, places in found.items():
            most, where = max(places, key=lambda place: place[0])
            rows[sample] = {"ends": len(places), "beyond": float(np.mean([b for b, _ in places])), "most": most, "where": where}
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=["ends", "beyond", "most", "where"]).rename_axis("sample")
        return frame.sort_values(["ends", "beyond"], ascending=False, kind="stable")

    def captions(self) -> dict[int, str]:
        """By sample with a picture, its number and what it sets."""
        rows = self.ranking().to_dict("index")
        said = "{}: {} ends, {:.0f} % beyond"
        return {n: said.format(n, rows[n]["ends"], 100 * rows[n]["beyond"]) for n in self.images}

    def plot(self) -> Picture:
        """The pictures of the samples that set most ranges."""
        from qkit.figures.thumbnails import sheet

        return sheet(self.images, self.captions(), f"the {len(self.images)} samples that set most ranges")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the pictures."""
        return {
            "samples": self.samples, "taps": frame_dict(self.table()), "ranking": frame_dict(self.ranking()),
            "left out": list(self.left_out),
        }  # fmt: skip

    def __repr__(self) -> str:
        first = self.ranking().head(3)["ends"]
        said = ", ".join(f"sample {number} sets {ends}" for number, ends in first.items()) or "no sample sets one alone"
        return f"RangeSamples({len(self.taps)} taps on {self.samples} samples; of {2 * len(self.taps)} ends {said})"

    def _repr_html_(self) -> str:
        from qkit.figures.thumbnails import html

        return html(self.images, self.captions()) + str(self.ranking().head(20).to_html(float_format="{:.3f}".format))


def range_samples(
    evaluator: Evaluator,
    *,
    images: int = 12,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    batches: int | None = None,
    progress: bool = True,
) -> RangeSamples:
    """Which calibration samples set the ranges, and how they look; one float pass, which goes on where it was interrupted.

    Parameters
    ----------
    images
        Most pictures, of those that set most ranges; 0 for none.
    mean, std
        How the images were normalized, see `qkit.execution.pictures.look_of`.
    batches
        Calibration batches to take; None for all.

    Raises
    ------
    DataError
        If the data are empty or do not fit, or a tap is not finite.
    """
    look = look_of(evaluator.calibration, mean, std)
    work: Extremes = evaluator.resumed("extremes", batches, lambda: Extremes(evaluator.graph))
    found = work.run(evaluator.calibration, limit=batches, progress=progress)
    evaluator.finished("extremes")
    worst = [int(number) for number in found.ranking().index[: max(images, 0)]]
    shown = images_of(evaluator.calibration, worst, look, limit=batches, progress=progress)
    return replace(found, images={number: shown[number] for number in worst if number in shown})


class Extremes:
    """A pass that can be interrupted: run again over the same loader, it goes on from the finished batches."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._parts: list[dict[str, tuple[np.ndarray, np.ndarray]]] = []
        self._sizes: list[int] = []

    def run(self, loader: Iterable[Any], *, limit: int | None = None, progress: bool = True) -> RangeSamples:
        """What all batches show.

        Raises
        ------
        DataError
            If the loader is empty, a batch does not fit, or a tap holds NaN or infinity (named).
        """
        for at, batch in enumerate(track(batches(loader, limit), "extremes by sample", unit="batch", show=progress)):
            if at < len(self._parts):
                continue
            found = self._of_batch(batch.inputs, batch.size)
            with uninterrupted():
                self._parts.append(found)
                self._sizes.append(batch.size)
        if not self._parts:
            raise DataError("the calibration loader gave no batch: pass at least one.")
        taps = tuple(tap for tap in self._graph.taps if all(tap in part for part in self._parts))
        low, high = (np.stack([np.concatenate([p[tap][end] for p in self._parts]) for tap in taps]) for end in (0, 1))
        return RangeSamples(taps, low, high, tuple(tap for tap in self._graph.taps if tap not in taps))

    def _of_batch(self, inputs: tuple[Any, ...], size: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

        def look(op: Operation, values: Mapping[str, Tensor]) -> None:
            y = values["float"]
            if not y.ndim or y.shape[0] != size:
                return
            rows = y.reshape(size, -1)
            low, high = (x.float().cpu().numpy() for x in torch.aminmax(rows, dim=1))
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise DataError(f"{op.name} holds NaN or infinity on the calibration data: study.diagnose() says why.")
            found[op.name] = low, high

        run_lanes(self._graph, [Lane("float")], inputs, observe=look)
        return found
