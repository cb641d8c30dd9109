"""Batch-norm re-estimation: a folded batch norm gets the statistics that the quantized network shows.

A batch norm maps its convolution's output to a mean and a deviation per channel. Quantized weights and inputs give that
convolution another mean and deviation than those that were folded in, so the norm no longer maps to where it did in float.
Measuring both again under quantization and folding anew multiplies a channel's weights by ``deviation in float / deviation
quantized`` and moves its bias (Sun et al. 2019, "Hybrid 8-bit Floating Point Training and Inference", section 2.3). The float
lane on the same images is the target, so that the images' own statistics cancel out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from qkit.execution.lanes import lane_bias, lane_weight
from qkit.execution.loading import Batch
from qkit.graph import Graph
from qkit.graph.step import Step
from qkit.ptq.bias import correct_bias
from qkit.ptq.side_by_side import Moments, Walk, called_twice, layers, moments
from qkit.quant.grids import QuantParams
from qkit.quant.plan import Codes, Grid, Plan

#: A channel is stretched or shrunk by at most this: beyond, its rounding error is most of what it holds.
MOST = 2.0


def reestimate_norms(graph: Graph, plan: Plan, batches: Sequence[Batch], *, progress: bool = True) -> Plan:
    """The plan with every layer that had a batch norm scaled and shifted to the float lane's mean and deviation.

    Grids per channel with free scales take the factor into the scale, their codes stay; others get new codes on the same grid.
    """
    walk = Walk(graph, batches, plan)
    for step in layers(graph, plan, "batch norms", progress=progress):
        if has_norm(graph, step):
            walk.to(step, plan)
            weight = lane_weight(graph, plan, step.weight or "")
            found = moments(walk, step, weight, lane_bias(graph, step, plan))
            plan = correct_bias(walk, step, stretched(graph, plan, step, plan[step.weight or ""], found))
    return plan


def has_norm(graph: Graph, step: Step) -> bool:
    """Whether a batch norm is folded into the step that can be folded anew."""
    return step.norm is not None and step.weight_axis is not None and not called_twice(graph, step)


def stretched(graph: Graph, plan: Plan, step: Step, grid: Grid, found: Moments) -> Plan:
    """The plan in which the step's weight gives float's deviations, if on `grid` it gave those found."""
    assert step.weight is not None
    assert step.weight_axis is not None
    exact, quantized = found.deviations
    factor = torch.where((exact > 0) & (quantized > 0), exact / quantized.clamp(min=1e-30), 1.0).clamp(1.0 / MOST, MOST)
    return plan.with_grid(step.weight, scaled(grid, graph.weights[step.weight], factor, step.weight_axis))


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
