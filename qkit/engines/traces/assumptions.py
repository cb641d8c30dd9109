"""One tensor of a trace against the kit's: what it is like as it stands, and under every assumption that may have gone wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qkit.engines.traces.aligned import Mend, ProblemKind
from qkit.engines.traces.dumped_tensors import TraceTensor
from qkit.engines.traces.matching import channel_order, correlation, normalised
from qkit.engines.traces.signatures import Order, Places, References, orders, places, real, squeezed
from qkit.graph.operation import Operation
from qkit.graph.table import UNBOUNDED

_OTHER_SIGN = {"int8": "uint8", "uint8": "int8", "int16": "uint16", "uint16": "int16"}


@dataclass(frozen=True, eq=False)
class View:
    """A trace tensor read in one way, beside the operation that it is most like.

    Attributes
    ----------
    op
        The operation.
    kind
        What would have to be wrong; None where nothing.
    mend
        What undoes it.
    correlation, lane
        With that operation's values, in the lane that it is most like.
    """

    op: Operation
    kind: ProblemKind | None
    mend: Mend
    correlation: float
    lane: str


class Look:
    """Signatures of one trace tensor; rows are in the order of the samples.

    Parameters
    ----------
    tensor
        The tensor.
    frames
        For each sample, the frame that belongs to it.
    known
        The kit's signatures.
    """

    def __init__(self, tensor: TraceTensor, frames: Sequence[int], known: References) -> None:
        self.tensor, self.frames, self.known = tensor, list(frames), known
        self._raw: dict[tuple[tuple[int, ...], int, Order], np.ndarray] = {}
        self._rows: list[np.ndarray] = []

    def release(self) -> None:
        """Forget what was read; it is read again when it is wanted."""
        self._raw.clear()
        self._rows.clear()

    def spots(self, op: Operation) -> Places:
        """The places of an operation's signature."""
        return places(*squeezed(op), self.known.samples)

    def fits(self, op: Operation) -> bool:
        """Whether it has as many elements as the operation's samples."""
        return self.tensor.size == math.prod(op.shape[1:])

    def declared(self, op: Operation) -> Order | None:
        """The order in which the operation's axes lie in the file, by what was said and by the shape; None where the shape says
        that no order that was said can be meant.
        """
        dims, _ = squeezed(op)
        stored = tuple(size for size in self.tensor.dims if size > 1)
        order = self._said(op)
        permuted = tuple(dims[axis] for axis in order)
        if permuted == stored or sorted(dims) != sorted(stored):
            return order
        return None

    def _said(self, op: Operation) -> Order:
        sample, layout = op.shape[1:], self.tensor.layout
        kept = [axis for axis, size in enumerate(sample) if size > 1]
        letters = {3: "CHW", 2: "CT", 1: "C"}.get(len(sample), "")
        if layout is not None and sorted(layout) == sorted(letters):
            return tuple(kept.index(letters.index(c)) for c in layout if letters.index(c) in kept)
        return tuple(range(len(kept)))

    def possible(self, op: Operation) -> list[Order]:
        """Orders of the axes that the stored shape allows: all of one that was flattened, of others those that give its sizes.

        The sizes decide only where no layout was said; a layout that was said may be wrong along with the shape.
        """
        return orders(squeezed(op)[0])

    def raw(self, op: Operation, order: Order) -> np.ndarray:
        """Numbers as stored at the operation's places, under an order of the axes."""
        dims, axis = squeezed(op)
        key = dims, axis, order
        if key not in self._raw:
            if not self._rows:
                self._rows = self.tensor.rows(self.frames)
            spots = self.spots(op).flat(order)
            self._raw[key] = np.stack([row[spots] for row in self._rows]).astype(self.tensor.dtype, copy=False)
        return self._raw[key]

    def values(self, op: Operation, order: Order, mend: Mend | None = None) -> np.ndarray:
        """Real numbers at the operation's places, float64, with `mend` undone but for its order."""
        mend = Mend() if mend is None else mend
        raw, spots, tensor = self.raw(op, order), self.spots(op), self.tensor
        if mend.swap:
            raw = raw.byteswap()
        if mend.dtype is not None:
            raw = raw.view(mend.dtype)
        if mend.step is not None:
            tensor = replace(tensor, step=mend.step)
        if mend.zero_point is not None:
            tensor = replace(tensor, zero_point=mend.zero_point)
        values = real(raw, tensor, spots) / mend.factor
        if mend.channels is not None:
            values = values.reshape(len(values), spots.channels, -1)[:, list(mend.channels)].reshape(len(values), -1)
        return np.clip(values, *op.act) if mend.clamp else values

    def best(self, x: np.ndarray, op: Operation) -> tuple[float, str]:
        """Correlation of a signature with the operation's in the lane that it is most like; NaN where neither has a signal."""
        a = normalised(x)
        found = float("nan"), "float"
        if a is None:
            return found
        for lane, y in self.known.values[op.name].items():
            b = normalised(y)
            if b is not None and not float(a @ b) <= found[0]:
                found = float(a @ b), lane
        return found

    def views(self, op: Operation) -> Iterator[View]:
        """The tensor as `op`'s under every assumption; the first is as it stands."""
        own = self.declared(op)
        if own is not None:
            yield View(op, None, Mend(order=own), *self.best(self.values(op, own), op))
        seen = set() if own is None else {self.spots(op).flat(own).tobytes()}
        for order in self.possible(op):
            key = self.spots(op).flat(order).tobytes()
            if key not in seen:
                seen.add(key)
                yield View(op, "layout", Mend(order=order), *self.best(self.values(op, order), op))
        if own is None:
            return
        for kind, mend in self._readings():
            with np.errstate(over="ignore", invalid="ignore"):
                yield View(op, kind, replace(mend, order=own), *self.best(self.values(op, own, mend), op))
        yield from self._activations(op, own)
        yield from self._channels(op, own)

    def _readings(self) -> Iterator[tuple[ProblemKind, Mend]]:
        other = _OTHER_SIGN.get(self.tensor.dtype.name)
        if other is not None:
            info = np.iinfo(other)
            zero = self.tensor.zero_point if all(info.min <= z <= info.max for z in self.tensor.zero_point) else (0,)
            yield "sign", Mend(dtype=other, zero_point=zero)
        if self.tensor.dtype.itemsize > 1:
            yield "byte-order", Mend(swap=True)

    def _activations(self, op: Operation, order: Order) -> Iterator[View]:
        x = self.values(op, order)
        if op.act != UNBOUNDED and self.outside(x, op):
            mend = Mend(order=order, clamp=True)
            yield View(op, "pre-activation", mend, *self.best(self.values(op, order, mend), op))
        if op.act == UNBOUNDED and np.nanmin(x) >= 0.0:
            found = float("nan"), "float"
            for lane, y in self.known.values[op.name].items():
                r = correlation(x, np.maximum(y, 0.0)) if np.nanmin(y) < 0.0 else float("nan")
                found = (r, lane) if not r <= found[0] and r == r else found  # noqa: PLR0124  # NaN
            yield View(op, "post-activation", Mend(order=order), *found)

    def outside(self, x: np.ndarray, op: Operation) -> bool:
        """Whether values lie beyond the bounds of the operation's activation, by more than rounding."""
        low, high = op.act
        margin = 1e-3 * max(float(np.nanmax(np.abs(x))), 1e-30)
        return bool(np.nanmin(x) < low - margin or np.nanmax(x) > high + margin)

    def _channels(self, op: Operation, order: Order) -> Iterator[View]:
        spots = self.spots(op)
        if spots.channels != (spots.dims[spots.axis] if spots.dims else 1):
            return
        y = self.known.values[op.name]["float"]
        found = channel_order(self.values(op, order), y, spots.channels)
        if found is not None:
            chosen, held_out = found
            if chosen != list(range(spots.channels)):
                yield View(op, "channels", Mend(order=order, channels=tuple(chosen)), held_out, "float")
