"""What engines are known to do otherwise than the simulation, each as something that can be simulated.

A fault is a hypothesis: what it is called, what to do about it, and what the layer's output would be with it, on the engine's
own inputs. Nothing is believed before that output is the engine's (`qkit.engines.explain`). Comparing an engine with the
simulation and diagnosing one try the same list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from qkit.engines.equal_inputs import Visit, along, computed, rounded
from qkit.execution.columns import columns, groups, output_of, rows
from qkit.execution.lanes import lane_bias, lane_weight
from qkit.graph.running import ACCUMULATING
from qkit.graph.table import UNBOUNDED
from qkit.quant.grids import as_integers, wrap_around
from qkit.quant.memory import by_channel
from qkit.quant.plan import FLOAT

FaultKind = Literal[
    "dropped-bias", "bias-width", "input-width", "accumulator", "no-activation", "in-float", "scale", "channel-order",
    "sample-order", "layout", "rounding",
]  # fmt: skip

#: A constant factor is a fault from this distance to 1 on: multipliers of few bits are off by less.
_OFF = 0.02
#: Accumulators are tried from the width that would just have held the sums, down by so many bits.
_NARROWER = 8
#: What ONNX Runtime's integer softmax leaves, times the length, between its greatest exponential and float32's end.
_ROOM = math.exp(5.0)
#: Greatest unsigned byte, and greatest signed integer of two.
_BYTE, _SHORT = 255.0, 32767.0
#: Share of elements within a step from which on no products can have saturated.
_AGREES = 0.999
#: What processors without VNNI do, and what helps.
PAIRS = "adds pairs of 8-bit products in 16 bits, where they saturate (as processors without VNNI instructions do)"
PAIRS_CURE = "Set session.x64quantprecision to 1 in ONNX Runtime, run on a processor with VNNI, or give this weight 7 bits."
#: Channels that ONNX Runtime's MatMulNBits gives one grid.
_BLOCK = 32
#: Values nearer to zero than so many steps, or nearer to the grid's ends than one, say nothing of a factor.
_CLEAR = 4.0


@dataclass(frozen=True, eq=False)
class Fault:
    """One thing that engines do.

    Attributes
    ----------
    kind
        Of a fixed vocabulary; "rounding" is a difference and no fault.
    words
        What the engine does, to be read behind "it" or "the engine".
    cure
        What to do about it.
    output
        The layer's values with it; None where it cannot be what happened.
    """

    kind: FaultKind
    words: str
    cure: str
    output: Callable[[], Tensor | None]


def hypotheses(visit: Visit) -> Iterator[Fault]:
    """All that could be at this operation."""
    if visit.op.weight is not None:
        yield from _biases(visit)
        yield from _rounded_inputs(visit)
        yield from _accumulators(visit)
        yield from _pairs(visit)
    if visit.op.act != UNBOUNDED:
        yield Fault(
            "no-activation",
            "leaves out the activation: its tensor is the one in front of what the network fuses in",
            "Check that the engine fuses this layer's activation.",
            lambda: visit.finished(visit.sums, UNBOUNDED),
        )
    yield from _softmaxes(visit)
    yield from _in_float(visit)
    yield from _scales(visit)
    yield from _orders(visit)
    yield from _layouts(visit)
    yield from _roundings(visit)


def _biases(visit: Visit) -> Iterator[Fault]:
    """Biases that are left out, and biases in integers that are too narrow for them."""
    graph, op, plan = visit.graph, visit.op, visit.plan
    weight, bias = lane_weight(graph, plan, op.weight or ""), lane_bias(graph, op, plan)
    if bias is None:
        return

    def output(other: Tensor | None) -> Tensor:
        return visit.finished(op.call(visit.inputs[0], weight, other))

    yield Fault("dropped-bias", "drops the bias", "Give the engine this layer's bias.", lambda: output(None))
    scale = _accumulator_scale(visit)
    if scale is None:
        return
    # not cut to the plan's own width: an engine makes integers of the float bias
    exact = lane_bias(graph, op, replace(plan, bias_bits=None))
    codes = torch.round((bias if exact is None else exact).double() / scale)
    for bits in (32, 16):
        limit = 2.0 ** (bits - 1)
        beyond = (codes < -limit) | (codes > limit - 1)
        if not bool(beyond.any()):
            continue
        how = {
            "saturate": codes.clamp(-limit, limit - 1),
            # what a float becomes that is cast to an integer too narrow for it, on most processors
            "become the most negative number": torch.where(beyond, -limit, codes),
            "wrap around": torch.remainder(codes + limit, 2 * limit) - limit,
        }
        for what, held in how.items():
            yield Fault(
                "bias-width",
                f"holds the bias in {bits} bits at the scale of input times weight, where {int(beyond.sum())} of {bias.numel()} "
                f"entries do not fit and {what}",
                "Keep the bias of this layer in float or in more bits, or switch off the optimization that turns it into an "
                "integer (in ONNX Runtime: WeightBiasQuantization).",
                lambda held=held: output((held * scale).to(bias.dtype)),  # type: ignore[misc]
            )


def _rounded_inputs(visit: Visit) -> Iterator[Fault]:
    """Inputs of a matrix product on a grid of 8 bits that nobody asked for."""
    source, grid = visit.inputs[0], visit.plan.params(visit.op.weight)
    if visit.op.kind != "linear" or grid is None or grid.bits > 8:
        return

    def output() -> Tensor:
        x = torch.zeros(*source.shape[:-1], -(-source.shape[-1] // _BLOCK) * _BLOCK, device=source.device)
        x[..., : source.shape[-1]] = source
        blocks = x.unflatten(-1, (-1, _BLOCK))
        step = (blocks.abs().amax(-1, keepdim=True) / 127.0).clamp(min=1e-30)
        x = (torch.round(blocks / step) * step).flatten(-2)[..., : source.shape[-1]]
        return visit.finished(computed(visit.graph, visit.op, [x], visit.plan))

    yield Fault(
        "input-width",
        f"rounds its input to 8 bits first, each {_BLOCK} channels of a place on their own grid (ONNX Runtime's MatMulNBits)",
        "Set session.qdq_matmulnbits_accuracy_level to 1 in ONNX Runtime, or export the file with qkit, which stores such "
        "weights in 16 bits.",
        output,
    )


def _accumulator_scale(visit: Visit) -> Tensor | None:
    """Scale of input times weight, () or (channels,), float64; None where the sums have no one grid."""
    op, plan = visit.op, visit.plan
    source, grid = plan.params(visit.graph.operations[op.inputs[0]].tap), plan.params(op.weight)
    if source is None or grid is None or source.axis is not None or grid.axis not in (None, op.weight_axis):
        return None
    return (source.scale.double() * grid.scale.double()).to(visit.engine.device)


def _accumulators(visit: Visit) -> Iterator[Fault]:
    """Sums that are too large for the integer that they run up in."""
    op, scale = visit.op, _accumulator_scale(visit)
    if scale is None or op.kind not in ACCUMULATING:
        return
    axis = None if scale.ndim == 0 else op.channel_axis
    shaped = along(scale, axis, visit.sums.ndim)
    sums = visit.sums.double()
    greatest = float((sums / shaped).abs().max())
    widest = min(int(np.ceil(np.log2(max(greatest, 1.0)))), 32)
    for bits in range(widest, max(widest - _NARROWER, 7), -1):
        limit = 2.0 ** (bits - 1)

        def saturated(limit: float = limit) -> Tensor:
            return visit.finished(torch.minimum(torch.maximum(sums, -limit * shaped), (limit - 1) * shaped))

        def wrapped(bits: int = bits) -> Tensor:
            return visit.finished(wrap_around(visit.sums, scale, bits, axis))

        for what, output in (("saturates", saturated), ("wraps around", wrapped)):
            yield Fault(
                "accumulator",
                f"sums up in an accumulator of {bits} bits, which {what}",
                "Use a wider accumulator in this layer, or smaller weights and inputs (another scale).",
                output,
            )


def _pairs(visit: Visit) -> Iterator[Fault]:
    """Products that are added two by two in 16 bits, as processors without VNNI do it with unsigned and signed bytes."""
    op, plan = visit.op, visit.plan
    source, grid = plan.params(visit.graph.operations[op.inputs[0]].tap), plan.params(op.weight)
    scale = _accumulator_scale(visit)
    if scale is None or source is None or grid is None or max(source.bits, grid.bits) > 8 or groups(op) > 1:
        return
    if op.kind not in ("conv", "linear") or float((visit.apart(visit.simulated).abs() < 1.5).double().mean()) >= _AGREES:
        return
    x, weight = visit.inputs[0], lane_weight(visit.graph, plan, op.weight or "")
    # real zeros around an image are the code of zero, which here is 0 until the least code is taken off all
    (matrix,), offset = rows(op, as_integers(weight, grid)), int(source.zero_point) - source.qmin

    def output(order: Tensor) -> Tensor | None:
        ordered, parts = matrix[:, order], []
        for _, made in columns(op, as_integers(x, source), weight):
            parts.append(_cut(ordered.double(), made[0, order].double() + offset))
        missing = output_of(op, torch.cat(parts, 1)[None], visit.sums)
        if not bool(missing.any()):
            return None
        return visit.finished(
            visit.sums.double() + missing * along(scale, None if scale.ndim == 0 else op.channel_axis, visit.sums.ndim)
        )

    size = torch.arange(matrix.shape[1])
    orders = {"": size}
    if weight.shape[2:].numel() > 1:  # engines read images with the channels first or last
        orders = {", channels first": size, ", channels last": size.view(weight.shape[1], -1).T.flatten()}
    for how, order in orders.items():
        yield Fault("accumulator", PAIRS + how, PAIRS_CURE, lambda order=order: output(order))  # type: ignore[misc]


def _cut(weights: Tensor, codes: Tensor) -> Tensor:
    """What sums of products (rows, K) times (K, places) lose where every pair is held in 16 bits, (rows, places)."""
    lost = torch.zeros(len(weights), codes.shape[1], dtype=torch.float64, device=codes.device)
    for k in range(0, weights.shape[1] - 1, 2):
        pair = weights[:, k : k + 2]
        reached = torch.maximum(pair.clamp(min=0.0).sum(1), -pair.clamp(max=0.0).sum(1)) * _BYTE > _SHORT
        if bool(reached.any()):
            sums = pair[reached] @ codes[k : k + 2]
            lost[reached] += sums.clamp(-_SHORT - 1.0, _SHORT) - sums
    return lost


def softmax_overflows(length: int, scale: float) -> bool:
    """Whether a softmax over so many, on 8 bits of that scale, can overflow in ONNX Runtime's integer kernel before 1.32.

    It multiplies exponentials, the greatest of which is float32's end over `length` and e^5, by ``1 / scale``.
    """
    return 1.0 / scale > _ROOM * length


def _softmaxes(visit: Visit) -> Iterator[Fault]:
    """What ONNX Runtime's integer softmax does with ``1 / scale``: its whole part alone, and exponentials beyond float32."""
    params, y = visit.params, visit.sums
    if params is None or params.axis is not None or params.bits > 8 or visit.op.kind != "activation":
        return
    scale, whole = float(params.scale), math.floor(np.float32(1.0) / params.scale.numpy())
    for axis in range(1, y.ndim):
        length = y.shape[axis]
        if bool(((y.sum(axis) - 1.0).abs() > 1e-3).any()):
            continue
        yield Fault(
            "rounding",
            f"multiplies the probabilities of its softmax with {whole}, the whole part of 1 / scale ({1.0 / scale:.2f}), as ONNX "
            "Runtime's integer kernel does",
            "Nothing is wrong: no code is off by more than a step.",
            lambda: rounded(visit.op, visit.sums.double() * (whole * scale), params, torch.round),
        )
        if not softmax_overflows(length, scale):
            continue
        beyond = y * whole > y.amax(axis, keepdim=True) * _ROOM * length
        for end, value in (("least", params.lo), ("greatest", params.hi)):
            yield Fault(
                "accumulator",
                f"overflows in its softmax over {length}, whose probabilities are small, and gives its {end} code there",
                "Take ONNX Runtime 1.32 or newer, export the file with qkit, which guards such a softmax, or give this tensor a "
                f"range up to {255 / (_ROOM * length):.3g}.",
                lambda beyond=beyond, value=value: torch.where(beyond, value.to(y), visit.simulated),  # type: ignore[misc]
            )


def _in_float(visit: Visit) -> Iterator[Fault]:
    """A layer that is not quantized, or only in part."""
    if visit.params is None:
        return
    cure = "Check that the engine quantizes this layer, or leave it out of the plan."
    op, graph = visit.op, visit.graph

    def clamped(sums: Tensor) -> Tensor:
        return sums if op.act == UNBOUNDED else sums.clamp(*op.act)

    yield Fault(
        "in-float",
        "does not round its output: its values lie between the grid's",
        cure,
        lambda: clamped(visit.sums),
    )
    if op.weight is None:
        return
    yield Fault(
        "in-float",
        "runs in float, weights and all: its values lie between the grid's",
        cure,
        lambda: clamped(computed(graph, op, visit.inputs, FLOAT)),
    )
    yield Fault(
        "in-float",
        "runs in float with float weights, and rounds its output alone",
        cure,
        lambda: visit.finished(computed(graph, op, visit.inputs, FLOAT)),
    )


def _scales(visit: Visit) -> Iterator[Fault]:
    """Scales that are off: where the output is rounded, where it is read, or where one of several inputs is read."""
    exact = visit.sums.double()
    factor = _factor(visit, exact)
    if factor is not None:
        yield Fault(
            "scale",
            f"rounds its output at a scale that is off: all values by a constant factor of {factor:.3g}",
            "Compare the multiplier and shift with which the engine brings this layer's sums to the output's scale.",
            lambda: visit.finished(exact * factor),
        )
        yield Fault(
            "scale",
            f"has the right codes at another scale: all values are off by a constant factor of {factor:.3g}",
            "Compare the scale that the engine uses for this tensor with the plan's (some engines store its reciprocal).",
            lambda: visit.simulated * factor,
        )
    if visit.op.kind not in ("add", "concat") or len(visit.inputs) < 2 or not all(isinstance(x, Tensor) for x in visit.inputs):
        return
    for position, index in enumerate(visit.op.inputs):
        part = visit.op.call(*(x if i == position else torch.zeros_like(x) for i, x in enumerate(visit.inputs))).double()
        own = _part_factor(visit, exact, part)
        if own is None:
            continue
        name = visit.graph.operations[index].tap or visit.graph.operations[index].name
        yield Fault(
            "scale",
            f"reads its input {name} at a scale that is off by a constant factor of {own:.3g}",
            "Compare the scale at which the engine reads this input with the plan's scale of that tensor.",
            lambda own=own, part=part: visit.finished(exact + (own - 1.0) * part),  # type: ignore[misc]
        )


def _clear(visit: Visit, exact: Tensor) -> Tensor:
    """Where neither activation nor the grid's ends nor rounding hide what happened to a value."""
    low, high = visit.op.act
    clear = (exact > low) & (exact < high) & (exact.abs() > _CLEAR * visit.unit) & (visit.engine.double() != 0.0)
    params = visit.params
    if params is not None:
        lo, hi = (along(end.to(exact.device), params.axis, exact.ndim) for end in (params.lo, params.hi))
        engine = visit.engine.double()
        clear &= (engine > lo + 0.5 * visit.unit) & (engine < hi - 0.5 * visit.unit)
    return clear


def _factor(visit: Visit, exact: Tensor) -> float | None:
    """The constant that the engine's values are multiplied by, if they are by one."""
    clear = _clear(visit, exact)
    x, y = exact[clear], visit.engine.double()[clear]
    if x.numel() < 8:
        return None
    middle = float((y / x).median())
    near = (y / x - middle).abs() < 0.25 * abs(middle)
    x, y = x[near], y[near]
    if x.numel() < 8 or middle <= 0.0:
        return None
    factor = float((x * y).sum() / x.square().sum())
    two = 2.0 ** round(np.log2(factor))
    # a shift that is off gives a power of two exactly, which the values tell to a few per mille only
    factor = two if abs(factor / two - 1.0) < 0.005 else factor
    return factor if abs(factor - 1.0) > _OFF else None


def _part_factor(visit: Visit, exact: Tensor, part: Tensor) -> float | None:
    """The constant that one input's share of a sum or a concatenation is multiplied by."""
    clear = _clear(visit, exact) & (part != 0.0)
    x, y = part[clear], (visit.engine.double() - exact)[clear]
    if x.numel() < 8:
        return None
    factor = 1.0 + float((x * y).sum() / x.square().sum())
    two = 2.0 ** round(np.log2(factor)) if factor > 0.0 else 1.0
    factor = two if abs(factor / two - 1.0) < 0.01 else factor
    return factor if abs(factor - 1.0) > _OFF else None


def _orders(visit: Visit) -> Iterator[Fault]:
    """Channels or samples in another order."""
    op = visit.op
    if visit.engine.ndim < 2:
        return
    yield Fault(
        "channel-order",
        "has its channels in another order",
        "Check the order of this layer's output channels in the engine.",
        lambda: _reordered(visit, op.channel_axis),
    )
    if op.channel_axis != 0:
        yield Fault(
            "sample-order",
            "has its samples in another order",
            "Give the engine and the kit the same images in the same order.",
            lambda: _reordered(visit, 0),
        )
    source = visit.inputs[0] if visit.inputs else None
    if op.weight is not None and op.kind == "conv" and isinstance(source, Tensor) and source.ndim > 2:
        yield Fault(
            "channel-order",
            "reads its input's channels in reverse order",
            "Check the order of the input's channels in the engine (RGB or BGR).",
            lambda: visit.finished(computed(visit.graph, op, [source.flip(1)], visit.plan)),
        )


def _reordered(visit: Visit, axis: int) -> Tensor | None:
    """The simulation's slices in the order in which they are most like the engine's."""
    rows = [by_channel(value, axis).double() for value in (visit.simulated, visit.engine)]
    a, b = (row - row.mean(1, keepdim=True) for row in rows)
    cost = -(b @ a.T) / (b.norm(dim=1)[:, None] * a.norm(dim=1) + 1e-30)
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    if (columns == np.arange(len(columns))).all():
        return None
    return visit.simulated.index_select(axis, torch.as_tensor(columns, device=visit.simulated.device))


def _layouts(visit: Visit) -> Iterator[Fault]:
    """Channels first read as channels last, or the other way round; at the output, or where images are flattened."""
    cure = "Transpose the engine's tensor, or tell the reader its layout."
    if visit.engine.ndim == 4:
        yield Fault(
            "layout",
            "holds its channels last (NHWC) where the network has them first",
            cure,
            lambda: visit.simulated.permute(0, 2, 3, 1).reshape(visit.engine.shape),
        )
        yield Fault(
            "layout",
            "takes channels that are first for channels that are last (NCHW read as NHWC)",
            cure,
            lambda: _read_as_last(visit.simulated),
        )
    shape = _flattened(visit)
    if shape is not None:
        source = visit.inputs[0]
        yield Fault(
            "layout",
            "flattens its input with the channels last, where the weights were trained on channels first",
            "Transpose before flattening in the engine, or reorder this layer's weights.",
            lambda: visit.finished(
                computed(
                    visit.graph,
                    visit.op,
                    [source.reshape(len(source), *shape).permute(0, 2, 3, 1).flatten(1)],
                    visit.plan,
                )
            ),
        )


def _read_as_last(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.contiguous().reshape(n, h, w, c).permute(0, 3, 1, 2)


def _flattened(visit: Visit) -> tuple[int, ...] | None:
    """Shape (C, H, W) of the image that a linear layer reads flattened, if it reads one of more than a pixel."""
    op, graph = visit.op, visit.graph
    if op.kind != "linear" or visit.inputs[0].ndim != 2:
        return None
    source = graph.operations[op.inputs[0]]
    while source.kind == "keep" and source.inputs:
        source = graph.operations[source.inputs[0]]
        shape = source.shape
        if len(shape) == 4 and int(np.prod(shape[1:])) == visit.inputs[0].shape[1]:
            return tuple(shape[1:]) if shape[2] * shape[3] > 1 else None
    return None


def _roundings(visit: Visit) -> Iterator[Fault]:
    """Other ways to round, which are no faults."""
    params = visit.params
    if params is None:
        return
    cure = "Nothing is wrong; the simulation rounds halves to even."
    ways: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
        ("has halves rounded away from zero, not to even", lambda x: torch.sign(x) * (x.abs() + 0.5).floor()),
        ("has halves rounded up, not to even", lambda x: (x + 0.5).floor()),
        ("has its values rounded down, not to nearest", torch.floor),
        ("has its values cut off towards zero, not rounded to nearest", torch.trunc),
    )
    for words, how in ways:
        yield Fault("rounding", words, cure, lambda how=how: rounded(visit.op, visit.sums, params, how))  # type: ignore[misc]
