"""Adaptive rounding: every weight rounds up or down so that the layer's *output* is nearest to the float lane's.

Rounding to nearest is best for single weights and not for their sums (Nagel et al. 2020, "Up or Down? Adaptive Rounding for
Post-Training Quantization"). The error is that of equation 25 there: the layer on the quantized lane's inputs against the
float lane's output. Before the activation it is quadratic in the weights. With X the columns that meet the weight
(`qkit.execution.columns`), d what rounding adds to a row of it, and r the output's error as things are, it is
``d G d' + 2 c d' + |r|²`` with ``G = X X'`` and ``c = r X'``, so that a choice costs no pass over the images.

Two searches, and of each row the better result: from rounding to nearest, and from weights that are rounded one after the other
while those that are left make up for what was done (Frantar et al. 2022, "GPTQ", without its grouping). Both then change single
weights as long as that helps. G gets a hundredth of its mean diagonal added, as in GPTQ: few images say nothing about many
weights. What comes out is compared with rounding to nearest, behind the activation, and the better is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qkit.execution.columns import columns, output_rows, rows, weight_of
from qkit.execution.lanes import lane_bias, lane_weight
from qkit.execution.loading import Batch
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.running import ACCUMULATING, execution
from qkit.ptq.corrections import along
from qkit.ptq.side_by_side import Walk, called_twice, layers
from qkit.quant.descent import descend
from qkit.quant.plan import Codes, Grid, Plan

logger = logging.getLogger(__name__)

#: Of the mean diagonal, added to it.
RIDGE = 0.01
#: Columns whose products are held at once: a table of 128 MiB.
_WIDEST = 4096


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
    graph: Graph, plan: Plan, batches: Sequence[Batch], *, progress: bool = True
) -> tuple[Plan, list[Reconstruction]]:
    """The plan with codes chosen layer by layer, in execution order, and what that did to each layer.

    Grids of more than 8 bits are left alone: their rounding is not what costs.
    """
    walk = Walk(graph, batches, plan)
    done: list[Reconstruction] = []
    for op in layers(graph, plan, "adaptive rounding", progress=progress):
        if called_twice(graph, op) or op.kind not in ACCUMULATING or plan[op.weight or ""].params.bits > 8:
            continue
        walk.to(op, plan)
        with execution(graph.device):
            grid, result = _reconstruct(walk, op, plan)
        plan = plan.with_grid(op.weight or "", grid)
        done.append(result)
    return plan, done


def _reconstruct(walk: Walk, op: Operation, plan: Plan) -> tuple[Grid, Reconstruction]:
    graph, name = walk.graph, op.weight or ""
    grid = plan[name]
    bias, plain = lane_bias(graph, op, plan), lane_weight(graph, plan, name)
    nearest, signal = _error(walk, op, plain, bias)
    if nearest <= 1e-12 * max(signal, 1e-30):
        return grid, Reconstruction(op.name, 0.0, 0.0, 0.0)
    codes = _search(walk, op, plain, bias, grid)
    adapted = replace(grid, codes=Codes(codes), method=f"{grid.method}, adaptive rounding")
    value = lane_weight(graph, plan.with_grid(name, adapted), name)
    error, _ = _error(walk, op, value, bias)
    if error >= nearest:
        return grid, Reconstruction(op.name, nearest / signal, nearest / signal, 0.0)
    moved = float((value != plain).double().mean())
    return adapted, Reconstruction(op.name, nearest / signal, error / signal, moved)


def _moments(walk: Walk, op: Operation, weight: Tensor, bias: Tensor | None, part: slice) -> tuple[Tensor, Tensor]:
    """``G`` (groups, K, K) and ``c`` (groups, rows, K) of the module's formula, float64, of that part of the columns."""
    products: Tensor | None = None
    crossed: Tensor | None = None
    for (_, x), (exact, found) in zip(walk.inputs(op), walk.outputs(op, weight, bias), strict=True):
        wrong = found - exact
        for samples, every in columns(op, x, weight):
            made = every[:, part]
            once = (made @ made.transpose(1, 2)).double()
            twice = (output_rows(op, wrong[samples]) @ made.transpose(1, 2)).double()
            products = once if products is None else products.add_(once)
            crossed = twice if crossed is None else crossed.add_(twice)
    assert products is not None
    assert crossed is not None
    return products, crossed


def _search(walk: Walk, op: Operation, plain: Tensor, bias: Tensor | None, grid: Grid) -> Tensor:
    """Codes of the weight, integers of its shape; `plain` is the weight as things are. Wide layers go part by part."""
    params, weight = grid.params, walk.graph.weights[op.weight or ""]
    scale, zero = (along(part, params, weight).to(weight.device).double() for part in (params.scale, params.zero_point))
    steps = weight.double() / scale
    # what was rounded before, as after scaled batch norms, is the point to start from
    if grid.codes is not None:
        steps = steps + (grid.codes.tensor.to(weight.device).double() - zero - torch.round(steps))
    low, high = params.qmin - zero, params.qmax - zero
    floor = torch.floor(steps)
    down, up = (rows(op, (n.clamp(low, high) * scale - plain.double())) for n in (floor, floor + 1.0))
    ahead = rows(op, plain.double() - steps * scale)  # of the exact weight
    change = torch.zeros_like(down)
    for first in range(0, change.shape[-1], _WIDEST):
        part = slice(first, first + _WIDEST)
        now = (plain.double() + weight_of(op, change, weight)).float()
        found = _moments(walk, op, now, bias, part)
        change[..., part] = _best(*found, down[..., part], up[..., part], ahead[..., part])
    codes = torch.round((plain.double() + weight_of(op, change, weight)) / scale) + zero
    return codes.clamp_(params.qmin, params.qmax).to(params.dtype).cpu()


def _best(products: Tensor, crossed: Tensor, down: Tensor, up: Tensor, ahead: Tensor) -> Tensor:
    """The changes, each `down` or `up`, that cost least; `ahead` is how far the weight as it is lies from the exact one."""
    ridge = (RIDGE * products.diagonal(dim1=1, dim2=2).mean(1)).clamp_min(1e-30)[:, None, None]
    products = products + ridge * torch.eye(products.shape[1], dtype=products.dtype, device=products.device)
    crossed = crossed + ridge * ahead
    starts = torch.where(down.abs() <= up.abs(), down, up), _one_after_the_other(products, crossed, down, up)
    first, second = (descend(products, crossed, start, down, up) for start in starts)
    better = _objective(products, crossed, second) < _objective(products, crossed, first)
    return torch.where(better[..., None], second, first)


def _objective(products: Tensor, crossed: Tensor, change: Tensor) -> Tensor:
    return ((change @ products + 2.0 * crossed) * change).sum(-1)


def _one_after_the_other(products: Tensor, crossed: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Changes that are `down` or `up`, chosen from the first to the last, the rest staying free: GPTQ's rule."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(products))
    factor = torch.linalg.cholesky(inverse, upper=True)
    free = -crossed @ inverse
    found = torch.empty_like(free)
    for k in range(free.shape[-1]):
        at = free[..., k]
        found[..., k] = torch.where((at - down[..., k]).abs() <= (at - up[..., k]).abs(), down[..., k], up[..., k])
        missed = (at - found[..., k]) / factor[:, k, k, None]
        free[..., k + 1 :] -= missed[..., None] * factor[:, None, k, k + 1 :]
    return found


def _error(walk: Walk, op: Operation, weight: Tensor, bias: Tensor | None) -> tuple[float, float]:
    """Mean squared error of the output behind its activation, and the float lane's mean square."""
    error = signal = 0.0
    count = 0
    for before, found in walk.outputs(op, weight, bias):
        exact = before.clamp(*op.act)
        error += float((found.clamp_(*op.act) - exact).double().square().sum())
        signal += float(exact.double().square().sum())
        count += exact.numel()
    return error / count, signal / count
