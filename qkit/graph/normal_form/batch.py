"""Shapes that are concrete but for the batch: the number of samples that a network was traced with becomes an open size."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from qkit.graph.normal_form.form import NormalForm, Outline, name_of, operands, shape_of

#: Candidates for the batch of a trace: primes, so that a multiple of one is the batch and hardly ever a size of the network.
PRIMES = (101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197, 199, 211)

_RESHAPES = frozenset({"view", "reshape", "_unsafe_view"})
_FAR = 1 << 40


def unused_prime(sizes: Iterable[int]) -> int:
    """The first of `PRIMES` that divides none of the sizes."""
    known = {size for size in sizes if size}
    return next((prime for prime in PRIMES if not any(size % prime == 0 for size in known)), PRIMES[-1])


def open_batch(form: NormalForm) -> None:
    """Replace every literal that is the batch, or a multiple of it, by what the batch at hand says; in place.

    A form traced at a prime batch says it by divisibility. One traced at the network's own batch (`form.batch` below the first
    prime) says it only where a shape's first entry is the batch and the input's is too.
    """
    first = next((node for node in form.graph.nodes if node.op == "placeholder" and _has_batch(node, form.batch)), None)
    if first is None:
        form.open = False
        return
    sizes = _Sizes(form, first)
    for node in list(form.calls):
        if node.target is torch.ops.aten.sym_size.int:
            continue
        if form.prime:
            if name_of(node) in _RESHAPES:
                node.args = (operands(node)[0], _reshape(node, form.batch, sizes))
            else:
                node.args = _replaced(operands(node), form.batch, sizes)
                node.kwargs = _replaced(node.kwargs, form.batch, sizes)
        elif name_of(node) in _RESHAPES | {"expand"} and isinstance(operands(node)[0], fx.Node):
            source, shape = shape_of(operands(node)[0]), list(operands(node)[1])
            if source and shape and isinstance(shape[0], int) and shape[0] > 0 and source[0] == shape[0] == form.batch:
                others = [s for s in shape[1:] if not isinstance(s, int) or s == -1]
                node.args = (operands(node)[0], [-1 if not others or name_of(node) == "expand" else sizes.times(1), *shape[1:]])


def _has_batch(node: fx.Node, batch: int) -> bool:
    shape = shape_of(node)
    return bool(shape) and shape[0] == batch


class _Sizes:
    """Nodes that compute multiples of the batch, made when first asked for."""

    def __init__(self, form: NormalForm, first: fx.Node) -> None:
        self.form, self.first = form, first
        self.made: dict[int, fx.Node] = {}

    def times(self, factor: int) -> fx.Node:
        if factor not in self.made:
            last = self.times(1) if factor > 1 else [n for n in self.form.graph.nodes if n.op == "placeholder"][-1]
            with self.form.graph.inserting_after(last):
                if factor > 1:
                    new = self.form.graph.call_function(operator.mul, (last, factor))
                else:
                    new = self.form.graph.call_function(torch.ops.aten.sym_size.int, (self.first, 0))
            new.meta = {"value": factor * self.form.batch, "path": "", "called": "size"}
            self.made[factor] = new
        return self.made[factor]


def _factor(value: Any, batch: int) -> int:
    """How many times the batch a literal is; 0 for what is no size or no multiple."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _FAR:
        return 0
    return value // batch if value % batch == 0 else 0


def _reshape(node: fx.Node, batch: int, sizes: _Sizes) -> list[Any]:
    """The target shape; -1 serves where just one entry hangs on the batch."""
    shape = list(operands(node)[1])
    outcome = shape_of(node)
    if len(outcome) == len(shape):
        shape = [o if s == -1 else s for s, o in zip(shape, outcome, strict=True)]
    hanging = [i for i, size in enumerate(shape) if _factor(size, batch)]
    if len(hanging) == 1 and -1 not in shape and 0 not in shape:
        return [-1 if i in hanging else size for i, size in enumerate(shape)]
    return [sizes.times(_factor(size, batch)) if i in hanging else size for i, size in enumerate(shape)]


def _replaced(value: Any, batch: int, sizes: _Sizes) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(part, batch, sizes) for part in value)
    if isinstance(value, dict):
        return {key: _replaced(part, batch, sizes) for key, part in value.items()}
    factor = _factor(value, batch)
    return sizes.times(factor) if factor else value


def shape_at(value: Any, traced: int, batch: int) -> tuple[int, ...]:
    """The shape of a node's outline at another batch."""
    if not isinstance(value, Outline):
        return ()
    if traced in PRIMES:
        return tuple(size // traced * batch if size and size % traced == 0 else size for size in value.shape)
    return tuple(batch if i == 0 and size == traced else size for i, size in enumerate(value.shape))
