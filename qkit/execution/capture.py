"""Capture: every tap's tensors in every lane, and the table of their errors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import Tensor

from qkit.closing import Closeable
from qkit.errors import DataError, QkitError
from qkit.execution.lanes import Lane, lane_weight, run_lanes
from qkit.execution.loading import batches
from qkit.execution.products import Sums
from qkit.execution.replay import Replayed, can_be_recorded
from qkit.execution.tensor_errors import (
    ErrorSums,
    Figures,
    FloatSums,
    describe,
    local_errors,
    measure,
    no_errors,
    on_host,
    refuse_non_finite,
)
from qkit.files import check_unused, explained, file_name, write_bytes
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.progress import track, uninterrupted
from qkit.quant.grids import QuantParams, dequantize, quantize
from qkit.quant.memory import by_channel
from qkit.quant.plan import Plan
from qkit.quant.sqnr import sqnr
from qkit.style import json_numbers

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture

__all__ = ["Capture", "LaneTensor", "Store", "TapCapture", "capture"]

logger = logging.getLogger(__name__)

#: Kept tensors stay in memory up to this many bytes, then go to files.
MEMORY_BUDGET = 1 << 30
_LOCAL = " (local)"
#: A tensor's figures, what adds them once the batch is through, and the operation if they describe its float value.
Pending = tuple[Figures, Callable[[np.ndarray], None], Operation | None]
_SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class LaneTensor:
    """One tensor in one lane.

    Attributes
    ----------
    values
        float32, the shape of the tensor.
    codes
        Integer codes, torch.int8, uint8, int16 or uint16; None in float.
    params
        The grid, None in float.
    """

    values: Tensor
    codes: Tensor | None
    params: QuantParams | None

    @property
    def scale(self) -> Tensor | None:
        """Step of the grid, float32, () or (C,)."""
        return None if self.params is None else self.params.scale

    @property
    def zero_point(self) -> Tensor | None:
        """Code of 0, int32, () or (C,)."""
        return None if self.params is None else self.params.zero_point

    def __repr__(self) -> str:
        what = "float" if self.codes is None else f"{self.codes.dtype} codes on {self.params}"
        return f"LaneTensor({tuple(self.values.shape)}, {what})"


class TapCapture:
    """One tap's tensors by lane: ``tap.int8.codes``, or ``tap["int8"]`` for names that are no identifiers."""

    def __init__(self, name: str, lanes: Mapping[str, LaneTensor]) -> None:
        self.name = name
        self.lanes = dict(lanes)

    def __getitem__(self, lane: str) -> LaneTensor:
        if lane not in self.lanes:
            raise QkitError(f"{self.name} was not captured in lane {lane!r}; there are {', '.join(self.lanes)}.")
        return self.lanes[lane]

    def __getattr__(self, lane: str) -> LaneTensor:
        try:
            return self.__dict__["lanes"][lane]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no lane {lane!r}") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.lanes]

    def __repr__(self) -> str:
        return f"TapCapture({self.name}: {', '.join(self.lanes)})"


@dataclass(eq=False)
class Store:
    """Kept tensors: in memory up to `budget` bytes, beyond that in safetensors files under `folder`, one per batch and tap."""

    taps: frozenset[str]
    folder: Path | None
    budget: int
    memory: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    files: dict[tuple[str, str], list[Path]] = field(default_factory=dict)
    nbytes: int = 0

    def put(self, tap: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep one batch of a tap: by lane, codes where the lane has a grid, else values."""
        size = sum(t.nbytes for t in tensors.values())
        if self.nbytes + size <= self.budget and not any((tap, lane) in self.files for lane in tensors):
            self.nbytes += size
            for lane, tensor in tensors.items():
                self.memory.setdefault((tap, lane), []).append(tensor)
            return
        if self.folder is None:
            raise QkitError(
                f"keeping {tap} takes more than the budget of {self.budget / 2**20:.0f} MiB: name a folder= for the rest, keep "
                "fewer taps (keep=[…]), or raise memory_budget=."
            )
        number = len(self.files.get((tap, next(iter(tensors))), []))
        path = self.folder / f"{file_name(tap)}.{number:05d}{_SUFFIX}"
        stored = safetensors.torch.save({lane: t.contiguous() for lane, t in tensors.items()}, metadata={"tap": tap})
        with uninterrupted():
            # a file that is not noted would be in the way of the next pass
            write_bytes(path, stored, parents=True, new=True)
            for lane in tensors:
                self.files.setdefault((tap, lane), []).append(path)

    def shorten(self, count: int) -> None:
        """Forget what is beyond the first `count` batches: a batch that was interrupted."""
        for tensors in self.memory.values():
            self.nbytes -= sum(t.nbytes for t in tensors[count:])
            del tensors[count:]
        for place, paths in self.files.items():
            kept = max(count - len(self.memory.get(place, [])), 0)
            for path in paths[kept:]:
                path.unlink(missing_ok=True)
            del paths[kept:]

    def get(self, tap: str, lane: str, count: int) -> Tensor | None:
        """The first `count` batches of a tap in a lane, concatenated; None if it was not kept."""
        parts = list(self.memory.get((tap, lane), []))
        for path in self.files.get((tap, lane), [])[: max(count - len(parts), 0)]:
            try:
                with explained(path, "read"), safetensors.safe_open(path, framework="pt") as stored:
                    parts.append(stored.get_tensor(lane))
            except safetensors.SafetensorError as error:
                raise QkitError(f"{path} no longer holds {tap} in {lane} ({error}): capture it again.") from error
        return torch.cat(parts[:count]) if parts else None


class Capture(Closeable):
    """Errors of every tap in every lane over the batches seen, and the tensors themselves.

    Made by :func:`capture`. ``capture["features.0.0"].int8.codes`` gives a tap's tensors: all batches if the tap was kept,
    otherwise the first batch, run again for that tap. Closed, it has its figures still and no tensors, which raises `QkitError`;
    files that kept tensors went to stay in the folder that was named for them.
    """

    def __init__(self, graph: Graph, plans: Mapping[str, Plan], store: Store) -> None:
        self.graph = graph
        self.plans = dict(plans)
        self.floats: dict[str, FloatSums] = {}
        self.errors: dict[tuple[str, str], ErrorSums] = {}
        self.samples = 0
        self.batches = 0
        self._replayed: Replayed[list[Pending]] | None = None
        self._store = store
        self._first: tuple[Any, ...] | None = None

    def _release(self) -> None:
        self.settle()
        self._store.memory.clear()
        self._store.files.clear()
        self._first = None

    @property
    def lanes(self) -> tuple[str, ...]:
        """Names of the lanes, float first."""
        return ("float", *self.plans)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps, in execution order."""
        return self.graph.taps

    def __getitem__(self, name: str) -> TapCapture:
        self._check_open()
        op = self.graph.operation(name)
        if op.weight == name and op.name != name:
            return self._weight(name)
        kept = {lane: self._store.get(name, lane, self.batches) for lane in self.lanes}
        if any(t is None for t in kept.values()):
            kept = self._again(op)
        return TapCapture(name, {lane: self._tensor(name, lane, t) for lane, t in kept.items() if t is not None})

    def _tensor(self, name: str, lane: str, kept: Tensor) -> LaneTensor:
        params = None if lane == "float" else self.plans[lane].params(name)
        if params is None or kept.is_floating_point():
            return LaneTensor(kept, None if params is None else quantize(kept, params, name=name), params)
        return LaneTensor(dequantize(kept, params), kept, params)

    def _weight(self, name: str) -> TapCapture:
        weight = self.graph.weights[name]
        lanes = {"float": LaneTensor(weight, None, None)}
        for lane, plan in self.plans.items():
            params = plan.params(name)
            value = lane_weight(self.graph, plan, name)
            lanes[lane] = LaneTensor(value, None if params is None else quantize(value, params, name=name), params)
        return TapCapture(name, lanes)

    def _again(self, op: Operation) -> dict[str, Tensor | None]:
        found: dict[str, Tensor | None] = {}

        def look(at: Operation, values: Mapping[str, Tensor]) -> None:
            if at is op:
                found.update(values)

        run_lanes(self.graph, self._plain_lanes(), self._first, observe=look)
        return found

    def _plain_lanes(self) -> list[Lane]:
        return [Lane("float"), *(Lane(name, plan) for name, plan in self.plans.items())]

    def run(self, inputs: tuple[Any, ...], size: int) -> None:
        """Take one batch into account, once it is through."""
        self._check_open()
        self._store.shorten(self.batches)
        if self._replayed is None:
            possible = not self._store.taps and can_be_recorded(self.plans.values())
            self._replayed = Replayed(self._lockstep, self.graph.device, possible=possible)
        pending = self._replayed(inputs)
        found = on_host([figures for figures, _, _ in pending])
        for figures, (_, _, described) in zip(found, pending, strict=True):
            if described is not None:
                refuse_non_finite(described, figures)
        with uninterrupted():
            for figures, (_, add, _) in zip(found, pending, strict=True):
                add(figures)
            self.samples += size
            self.batches += 1
            if self._first is None:
                self._first = inputs

    def _lockstep(self, inputs: tuple[Any, ...]) -> list[Pending]:
        """The figures of all tensors, with what adds them."""
        pending: list[Pending] = []
        local = [Lane(name + _LOCAL, plan, reads="float") for name, plan in self.plans.items()]
        # local lanes first: their tensors are gone before the lanes that live on make theirs
        float_lane, *others = self._plain_lanes()
        observe = self._keep if self._store.taps else None
        finish = partial(self._finish, pending)
        run_lanes(self.graph, [float_lane, *local, *others], inputs, finish=finish, observe=observe)
        return pending

    def settle(self) -> None:
        """No batch comes any more: what running them would go on with is given up."""
        self._replayed = None

    def _finish(
        self, pending: list[Pending], op: Operation, y: Tensor | Sums, params: QuantParams | None, lanes: tuple[str, ...],
        reference: Tensor | None,
    ) -> Tensor:  # fmt: skip
        if reference is None:
            value, found = describe(op, y)
            pending.append((found, partial(self._add_float, op, value.numel(), lanes[1:]), op))
            return value
        if all(lane.endswith(_LOCAL) for lane in lanes):
            weighted = op.weight is not None and self.plans[lanes[0].removesuffix(_LOCAL)].params(op.weight) is not None
            errors = local_errors(op, y, reference, params, weighted=weighted)
            pending.append((errors, partial(self._add_local, op, lanes), None))
            return reference
        value, found = measure(op, y, reference, params)
        pending.append((found, partial(self._add, op, lanes, value.numel()), None))
        return value

    def _add_float(self, op: Operation, elements: int, others: tuple[str, ...], figures: np.ndarray) -> None:
        if op.name not in self.floats:
            self.floats[op.name] = FloatSums()
        self.floats[op.name].add(figures, elements / figures.shape[1])
        # a lane that has not diverged yet has no error here, but its extremes and counts are the float lane's
        if others:
            self._add(op, others, elements, no_errors(figures))

    def _add(self, op: Operation, lanes: tuple[str, ...], elements: int, figures: np.ndarray) -> None:
        self._add_local(op, tuple(lane for lane in lanes if lane.endswith(_LOCAL)), figures[[0, 0]])
        for lane in lanes:
            if not lane.endswith(_LOCAL):
                self._record(op, lane).add(figures, elements / figures.shape[1])

    def _add_local(self, op: Operation, lanes: tuple[str, ...], figures: np.ndarray) -> None:
        for lane in lanes:
            self._record(op, lane).add_local(figures)

    def _record(self, op: Operation, lane: str) -> ErrorSums:
        key = op.name, lane.removesuffix(_LOCAL)
        if key not in self.errors:
            self.errors[key] = ErrorSums()
        return self.errors[key]

    def _keep(self, op: Operation, values: Mapping[str, Tensor]) -> None:
        if op.name not in self._store.taps:
            return
        kept = {}
        for lane in self.lanes:
            params = None if lane == "float" else self.plans[lane].params(op.name)
            value = values[lane]
            kept[lane] = (value.clone() if params is None else quantize(value, params, name=op.name)).cpu()
        self._store.put(op.name, kept)

    def table(self) -> pd.DataFrame:
        """A row per tap in execution order, a column group per lane.

        Columns of a quantized lane: ``scale``, ``zero point``, ``sqnr`` (dB, accumulated: this lane's tensor against
        float's), ``local sqnr`` (dB, this layer's quantization alone on float inputs), ``cosine``, ``mean error`` and
        ``max error`` (absolute, in the tensor's units), ``clipped`` (share of elements), ``used`` (share of the grid's
        range between the extremes), ``rounding`` and ``clipping`` (mean squared, of the tap's own grid).
        """
        index = [name for name in self.taps if name in self.floats]
        rows = []
        for name in index:
            op = self.graph.operation(name)
            base = self.floats[name]
            signal = float(base.squared.sum())
            row: dict[tuple[str, str], Any] = {
                ("tap", "kind"): op.kind,
                ("tap", "shape"): "x".join(map(str, op.shape[1:])),
                ("tap", "macs"): op.macs,
                ("float", "min"): float(base.least.min()),
                ("float", "max"): float(base.greatest.max()),
                ("float", "rms"): (signal / (base.count * len(base.squared))) ** 0.5,
            }
            for lane, plan in self.plans.items():
                row |= {(lane, k): v for k, v in self._figures(name, lane, plan.params(name), signal).items()}
            rows.append(row)
        frame = pd.DataFrame(rows, index=pd.Index(index, name="tap"))
        return _two_levels(frame)

    def _figures(self, name: str, lane: str, params: QuantParams | None, signal: float) -> dict[str, Any]:
        sums = self.errors[name, lane]
        elements = sums.count * len(sums.squared)
        squared, product = float(sums.squared.sum()), float(sums.product.sum())
        energy = max(signal + 2.0 * product + squared, 0.0)
        norm = (signal * energy) ** 0.5
        used = scale = zero = None
        if params is not None:
            span = float((params.hi - params.lo).max())
            used = float(sums.greatest.max() - sums.least.min()) / span
            scale = float(params.scale.max())
            zero = int(params.zero_point) if params.axis is None else None
        return {
            "scale": scale,
            "zero point": zero,
            "sqnr": float(sqnr(signal, squared)),
            "local sqnr": float(sqnr(signal, sums.local.sum())),
            "cosine": (signal + product) / norm if norm > 0 else float("nan"),
            "mean error": float(sums.absolute.sum()) / elements,
            "max error": float(sums.peak.max()),
            "clipped": float(sums.clipped.sum()) / elements,
            "used": used,
            "rounding": float(sums.own.sum() - sums.clipping.sum()) / elements,
            "clipping": float(sums.clipping.sum()) / elements,
        }

    def per_channel(self, tap: str) -> pd.DataFrame:
        """A row per channel of a tap, the same figures as `table` where they make sense for one channel."""
        op = self.graph.operation(tap)
        if op.name not in self.floats:
            raise QkitError(f"{tap} was not captured; {'is a weight' if op.weight == tap else 'no batch reached it'}.")
        base = self.floats[op.name]
        columns: dict[tuple[str, str], np.ndarray] = {
            ("float", "min"): base.least,
            ("float", "max"): base.greatest,
            ("float", "rms"): np.sqrt(base.squared / base.count),
        }
        for lane, plan in self.plans.items():
            sums = self.errors[op.name, lane]
            params = plan.params(op.name)
            energy = np.maximum(base.squared + 2 * sums.product + sums.squared, 0.0)
            norm = np.sqrt(base.squared * energy)
            with np.errstate(divide="ignore", invalid="ignore"):
                cosine = np.where(norm > 0, (base.squared + sums.product) / norm, np.nan)
            columns |= {
                (lane, "sqnr"): sqnr(base.squared, sums.squared),
                (lane, "local sqnr"): sqnr(base.squared, sums.local + np.zeros_like(base.squared)),
                (lane, "cosine"): cosine,
                (lane, "mean error"): sums.absolute / sums.count,
                (lane, "max error"): sums.peak + np.zeros_like(base.squared),
                (lane, "clipped"): sums.clipped / sums.count,
            }
            if params is not None:
                columns[lane, "used"] = (sums.greatest - sums.least) / (params.hi - params.lo).numpy()
        frame = pd.DataFrame(columns)
        frame.index.name = "channel"
        return frame

    def weights(self) -> pd.DataFrame:
        """A row per weight: extremes, spread of the channels' ranges, and per lane its step and signal to noise ratio in dB."""
        rows = {}
        for op in self.graph.operations:
            if op.weight is None or op.weight in rows:
                continue
            weight = self.graph.weights[op.weight]
            peaks = by_channel(weight, op.weight_axis or 0).abs().amax(1)
            used = peaks[peaks > 0]
            row: dict[tuple[str, str], Any] = {
                ("float", "min"): float(weight.min()),
                ("float", "max"): float(weight.max()),
                ("float", "channel spread"): float(used.max() / used.min()) if len(used) else 1.0,
            }
            for lane, plan in self.plans.items():
                params = plan.params(op.weight)
                if params is not None:
                    noise = (lane_weight(self.graph, plan, op.weight) - weight).double().square().sum()
                    row[lane, "scale"] = float(params.scale.max())
                    row[lane, "sqnr"] = float(sqnr(float(weight.double().square().sum()), float(noise)))
            rows[op.weight] = row
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("weight")
        return _two_levels(frame) if len(frame) else frame

    def plot(self, lanes: Sequence[str] | None = None) -> Picture:
        """Accumulated and local signal to noise ratio of every tap along the depth, as a picture."""
        from qkit.figures.drawing import picture
        from qkit.figures.plots import depth

        shown = [lane for lane in (self.lanes if lanes is None else lanes) if lane != "float"]
        words = f"SQNR of {len(self.floats)} taps in {', '.join(shown)}"
        return picture(depth, self, lanes=shown, words=words, width=9.6, height=4.6)

    def maps(self, tap: str, *, image: int = 0, channels: int = 3) -> Picture:
        """Feature maps of one image of the first batch in every lane, and their differences from float; the worst channels."""
        from qkit.execution.feature_maps import image_maps
        from qkit.figures.plots import feature_maps

        found = image_maps(self[tap], image, self.graph.operation(tap).channel_axis)
        return feature_maps(found, f"feature maps of {tap}, image {image}", channels=channels)

    def scatter(self, tensor: str, *, lane: str | None = None) -> Picture:
        """A lane's values of a tap or weight over float's, as a density; the last lane where none is named."""
        from qkit.figures.pairs import density_picture

        return density_picture(self[tensor], lane)

    def boxes(self, tensor: str, *, lane: str | None = None) -> Picture:
        """A lane's errors of a tap or weight as box plots by channel, the largest first; the last lane where none is named."""
        from qkit.figures.pairs import channel_picture

        op = self.graph.operation(tensor)
        axis = (op.weight_axis or 0) if tensor == op.weight and op.name != tensor else op.channel_axis
        return channel_picture(self[tensor], lane, axis)

    def to_dict(self) -> dict[str, Any]:
        """The table as plain numbers: tap, then column group, then column."""
        table = self.table()
        return {
            "samples": self.samples,
            "lanes": list(self.lanes),
            "taps": {
                str(tap): {group: json_numbers(table.loc[tap, group].to_dict()) for group in ("tap", *self.lanes)}
                for tap in table.index
            },
        }

    def __repr__(self) -> str:
        return f"Capture({len(self.floats)} taps, lanes {', '.join(self.lanes)}, {self.samples} samples)"

    def _repr_html_(self) -> str:
        return str(self.table().to_html(float_format="{:.4g}".format))


def _two_levels(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its columns, pairs of names, in two levels."""
    pairs: Any = list(frame.columns)
    frame.columns = pd.MultiIndex.from_tuples(pairs)
    return frame


def capture(
    graph: Graph,
    loader: Iterable[Any],
    plans: Mapping[str, Plan],
    *,
    limit: int | None = 1,
    keep: Sequence[str] | Literal["all"] = (),
    folder: str | Path | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = True,
) -> Capture:
    """Run float and the plans' lanes over the loader and sum their errors, tap by tap, in one pass a batch.

    Nothing but sums is held beyond a tensor's last use, except the taps in `keep` and the first batch's inputs.

    Parameters
    ----------
    plans
        Lanes beside float, by name.
    limit
        Batches to take; None for all.
    keep
        Taps whose tensors to keep over all batches, or "all".
    folder
        Where kept tensors go beyond `memory_budget` bytes, as safetensors files: one that holds none yet.

    Raises
    ------
    DataError
        If the loader is empty, or a batch does not fit or is not finite.
    QkitError
        If a kept tensor exceeds the budget and there is no folder, the folder holds safetensors files already, or one cannot be
        written. None of the capture's files are left then.
    """
    work = Capturing(graph, plans, keep=keep, folder=folder, memory_budget=memory_budget)
    try:
        return work.run(loader, limit=limit, progress=progress)
    except BaseException:
        work.discard()
        raise


class Capturing:
    """A pass of `capture` that can be interrupted: run again over the same loader, it goes on from the finished batches."""

    def __init__(
        self, graph: Graph, plans: Mapping[str, Plan], *, keep: Sequence[str] | Literal["all"] = (),
        folder: str | Path | None = None, memory_budget: int = MEMORY_BUDGET,
    ) -> None:  # fmt: skip
        names = graph.taps if keep == "all" else tuple(keep)
        for name in names:
            graph.operation(name)
        if "float" in plans:
            raise QkitError("the float lane is always there: do not name a plan 'float'.")
        place = None if folder is None else check_unused(folder, f"*{_SUFFIX}")
        self._store = Store(frozenset(names), place, memory_budget)
        self._capture = Capture(graph, plans, self._store)

    def run(self, loader: Iterable[Any], *, limit: int | None = 1, progress: bool = True) -> Capture:
        """The capture, with all batches in it."""
        try:
            for at, batch in enumerate(track(batches(loader, limit), "capturing", unit="batch", show=progress)):
                if at >= self._capture.batches:
                    self._capture.run(batch.inputs, batch.size)
        finally:
            self._capture.settle()
        if not self._capture.batches:
            raise DataError("the loader gave no batch to capture: pass at least one.")
        return self._capture

    def discard(self) -> None:
        """Remove the files of a pass that is given up."""
        self._store.shorten(0)
