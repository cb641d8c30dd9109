"""Which integer form an operation without weights has, and what it gives on codes.

`form_of` tells it from the call: a pointwise function, a softmax, a norm, a product, or a sum; `run` computes it with the forms
of `qkit.quant.integer` where all operands and the output lie on grids. Grids with a scale for each slice along an axis that the
operation treats each by itself, such as one for every head of an attention, are taken slice by slice.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qkit.execution import fast_forms as fast
from qkit.execution.ends import Ends, Setting
from qkit.graph.calls import Place, described, is_tensor, number
from qkit.graph.operation import Operation
from qkit.quant.arithmetic import Arithmetic
from qkit.quant.compiled import integer_kernels
from qkit.quant.grids import QuantParams, as_integers
from qkit.quant.integer import joins, norms, pointwise
from qkit.quant.integer.rescaling import FAR, multiplier, rescale
from qkit.quant.integer.softmax import PROBABILITY_BITS, softmax

#: Functions of one number.
_POINTWISE = frozenset(
    "relu relu6 hardtanh clamp clip clamp_min clamp_max leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid sigmoid "
    "tanh softplus softsign logsigmoid log_sigmoid hardshrink softshrink tanhshrink threshold quick_gelu abs neg exp expm1 log "
    "log2 log10 log1p sqrt rsqrt reciprocal erf sin cos tan asin acos atan sinh cosh sign floor ceil round frac pow square add "
    "sub rsub mul div fresh_copy quotient".split()
)
_SOFTMAX = frozenset("softmax _softmax softmax2d softmin attention_weights".split())
_NORMS = frozenset("layer_norm group_norm instance_norm rms_norm root_norm channel_norm unit_norm response_norm".split())
_PRODUCTS = frozenset("matmul bmm mm mv dot einsum".split())
_AVERAGES = frozenset(
    "mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d".split()
)

#: ``run(codes, ends)``: codes less their zero points (int64) to codes less the zero point, before the ends of the grid.
_Run = Callable[[Sequence[Tensor], Ends], Tensor]


@dataclass(frozen=True, eq=False)
class Form:
    """An operation's integer form.

    Attributes
    ----------
    switch
        The field of `Arithmetic` that chooses it.
    name
        The function's.
    run
        See `_Run`; None for a function of one number, which goes by its table.
    fast
        The same in compiled loops, from the values themselves to the values that `run` leads to; None where it cannot.
    axes
        Axes of the output, counted from the end, along which slices are not independent; None for all.
    """

    switch: str
    name: str
    run: _Run | None = None
    axes: tuple[int, ...] | None = ()
    call: Callable[..., Any] | None = None
    fast: fast.Fast | None = None
    tables: dict[Any, tuple[pointwise.Table, Tensor]] = field(default_factory=dict)


_forms: weakref.WeakKeyDictionary[Operation, Form | None] = weakref.WeakKeyDictionary()


def form_of(op: Operation) -> Form | None:
    """The operation's integer form; None where it has none, or needs none, as a layer with weights."""
    if op not in _forms:
        _forms[op] = _form(op) if op.quantized and op.weight is None and op.inputs else None
    return _forms[op]


def chosen(op: Operation, arithmetic: Arithmetic) -> bool:
    """Whether those forms are to compute the operation in integers."""
    form = None if arithmetic.in_float else form_of(op)
    return form is not None and getattr(arithmetic, form.switch) != "float"


def run(
    op: Operation, values: Sequence[Any], grids: Sequence[QuantParams | None], target: QuantParams, by: Setting
) -> Tensor | None:
    """The operation's value on the output's grid, float32, before the grid's ends; None where not all of it is on grids.

    Parameters
    ----------
    values
        What the operation reads, each on its grid.
    grids
        Those grids.
    """
    form = form_of(op)
    if form is None or any(g is None for g in grids) or not all(isinstance(v, Tensor) and v.numel() for v in values):
        return None
    known: list[QuantParams] = [g for g in grids if g is not None]
    possible, axis = slices(form, op.shape, [v.shape for v in values], known, target)
    if not possible:
        return None
    if axis is None:
        return _run(form, values, Ends(known, target, by))
    found = []
    for i in range(op.shape[axis]):
        sliced = [v.narrow(axis, i if v.shape[axis] > 1 else 0, 1) for v in values]
        found.append(_run(form, sliced, Ends([_slice(g, i) for g in known], _slice(target, i), by)))
    return torch.cat(found, axis)


def slices(
    form: Form, shape: Sequence[int], shapes: Sequence[Sequence[int]], grids: Sequence[QuantParams], target: QuantParams
) -> tuple[bool, int | None]:
    """Whether the form can compute between these grids, and the axis, from the end, that it is computed slice by slice along.

    Parameters
    ----------
    shape, shapes
        Of the output, and of what the operation reads.
    """
    axes = {grid.axis % len(s) - len(s) for grid, s in zip(grids, shapes, strict=True) if grid.axis is not None}
    if target.axis is not None:
        axes.add(target.axis % len(shape) - len(shape))
    if not axes:
        return True, None
    axis = axes.pop()
    alike = all(len(s) >= -axis and s[axis] in (1, shape[axis]) for s in shapes)
    return not axes and form.axes is not None and axis not in form.axes and alike, axis


def _slice(grid: QuantParams, i: int) -> QuantParams:
    return grid if grid.axis is None else QuantParams(grid.scale[i], grid.zero_point[i], grid.qmin, grid.qmax)


def _run(form: Form, values: Sequence[Tensor], ends: Ends) -> Tensor:
    loops = integer_kernels() if values[0].device.type == "cpu" else None
    if form.run is None:
        return _looked_up(form, values[0], ends.grids[0], ends.target, loops)
    quick = form.fast(loops, values, ends) if loops is not None and form.fast is not None else None
    if quick is not None:
        return quick
    codes = [as_integers(v, g).long() for v, g in zip(values, ends.grids, strict=True)]
    return form.run(codes, ends).clamp_(-FAR, FAR).float().mul_(ends.scale)


def _looked_up(form: Form, x: Tensor, source: QuantParams, target: QuantParams, loops: Any) -> Tensor:
    key = source, target
    known = form.tables.get(key)  # other threads may take it away again
    if known is None:
        assert form.call is not None
        table = pointwise.table(form.call, source, target)
        known = table, (table.nodes * target.scale.double()).float().to(x.device)
        if len(form.tables) >= _TABLES:
            form.tables.clear()
        form.tables[key] = known
    made, results = known
    if loops is not None:
        return fast.looked_up(loops, x, source, target, made, results)
    index = as_integers(x, source).add_(int(source.zero_point) - source.qmin)
    whole = index.long().clamp_(0, source.qmax - source.qmin)
    found = results[whole] if not made.shift else made(whole).float().mul_(float(target.scale))
    # what is no number lies on no grid: it stays what it is
    return found.masked_fill_(index.isnan(), math.nan)


#: Tables of one operation that are kept: of so many plans.
_TABLES = 64


def _form(op: Operation) -> Form | None:
    name, given = described(op.call, len(op.inputs))
    count = len(op.inputs)
    tensors = [key for key, value in given.items() if is_tensor(value)]
    if count == 1 and name in _POINTWISE and not tensors:
        return Form("pointwise", name, call=op.call)
    if name in _SOFTMAX:
        return _softmax(name, given, len(op.shape))
    if name in _NORMS:
        return _norm(name, given, len(op.shape))
    if name in _PRODUCTS and count == 2 and not tensors:
        return Form("product", name, _matrix_product(op), (-1, -2) if name in {"matmul", "bmm"} else None, fast=fast.product(op))
    if name in {"cat", "concat", "concatenate", "stack"}:
        return _concatenation(op, name, given)
    if name in _AVERAGES and count == 1:
        return _average(op, name, given)
    return _of_two(name, given) if count == 2 and not tensors else None


# softmax


def _softmax(name: str, given: Mapping[str, Any], rank: int) -> Form | None:
    if name == "attention_weights":
        mask, scale, dim = given.get("mask"), number(given.get("scale", 1.0)), -1
        if scale is None or not scale > 0.0 or not isinstance(given.get("scores"), Place) or isinstance(mask, Place):
            return None
    else:
        given_dim = -3 if name == "softmax2d" else given.get("dim")
        if not isinstance(given_dim, int):
            return None
        mask, scale, dim = None, 1.0, given_dim % rank - rank

    def compute(codes: Sequence[Tensor], ends: Ends) -> Tensor:
        logits, step = codes[0], ends.step * scale
        greatest, hidden = ends.grids[0].qmax - ends.grids[0].qmin, None
        if mask is not None:
            logits, hidden, more = _masked(logits, mask.to(logits.device), step)
            greatest += more
        logits = -logits if name == "softmin" else logits
        form, inside = ends.setting.arithmetic.softmax, ends.setting.arithmetic.inside
        found = softmax(logits, step, dim, form, inside, hidden, greatest)
        unit = math.ldexp(1.0, -PROBABILITY_BITS)
        return ends.reached(found, unit, 1 << PROBABILITY_BITS)

    alike = mask is None or all(size == 1 for size in mask.shape[:-2])
    quick = fast.softmax(scale) if mask is None and dim == -1 and name != "softmin" else None
    return Form("softmax", name, compute, (dim,) if alike else None, fast=quick)


def _masked(logits: Tensor, mask: Tensor, step: float) -> tuple[Tensor, Tensor | None, int]:
    """Logits plus a mask in their own steps, where nothing is to be seen, and by how much the differences grow."""
    if mask.dtype == torch.bool:
        return logits, ~mask, 0
    shifts = (mask.double() / step).round_()
    hidden = shifts < -float(1 << 40)
    shifts = shifts.masked_fill(hidden, 0.0).clamp_(max=float(1 << 40)).long()
    return logits + shifts, hidden, 1 << 41


# norms


def _norm(name: str, given: Mapping[str, Any], rank: int) -> Form | None:
    source = given.get("input", given.get("x"))
    if not isinstance(source, Place) or any(isinstance(v, Place) for k, v in given.items() if v is not source):
        return None
    weight, bias = given.get("weight"), given.get("bias")
    eps = number(given.get("eps"))
    if name in {"layer_norm", "rms_norm"}:
        dims = tuple(range(-len(given["normalized_shape"]), 0))
        eps = torch.finfo(torch.float32).eps if eps is None else eps
    elif name == "group_norm":
        return _group_norm(int(given["num_groups"]), weight, bias, eps or 0.0)
    elif name == "instance_norm":
        if given.get("running_mean") is not None and not given.get("use_input_stats"):
            return None
        return _group_norm(None, weight, bias, eps or 0.0)
    elif name == "response_norm":
        return _response_norm(given, rank)
    else:
        dims = tuple(int(d) % rank - rank for d in given["dims"])
    order, added = number(given.get("order", 2.0)), number(given.get("added")) or 0.0
    centred, correction = name in {"layer_norm", "channel_norm"}, int(given.get("correction") or 0)
    if name == "unit_norm" and order not in (1.0, 2.0, math.inf):
        return None

    def compute(codes: Sequence[Tensor], ends: Ends) -> Tensor:
        step, reach, inside = ends.step, ends.reach, ends.setting.arithmetic.inside
        if name == "unit_norm":
            least = number(given.get("least")) or 0.0
            y = norms.normalized(codes[0], dims, step, reach, order=order or 2.0, least=least, added=added, inside=inside)
        else:
            y = norms.standardized(
                codes[0], dims, step, reach, eps=eps or 0.0, centred=centred, correction=correction, added=added, inside=inside
            )  # fmt: skip
        return _affine(y, weight, bias, ends)

    quick = None
    flat = all(p is None or p.numel() == p.shape[-1] for p in (weight, bias))
    if name != "unit_norm" and dims == (-1,) and not correction and flat:
        quick = fast.standardize(weight, bias, eps or 0.0, centred=centred, added=added)
    return Form("norm", name, compute, dims, fast=quick)


def _affine(y: norms.Fixed, weight: Tensor | None, bias: Tensor | None, ends: Ends) -> Tensor:
    y = norms.affine(y, weight, bias)
    return ends.reached(y.data, y.unit, y.greatest)


def _group_norm(groups: int | None, weight: Tensor | None, bias: Tensor | None, eps: float) -> Form:
    def compute(codes: Sequence[Tensor], ends: Ends) -> Tensor:
        c = codes[0]
        split = c.reshape(c.shape[0], groups or c.shape[1], -1)
        inside = ends.setting.arithmetic.inside
        y = norms.standardized(split, (-1,), ends.step, ends.reach, eps=eps, inside=inside)
        y = norms.Fixed(y.data.view(c.shape), y.unit, y.greatest)
        shape = (1, -1, *(1,) * (c.ndim - 2))
        weights, biases = (None if p is None else p.view(shape) for p in (weight, bias))
        return _affine(y, weights, biases, ends)

    return Form("norm", "group_norm" if groups else "instance_norm", compute, None)


def _response_norm(given: Mapping[str, Any], rank: int) -> Form:
    spatial, channel = (tuple(int(d) % rank - rank for d in given[key]) for key in ("spatial", "channel"))

    def compute(codes: Sequence[Tensor], ends: Ends) -> Tensor:
        c, step, reach = codes[0], ends.step, ends.reach
        found = norms.responses(c, spatial, channel, step, reach, eps=given["eps"], inside=ends.setting.arithmetic.inside)
        gain = norms.affine(found, given["weight"], torch.ones((), device=c.device))
        # brought back to the bits inside, since it is multiplied once more
        unit = math.ldexp(1.0, 4 - ends.setting.arithmetic.inside)
        gain_codes = rescale(gain.data, multiplier(gain.unit / unit, gain.greatest))
        top = max(gain.greatest * gain.unit / unit, 1.0)
        product = norms.Fixed(c * gain_codes, step * unit, reach * top)
        return _affine(product, None, given["bias"], ends)

    return Form("norm", "response_norm", compute, None)


# products and sums


def _matrix_product(op: Operation) -> _Run:
    def compute(codes: Sequence[Tensor], ends: Ends) -> Tensor:
        left, right = codes
        # sums of float64 are exact below 2**53, which 2**20 products of 16 bits do not reach
        sums = op.call(left.double(), right.double()).long()
        wrapped = joins.wrapped(sums, ends.setting.accumulator_bits)
        return ends.reached(wrapped, ends.product_step, ends.product_reach * op.terms)

    return compute


def _of_two(name: str, given: Mapping[str, Any]) -> Form | None:
    """Sums, products, quotients and extremes of two tensors, which may have different scales."""
    alpha = number(given.get("alpha", 1.0))
    if alpha is None:
        return None
    signs = {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}
    first, second = (next((v.at for k, v in given.items() if k in keys and isinstance(v, Place)), None) for keys in _BOTH)
    if first is None or second is None:
        return None
    if name in signs and all(signs[name]):
        factors = signs[name]

        def add(codes: Sequence[Tensor], ends: Ends) -> Tensor:
            both = [(codes[i], ends.grids[i], f) for i, f in zip((first, second), factors, strict=True)]
            parts = [(c, float(grid.scale) * f, grid.reach) for c, grid, f in both]
            return joins.added(parts, ends.scale, ends.setting.multiplier_bits)

        return Form("rescale", name, add, fast=fast.add(first, second, factors))
    if name == "mul":

        def multiply(codes: Sequence[Tensor], ends: Ends) -> Tensor:
            return ends.reached(codes[0] * codes[1], ends.product_step, ends.product_reach)

        return Form("product", name, multiply, fast=fast.multiply)
    if name in {"maximum", "minimum"}:

        def extreme(codes: Sequence[Tensor], ends: Ends) -> Tensor:
            both = [_brought(c, g, ends) for c, g in zip(codes, ends.grids, strict=True)]
            return torch.maximum(*both) if name == "maximum" else torch.minimum(*both)

        return Form("rescale", name, extreme)
    return None


#: Names of the first and the second operand in the schemas of what takes two.
_BOTH = (("self", "input", "x"), ("other", "y"))


def _brought(c: Tensor, grid: QuantParams, ends: Ends) -> Tensor:
    return ends.reached(c, float(grid.scale), grid.reach)


def _concatenation(op: Operation, name: str, given: Mapping[str, Any]) -> Form | None:
    listed = next((v for v in given.values() if isinstance(v, (list, tuple))), None)
    dim = given.get("dim", 0)
    if listed is None or not all(isinstance(p, Place) for p in listed) or not isinstance(dim, int):
        return None

    def join(codes: Sequence[Tensor], ends: Ends) -> Tensor:
        found: Tensor = op.call(*(_brought(c, g, ends) for c, g in zip(codes, ends.grids, strict=True)))
        return found

    return Form("rescale", name, join, (dim % len(op.shape) - len(op.shape),) if name != "stack" else None)


def _average(op: Operation, name: str, given: Mapping[str, Any]) -> Form | None:
    """Sums over windows of one size, times the reciprocal of that size."""
    if given.get("divisor_override") is not None or given.get("ceil_mode"):
        return None
    padded = any(_numbers(given.get("padding", 0)))
    if padded and not given.get("count_include_pad", True):
        return None

    def compute(codes: Sequence[Tensor], ends: Ends) -> Tensor:
        c = codes[0]
        found = op.call(c.double())
        window = _window(name, given, c, found)
        count = 1 if name == "sum" else window
        sums = (found * count).round_().long()
        step, greatest = ends.step / count, ends.reach * window
        return ends.reached(sums, step, greatest)

    if name.startswith("adaptive"):
        size = _numbers(given.get("output_size"))
        return Form("rescale", name, compute, None) if size and all(s == 1 for s in size) else None
    return Form("rescale", name, compute, None)


def _window(name: str, given: Mapping[str, Any], c: Tensor, found: Tensor) -> int:
    if not name.startswith("avg_pool"):
        return c.numel() // max(found.numel(), 1)
    sizes = _numbers(given.get("kernel_size"))
    rank = int(name[8])
    return math.prod(sizes * rank if len(sizes) == 1 else sizes)


def _numbers(x: Any) -> list[int]:
    return [int(n) for n in x] if isinstance(x, (list, tuple)) else [] if x is None else [int(x)]
