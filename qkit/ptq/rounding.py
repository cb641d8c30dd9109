"""Adaptive rounding: every weight rounds up or down so that the layer's *output* is nearest to the float lane's.

Rounding to nearest is best for single weights and not for their sums. AdaRound (Nagel et al. 2020, "Up or Down? Adaptive
Rounding for Post-Training Quantization") relaxes the choice to ``h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)``,
minimizes the squared error of the layer's output behind its activation (equation 25, with the quantized lane's inputs and the
float lane's outputs), and pushes every h to 0 or 1 by the penalty ``1 - |2 h - 1|^beta`` with beta falling (equation 24).

The error is taken relative to that of rounding to nearest, so that one weight of the penalty fits every layer. What comes out is
compared with rounding to nearest on all batches, and the better is kept.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qkit.execution.lanes import lane_bias, lane_weight
from qkit.execution.loading import Batch
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.ptq.corrections import along
from qkit.ptq.side_by_side import Walk, called_twice, layers
from qkit.quant.plan import Codes, Grid, Plan

logger = logging.getLogger(__name__)

#: Of the rectified sigmoid, as published.
GAMMA, ZETA = -0.1, 1.1
#: beta falls from the first to the second, after a share of the iterations without penalty.
BETA, WARM_UP = (20.0, 2.0), 0.2
#: Weight of the penalty, its mean over the weights, beside the relative error.
PENALTY = 3.0
RATE = 1e-2
ITERATIONS = 400
SAMPLES = 32


@dataclass(frozen=True)
class Reconstruction:
    """What adaptive rounding did to one layer.

    Attributes
    ----------
    layer
        Tap name.
    nearest, adaptive
        Mean squared error of the output against the float lane's, relative to its mean square, by either rounding.
    moved
        Share of the weights that do not round to nearest; 0 where rounding to nearest was kept.
    """

    layer: str
    nearest: float
    adaptive: float
    moved: float


def adapt_rounding(
    graph: Graph,
    plan: Plan,
    batches: Sequence[Batch],
    *,
    iterations: int = ITERATIONS,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Plan, list[Reconstruction]]:
    """The plan with codes chosen layer by layer, in execution order, and what that did to each layer.

    Grids of more than 8 bits are left alone: their rounding is not what costs.

    Parameters
    ----------
    iterations
        Steps of Adam per layer, on `SAMPLES` samples each.
    seed
        Of the choice of samples.
    """
    walk = Walk(graph, batches, plan)
    done: list[Reconstruction] = []
    generator = torch.Generator().manual_seed(seed)
    for op in layers(graph, plan, "adaptive rounding", progress=progress):
        grid = plan[op.weight or ""]
        if called_twice(graph, op) or op.kind == "batchnorm" or grid.params.bits > 8:
            continue
        walk.to(op, plan)
        grid, result = _reconstruct(walk, op, plan, iterations, generator)
        plan = plan.with_grid(op.weight or "", grid)
        done.append(result)
    return plan, done


def _reconstruct(
    walk: Walk, op: Operation, plan: Plan, iterations: int, generator: torch.Generator
) -> tuple[Grid, Reconstruction]:
    graph, name = walk.graph, op.weight or ""
    grid, weight = plan[name], graph.weights[name]
    bias = lane_bias(graph, op, plan)
    plain = lane_weight(graph, plan, name)
    outputs = walk.outputs(op, plain, bias)
    # concatenated outside of inference mode, whose tensors take part in no gradient
    inputs = torch.cat([x for _, x in walk.inputs(op)])
    targets = _activated(op, torch.cat([y for y, _ in outputs]))
    signal = float(targets.double().square().mean())
    nearest = _error(op, inputs, targets, plain, bias)
    if nearest <= 1e-12 * max(signal, 1e-30):
        return grid, Reconstruction(op.name, 0.0, 0.0, 0.0)
    codes = _search(op, inputs, targets, weight, grid, bias, nearest, iterations, generator)
    adapted = replace(grid, codes=Codes(codes), method=f"{grid.method}, adaptive rounding")
    value = lane_weight(graph, plan.with_grid(name, adapted), name)
    error = _error(op, inputs, targets, value, bias)
    if error >= nearest:
        return grid, Reconstruction(op.name, nearest / signal, nearest / signal, 0.0)
    moved = float((value != plain).double().mean())
    return adapted, Reconstruction(op.name, nearest / signal, error / signal, moved)


def _search(
    op: Operation, inputs: Tensor, targets: Tensor, weight: Tensor, grid: Grid, bias: Tensor | None, nearest: float,
    iterations: int, generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Codes of the weight, integers of its shape."""
    params = grid.params
    scale, zero = (along(part, params, weight).to(weight.device).float() for part in (params.scale, params.zero_point))
    steps = weight / scale
    # what was rounded before, as after scaled batch norms, is the point to start from
    if grid.codes is not None:
        steps = steps + (grid.codes.tensor.to(weight.device).float() - zero - torch.round(steps))
    floor = torch.floor(steps)
    rest = (steps - floor).clamp(0.0, 1.0)
    variable = torch.logit((rest - GAMMA) / (ZETA - GAMMA)).requires_grad_()
    low, high = params.qmin - zero, params.qmax - zero
    optimizer = torch.optim.Adam([variable], lr=RATE)
    for i in range(iterations):
        chosen = torch.randint(len(inputs), (min(SAMPLES, len(inputs)),), generator=generator).to(inputs.device)
        h = (torch.sigmoid(variable) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)
        value = torch.minimum(torch.maximum(floor + h, low), high) * scale
        output = _activated(op, op.call(inputs[chosen], value, bias))
        loss = (output - targets[chosen]).square().mean() / nearest
        progress = (i / iterations - WARM_UP) / (1.0 - WARM_UP)
        if progress > 0.0:
            beta = BETA[1] + 0.5 * (BETA[0] - BETA[1]) * (1.0 + math.cos(math.pi * progress))
            loss = loss + PENALTY * (1.0 - (2.0 * h - 1.0).abs().pow(beta)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        up = (variable >= 0.0).float()
        codes = torch.minimum(torch.maximum(floor + up, low), high) + zero
    return codes.to(params.dtype).cpu()


def _activated(op: Operation, y: Tensor) -> Tensor:
    return y.clamp(*op.act)


def _error(op: Operation, inputs: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    """Mean squared error of the output, in chunks so that little memory is taken."""
    total: Any = 0.0
    with torch.no_grad():
        for x, y in zip(inputs.split(64), targets.split(64), strict=True):
            total = total + (_activated(op, op.call(x, weight, bias)) - y).double().square().sum()
    return float(total) / targets.numel()
