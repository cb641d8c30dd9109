"""What weighted operations add up on a GPU: exact integer sums on tensor cores, and pointwise convolutions as matrix products.

A lane whose input and weight lie on integer grids adds up products of integers. Codes less their zero points need 9 bits, and
TF32, the short float of the tensor cores, carries 11: products are exact, and so are float32 sums below 2**24. So TF32 is
allowed for exactly these calls. A weight whose sums may reach further, by its own codes and the input's grid, is split into
digits of a few bits: the sums of each stay below, and adding them rounds once, as the exact sum would be rounded to float32.

A convolution of 1×1 is the product of a (pixels, channels) matrix, which is what its input with the channels innermost is: the
libraries' matrix products take half the time of their convolutions there.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.execution.replay import hold, recording
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.running import ACCUMULATING, operate, tensor_cores
from qkit.quant.compiled import kernels_for
from qkit.quant.grids import QuantParams, as_integers
from qkit.quant.memory import channels_innermost, without_gaps

#: Greatest magnitude of a code that TF32 holds, and bound of the float32 sums that are exact.
_CODES = 1 << 11
_SUMS = 1 << 24


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of a weighted operation on a GPU, before scale, bias, activation and grid, which take one pass together.

    Attributes
    ----------
    data
        float32, the shape of the operation's output; fresh memory.
    step, bias
        float32 (C,) along the output's channels: what they are multiplied with, and what is added then; None for neither.
    """

    data: Tensor
    step: Tensor | None = None
    bias: Tensor | None = None


@dataclass(eq=False)
class Prepared:
    """Weights and biases as lanes compute with them, kept on the device up to a number of bytes, the last used ones."""

    limit: int
    found: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)
    nbytes: int = 0

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was made for that key, or is made now."""
        if key in self.found:
            self.found.move_to_end(key)
            return hold(self.found[key])
        made = make()
        if recording():
            return made  # it lives in the recording's memory, and has its numbers only once that is played
        self.found[key] = made
        self.nbytes += _nbytes(made)
        while self.nbytes > self.limit and len(self.found) > 1:
            self.nbytes -= _nbytes(self.found.popitem(last=False)[1])
        return made


_prepared: weakref.WeakKeyDictionary[Graph, Prepared] = weakref.WeakKeyDictionary()


def prepared(graph: Graph) -> Prepared:
    """What is kept for a graph: at most eight times its weights, or 512 MiB."""
    if graph not in _prepared:
        _prepared[graph] = Prepared(max(8 * sum(w.nbytes for w in graph.weights.values()), 1 << 29))
    return _prepared[graph]


def _nbytes(made: Any) -> int:
    if isinstance(made, Tensor):
        return made.nbytes
    return sum(map(_nbytes, made)) if isinstance(made, tuple) else 0


def on_integers(op: Operation, source: QuantParams | None, weight: QuantParams | None) -> bool:
    """Whether the operation's products are those of integers that TF32 holds."""
    if op.kind not in ACCUMULATING or source is None or weight is None:
        return False
    return source.axis is None and weight.axis in (None, op.weight_axis) and max(source.reach, weight.reach) <= _CODES


def integers(x: Tensor, grid: QuantParams) -> Tensor:
    """Codes less the zero point, whole float32 numbers, of values on a grid per tensor."""
    loops = kernels_for(x.device)
    return as_integers(x, grid) if loops is None else loops.codes(without_gaps(x), grid)


def digits(codes: Tensor, axis: int | None, reach: int) -> tuple[Tensor, ...] | None:
    """A weight's codes whose sums with an input's, up to `reach`, stay below 2**24: as they are, or as digits, the highest first.

    Two digits to base 16, or four to base 4; all but the first lie around 0, so that they cancel. None if four do not do.

    Parameters
    ----------
    codes
        Whole float32 numbers, the output channels along `axis`.
    """
    for count in (1, 2, 4):
        parts = _split(codes, count)
        if all(_greatest_sum(part, axis) * reach < _SUMS for part in parts):
            return parts
    return None


def _split(codes: Tensor, count: int) -> tuple[Tensor, ...]:
    base, parts = _base(count), [codes]
    for _ in range(count - 1):
        high = torch.floor((parts[0] + base // 2) / base)
        parts[:1] = [high, parts[0] - high * base]
    return tuple(parts)


def _base(count: int) -> int:
    """Base of that many digits, which hold 8 bits together."""
    return 1 << 8 // count


def _greatest_sum(codes: Tensor, axis: int | None) -> float:
    magnitudes = codes.abs().double()
    return float(magnitudes.sum() if axis is None else magnitudes.movedim(axis, 0).flatten(1).sum(1).max())


def product(op: Operation, x: Tensor, weight: Tensor) -> Tensor:
    """The operation's sums without its bias; a pointwise convolution as a matrix product."""
    if not _pointwise(op, x, weight):
        found: Tensor = operate(op, [x], weight)
        return found
    x = channels_innermost(x, 1)
    rows = x.movedim(1, -1)
    return F.linear(rows.reshape(-1, rows.shape[-1]), weight.flatten(1)).view(*rows.shape[:-1], -1).movedim(-1, 1)


def _pointwise(op: Operation, x: Tensor, weight: Tensor) -> bool:
    settings = getattr(op.call, "settings", None)
    if op.kind != "conv" or settings is None or weight.ndim < 3 or weight.ndim != x.ndim or weight.shape[1] != x.shape[1]:
        return False
    return weight.shape[2:].numel() == 1 and _only(settings.get("stride"), 1) and _only(settings.get("padding"), 0)


def _only(setting: Any, number: int) -> bool:
    """Whether a setting, a number or one for each dimension, is that number, or is not given."""
    return setting is None or all(s == number for s in (setting if isinstance(setting, (tuple, list)) else (setting,)))


def integer_product(op: Operation, x: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
    """Sums of integer codes, float32, each the one next to the exact sum.

    Parameters
    ----------
    x
        Codes less the zero point, whole float32 numbers.
    parts
        The weight's, see `digits`.
    """
    base = _base(len(parts))
    with tensor_cores(x.device):
        total = product(op, x, parts[0])
        if len(parts) == 2:
            return total.mul_(base).add_(product(op, x, parts[1]))
        for part in parts[1:]:
            # of more than two, a sum on the way may be beyond what float32 holds
            total = total.double().mul_(base).add_(product(op, x, part))
    return total.float()
