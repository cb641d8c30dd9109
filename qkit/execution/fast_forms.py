"""The integer forms in the compiled loops of the CPU, where layout and setting allow; equal to the plain ones bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.execution.ends import Ends
from qkit.graph.operation import Operation
from qkit.quant.grids import QuantParams, as_integers
from qkit.quant.integer import joins, norms
from qkit.quant.integer.pointwise import Table
from qkit.quant.integer.softmax import PROBABILITY_BITS, furthest, tables
from qkit.quant.memory import dense, without_gaps

_EXACT = 1 << 24
_NOTHING = np.empty(0, np.int64)


#: ``fast(loops, values, ends)``.
Fast = Callable[[Any, Sequence[Tensor], Ends], "Tensor | None"]


def looked_up(loops: Any, x: Tensor, source: QuantParams, target: QuantParams, made: Table, results: Tensor) -> Tensor:
    """A function of one number by its table."""
    x, offset = without_gaps(x), int(source.zero_point) - source.qmin
    out = torch.empty_like(x)
    flat, found, scale = dense(x).numpy(), dense(out).numpy(), float(target.scale)
    if made.shift:
        limits = made.least, made.greatest
        loops.interpolate(flat, source.scalars[0], offset + made.ahead, made.nodes.numpy(), made.shift, limits, scale, found)
    else:
        loops.look_up(flat, source.scalars[0], offset, results.numpy(), found)
    return out


def softmax(scale: float) -> Fast:
    """Over the last axis, of logits times `scale`, by tables."""

    def run(loops: Any, values: Sequence[Tensor], ends: Ends) -> Tensor | None:
        if ends.setting.arithmetic.softmax != "table":
            return None
        x, grid = values[0].contiguous(), ends.grids[0]
        step, bits = ends.step * scale, ends.setting.arithmetic.inside - 1
        cut = furthest(step, ends.setting.arithmetic.inside, grid.qmax - grid.qmin)
        high, low = tables(step, bits, cut, x.device)
        pair = high.numpy(), _NOTHING if low is None else low.numpy()
        last = ends.multiplier(2.0**-PROBABILITY_BITS, 1 << PROBABILITY_BITS)
        out = torch.empty_like(x)
        rows, found = (t.view(-1, t.shape[-1]).numpy() for t in (x, out))
        loops.softmax(rows, grid.scalars[0], cut, pair, bits, last, ends.scale, found)
        return out

    return run


def standardize(weight: Tensor | None, bias: Tensor | None, eps: float, *, centred: bool, added: float) -> Fast:
    """A norm over the last axis."""

    def run(loops: Any, values: Sequence[Tensor], ends: Ends) -> Tensor | None:
        x, grid = values[0].contiguous(), ends.grids[0]
        count = x.shape[-1]
        inner = norms.widths(ends.step, ends.reach, count, eps, added, ends.setting.arithmetic.inside)
        weights, biases, unit, greatest = norms.coefficients(inner.unit, inner.greatest, weight, bias)
        both = [_NOTHING, _NOTHING]
        if weights is not None or biases is not None:
            one, none = torch.ones(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
            both = [(d if p is None else p.reshape(-1)).numpy() for p, d in ((weights, one), (biases, none))]
        last = ends.multiplier(unit, greatest)
        out = torch.empty_like(x)
        rows, found = (t.view(-1, count).numpy() for t in (x, out))
        numbers = (inner.fraction, centred, inner.eps, inner.added, inner.lift)
        loops.standardize(rows, grid.scalars[0], *numbers, *both, last, ends.scale, found)
        return out

    return run


def product(op: Operation) -> Fast:
    """A product of matrices whose sums float32 holds exactly."""

    def run(loops: Any, values: Sequence[Tensor], ends: Ends) -> Tensor | None:
        greatest = ends.product_reach * op.terms
        if greatest >= min(_EXACT, 1 << ((ends.setting.accumulator_bits or 64) - 1)):
            return None
        sums = without_gaps(op.call(*(as_integers(v, g) for v, g in zip(values, ends.grids, strict=True))))
        last = ends.multiplier(ends.product_step, greatest)
        flat = dense(sums).numpy()
        loops.rescale(flat, last, ends.scale, flat)
        return sums

    return run


def _pair(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Two tensors of one shape and layout."""
    first, second = torch.broadcast_tensors(*values)
    if first.stride() == second.stride() and without_gaps(first) is first:
        return first, second
    return first.contiguous(), second.contiguous()


def add(first: int, second: int, factors: Sequence[float]) -> Fast:
    """The sum of two operands times these factors."""

    def run(loops: Any, values: Sequence[Tensor], ends: Ends) -> Tensor | None:
        x, y = _pair((values[first], values[second]))
        both = ends.grids[first], ends.grids[second]
        parts = [(float(g.scale) * f, g.reach) for g, f in zip(both, factors, strict=True)]
        left, each, last = joins.addition(parts, ends.scale, ends.setting.multiplier_bits)
        if any(m.shift <= 0 or m.shift > 62 for m in each):
            return None
        out = torch.empty_like(x)
        inverses = both[0].scalars[0], both[1].scalars[0]
        flat = (dense(t).numpy() for t in (x, y))
        loops.add(*flat, inverses, left, (*each, last), ends.scale, dense(out).numpy())
        return out

    return run


def multiply(loops: Any, values: Sequence[Tensor], ends: Ends) -> Tensor | None:
    """Products of elements."""
    x, y = _pair(values)
    step = ends.product_step
    last = ends.multiplier(step, ends.grids[0].reach * ends.grids[1].reach)
    out = torch.empty_like(x)
    flat = (dense(t).numpy() for t in (x, y))
    loops.multiply(*flat, (ends.grids[0].scalars[0], ends.grids[1].scalars[0]), last, ends.scale, dense(out).numpy())
    return out
