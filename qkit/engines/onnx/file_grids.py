"""The grids of a quantized ONNX file as a plan: "analyse the int8 file that I already have"."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from qkit.engines.plan_files.checks import rule_of
from qkit.errors import PlanError
from qkit.graph import Graph
from qkit.graph.onnx_file import OnnxGrid, OnnxNetwork
from qkit.graph.operation import Operation
from qkit.graph.weighted import grouped
from qkit.quant.grids import QuantParams
from qkit.quant.memory import by_channel
from qkit.quant.plan import Grid, Plan


def plan_of_file(graph: Graph, network: OnnxNetwork) -> Plan | None:
    """The plan that a file's Q/DQ nodes or quantized operators amount to; None where it has none.

    Tensors without a grid in the file stay float. Biases are 32 bits wide at the accumulator's scale, as ONNX has them. A weight
    with a norm folded into it has the file's codes, on the file's grid times the norm's factors.
    """
    grids: dict[str, Grid] = {}
    for op in graph.operations:
        if op.weight is not None and (params := _of_weight(graph, op, network)) is not None:
            grids[op.weight] = Grid(rule_of(params, True), params, "file", True)
        if op.quantized and (found := network.grids.get(op.name)) is not None and (params := _params(found)) is not None:
            grids[op.name] = Grid(rule_of(params, False), params, "file")
    return Plan(grids, 32, "file") if grids else None


def preset_of(plan: Plan) -> str:
    """The preset that has the widths of most of the plan's weights and activations."""
    widths = Counter((grid.weight, grid.params.bits) for grid in plan.grids.values())
    weights, activations = (max((8, 16), key=lambda bits: widths[of_weights, bits]) for of_weights in (True, False))
    narrow = sum(widths[True, bits] for bits in range(2, 5)) > widths[True, 8] + widths[True, 16]
    if activations == 8:
        return "int4-weights" if narrow else "int8"
    return "int16" if weights == 16 else "int8-weights-int16-activations"


def grids_left_out(graph: Graph, network: OnnxNetwork, plan: Plan) -> list[str]:
    """Names of the file's grids that have no tensor in the graph, or a second one; those of biases aside."""
    found = []
    for name, grid in network.grids.items():
        params = _params(grid)
        tap = next((op.tap for op in graph.operations if op.name == name), None)
        same = tap is not None and plan.params(tap) == params
        if params is not None and name not in plan.grids and not same:
            found.append(name)
    return found


def _of_weight(graph: Graph, op: Operation, network: OnnxNetwork) -> QuantParams | None:
    assert op.weight is not None
    path = next((path for path, name in network.tensors.items() if name == op.weight), None)
    found = (None if path is None else network.grid_of(path)) or network.grids.get(op.weight)
    params = None if found is None else _params(found)
    own = graph.weights[op.weight].detach()
    raw = None if path is None else network.module.state_dict()[path]
    if params is None or raw is None:
        return params
    if op.groups > 1:
        raw = grouped(raw, op.groups)
        if params.axis is not None:
            params = replace(params, scale=params.scale.repeat(op.groups), zero_point=params.zero_point.repeat(op.groups), axis=0)
    if raw.shape != own.shape or torch.equal(raw, own) or op.weight_axis is None:
        return params
    return _scaled(params, raw.double(), own.double(), op.weight_axis)


def _scaled(params: QuantParams, raw: Tensor, own: Tensor, axis: int) -> QuantParams | None:
    """The grid of `own`, which is `raw` times a factor for each channel; None if it is not, or the grid has other channels."""
    flat, other = by_channel(raw, axis), by_channel(own, axis)
    norms = flat.square().sum(1)
    factors = torch.where(norms > 0, (flat * other).sum(1) / norms.clamp(min=1e-300), 1.0)
    if not torch.allclose(flat * factors[:, None], other, rtol=1e-4, atol=1e-6 * float(other.abs().max())):
        return None
    if params.axis not in (None, axis):
        return None
    # where a norm's factor is 0, so are all codes, on any grid
    magnitude = torch.where(factors == 0, 1.0, factors.abs())
    zero = params.zero_point.expand(len(factors))
    # codes of the other sign are those from the other end of the grid
    turned = torch.where((factors < 0) & (zero != 0), params.qmin + params.qmax - zero, zero)
    try:
        return replace(params, scale=(params.scale * magnitude).float(), zero_point=turned.int(), axis=axis)
    except PlanError:
        return None


def _params(grid: OnnxGrid) -> QuantParams | None:
    """The grid in the kit's numbers; None for one that is wider than the kit's."""
    if grid.bits > 16:
        return None
    least = -(2 ** (grid.bits - 1)) if grid.signed else 0
    scale, zero = (torch.from_numpy(part.copy()) for part in (grid.scale, grid.zero_point))
    try:
        return QuantParams(scale.float(), zero.int(), least, least + 2**grid.bits - 1, grid.axis)
    except PlanError:
        return None
