"""Corrections against the float lane: of biases, and of the statistics of batch norms under quantization.

**Biases.** Rounding weights and inputs shifts the mean of a layer's output, channel by channel, and the next layer inherits
the shift. So the layers are corrected in execution order, each with all corrections before it in force: what is measured is
the accumulated shift against the float lane, not what the layer's own rounding adds (Nagel et al. 2019, "Data-Free
Quantization Through Weight Equalization and Bias Correction", section 4.2, in its empirical form). The mean that counts is
the one behind the activation, since that is what the next layer reads: a clamp turns a change of the spread into a change of
the mean, and hides a shift of what it clamps anyway. There a bias acts on the share of elements that the clamp lets through,
so the correction is found in a few rounds of Newton's method.

**Norms.** A batch norm maps its convolution's output to a mean and a deviation per channel. Quantized weights and inputs give
that convolution another mean and deviation than those that were folded in, so the norm no longer maps to where it did in
float. Measuring both again under quantization and folding anew multiplies a channel's weights by ``deviation in float /
deviation quantized`` and moves its bias (Sun et al. 2019, "Hybrid 8-bit Floating Point Training and Inference", section 2.3).
The float lane on the same images is the target, so that the images' own statistics cancel out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qkit.execution.lanes import lane_bias, lane_weight
from qkit.execution.loading import Batch
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.ptq.side_by_side import Moments, Walk, called_twice, layers, moments
from qkit.quant.grids import QuantParams
from qkit.quant.memory import by_channel
from qkit.quant.plan import Codes, Grid, Plan

#: Rounds per layer.
ITERATIONS = 4
#: A channel of which the clamp lets through less than this share is corrected as if it were this: it hardly answers.
LEAST_SHARE = 0.05


def correct_biases(
    graph: Graph, plan: Plan, batches: Sequence[Batch], *, iterations: int = ITERATIONS, progress: bool = True
) -> Plan:
    """The plan with corrections that bring every layer's mean output to that of the float lane, on these batches.

    A weight that several operations share is left alone: its one bias cannot follow several means. An interrupt ends it without a
    result.
    """
    walk = Walk(graph, batches, plan)
    for op in layers(graph, plan, "correcting biases", progress=progress):
        if correctable(graph, op):
            walk.to(op, plan)
            plan = correct_bias(walk, op, plan, iterations=iterations)
    return plan


def correctable(graph: Graph, op: Operation) -> bool:
    """Whether the operation has a bias of its own to correct."""
    return op.kind != "batchnorm" and not called_twice(graph, op)


def correct_bias(walk: Walk, op: Operation, plan: Plan, *, iterations: int = ITERATIONS, share: float = 1.0) -> Plan:
    """The plan with one layer's correction, each time by `share` of what is missing; the walk stands at the layer."""
    weight = lane_weight(walk.graph, plan, op.weight or "")
    for _ in range(iterations):
        shift = mean_shift(walk, op, weight, lane_bias(walk.graph, op, plan))
        before = torch.tensor(plan.corrections.get(op.name, (0.0,) * len(shift)), dtype=torch.float64)
        plan = replace(plan, corrections={**plan.corrections, op.name: tuple((before - share * shift).tolist())})
    return plan


def mean_shift(walk: Walk, op: Operation, weight: Tensor, bias: Tensor | None) -> Tensor:
    """How much lower the bias of every channel has to be for its mean behind the activation to be float's, float64 (C,).

    To first order: the difference of the means by the share of elements that follow the bias.
    """
    difference: Any = 0.0
    free: Any = 0.0
    count = 0
    low, high = op.act
    for exact, quantized in walk.outputs(op, weight, bias):
        a, b = (by_channel(value, op.channel_axis).double() for value in (exact, quantized))
        difference = difference + (b.clamp(low, high) - a.clamp(low, high)).sum(1).cpu()
        free = free + ((b > low) & (b < high)).sum(1).double().cpu()
        count += a.shape[1]
    return torch.as_tensor(difference / torch.as_tensor(free).clamp(min=LEAST_SHARE * count))


#: A channel is stretched or shrunk by at most this: beyond, its rounding error is most of what it holds.
MOST = 2.0


def reestimate_norms(graph: Graph, plan: Plan, batches: Sequence[Batch], *, progress: bool = True) -> Plan:
    """The plan with every layer that had a batch norm scaled and shifted to the float lane's mean and deviation.

    Grids per channel with free scales take the factor into the scale, their codes stay; others get new codes on the same grid.
    """
    walk = Walk(graph, batches, plan)
    for op in layers(graph, plan, "batch norms", progress=progress):
        if has_norm(graph, op):
            walk.to(op, plan)
            weight = lane_weight(graph, plan, op.weight or "")
            found = moments(walk, op, weight, lane_bias(graph, op, plan))
            plan = correct_bias(walk, op, stretched(graph, plan, op, plan[op.weight or ""], found))
    return plan


def has_norm(graph: Graph, op: Operation) -> bool:
    """Whether a batch norm is folded into the operation that can be folded anew."""
    return op.norm is not None and op.weight_axis is not None and not called_twice(graph, op)


def stretched(graph: Graph, plan: Plan, op: Operation, grid: Grid, found: Moments) -> Plan:
    """The plan in which the operation's weight gives float's deviations, if on `grid` it gave those found."""
    assert op.weight is not None
    assert op.weight_axis is not None
    exact, quantized = found.deviations
    factor = torch.where((exact > 0) & (quantized > 0), exact / quantized.clamp(min=1e-30), 1.0).clamp(1.0 / MOST, MOST)
    return plan.with_grid(op.weight, scaled(grid, graph.weights[op.weight], factor, op.weight_axis))


def scaled(grid: Grid, weight: Tensor, factor: Tensor, axis: int) -> Grid:
    """The grid and codes of a weight whose output channels are multiplied by `factor`, float64 (C,)."""
    params = grid.params
    shape = [1] * weight.ndim
    shape[axis] = -1
    scale, zero = along(params.scale, params, weight), along(params.zero_point, params, weight)
    steps = weight.cpu().double() / scale if grid.codes is None else grid.codes.tensor.cpu().double() - zero
    if params.axis == axis and not grid.spec.power_of_two:
        wider = (params.scale.double() * factor).clamp(min=2.0**-126).float()
        params = QuantParams(wider, params.zero_point, params.qmin, params.qmax, params.axis)
    else:
        steps = steps * factor.view(shape)
    codes = (torch.round(steps) + zero).clamp_(params.qmin, params.qmax).to(params.dtype)
    return replace(grid, params=params, codes=Codes(codes))


def along(numbers: Tensor, params: QuantParams, weight: Tensor) -> Tensor:
    """A grid's numbers, float64, in a shape that goes with the weight's."""
    shape = [1] * weight.ndim
    if params.axis is not None:
        shape[params.axis] = -1
    return numbers.double().view(shape)
