"""A weighted operation as a matrix product: what each of its weights is multiplied by, and the second moments of that.

A layer is linear in its weight. With the weight as rows of K numbers, one for each output channel, and the K numbers that meet
it at one place of the output as a column, its output is rows times columns. So the squared error of a changed weight follows
from the K × K products of the columns alone, however many places and samples there are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qkit.graph.operation import Operation

#: Numbers of columns that are held at once.
_CHUNK = 1 << 24


def rows(op: Operation, weight: Tensor) -> Tensor:
    """The weight as (groups, output channels of a group, K)."""
    turned: Tensor = weight.movedim(op.weight_axis or 0, 0).flatten(1).unflatten(0, (groups(op), -1))
    return turned


def weight_of(op: Operation, matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `rows`, in the shape of the weight `like`."""
    axis = op.weight_axis or 0
    return matrix.reshape(like.movedim(axis, 0).shape).movedim(0, axis)


def groups(op: Operation) -> int:
    """Parts of the channels that do not meet."""
    return 1 if op.kind == "linear" else int(_settings(op).get("groups", 1))


def columns(op: Operation, x: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Samples, and their columns as (groups, K, places), for an input of the operation; of so many samples that they fit."""
    if op.kind == "linear":
        yield slice(None), x.reshape(-1, x.shape[-1]).T[None]
        return
    each = weight.shape[2:].numel() * x.shape[1] * math.prod(op.shape[2:])
    step = max(1, _CHUNK // max(1, each))
    for first in range(0, len(x), step):
        part = slice(first, first + step)
        yield part, _windows(op, x[part], weight)


def output_of(op: Operation, matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of `output_rows`, in the shape of the output `like`."""
    if op.kind == "linear":
        return matrix[0].T.reshape(like.shape)
    turned = like.transpose(0, 1)
    return matrix.reshape(turned.shape).transpose(0, 1)


def output_rows(op: Operation, y: Tensor) -> Tensor:
    """An output of the operation as (groups, output channels of a group, places), in the order of `columns`."""
    if op.kind == "linear":
        return y.reshape(-1, y.shape[-1]).T[None]
    made: Tensor = y.transpose(0, 1).flatten(1).unflatten(0, (groups(op), -1))
    return made


def _windows(op: Operation, x: Tensor, weight: Tensor) -> Tensor:
    settings, kernel = _settings(op), tuple(weight.shape[2:])
    dims = len(kernel)
    stride, dilation = (_each(settings.get(name, 1), dims) for name in ("stride", "dilation"))
    reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    offsets = list(itertools.product(*map(range, kernel)))
    if op.kind == "conv-transpose":
        # a convolution of the input with zeros between its numbers, by the kernel turned around
        padding, more = (_each(settings.get(name, 0), dims) for name in ("padding", "output_padding"))
        x = _spread(x, stride)
        ends = [(r - p, r - p + m) for r, p, m in zip(reach, padding, more, strict=True)]
        offsets, stride = offsets[::-1], (1,) * dims
    elif settings.get("padding") == "same":
        ends = [(r // 2, r - r // 2) for r in reach]
    else:
        plain = 0 if settings.get("padding") == "valid" else settings.get("padding", 0)
        ends = [(p, p) for p in _each(plain, dims)]
    x = F.pad(x, [end for pair in reversed(ends) for end in pair])
    sizes = [(n - r - 1) // s + 1 for n, r, s in zip(x.shape[2:], reach, stride, strict=True)]
    found = []
    for offset in offsets:
        starts = [o * d for o, d in zip(offset, dilation, strict=True)]
        cut = tuple(slice(a, a + s * (n - 1) + 1, s) for a, s, n in zip(starts, stride, sizes, strict=True))
        found.append(x[(slice(None), slice(None), *cut)].flatten(2))
    stacked = torch.stack(found, 2)  # samples, channels, kernel, places
    made: Tensor = stacked.unflatten(1, (groups(op), -1)).flatten(2, 3).permute(1, 2, 0, 3).flatten(2)
    return made


def _spread(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    found = x.new_zeros(*x.shape[:2], *sizes)
    found[(slice(None), slice(None), *(slice(None, None, s) for s in stride))] = x
    return found


def _settings(op: Operation) -> Any:
    return getattr(op.call, "settings", {})


def _each(setting: Any, dims: int) -> tuple[int, ...]:
    """One number for each dimension."""
    given = tuple(setting) if isinstance(setting, (tuple, list)) else (setting,)
    return given * dims if len(given) == 1 else given
