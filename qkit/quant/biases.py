"""Weight scales so coarse that biases fit the accumulator's integers.

A bias is kept as an integer of ``s_input * s_weight``. A filter that is nearly dead has tiny weights and so a tiny scale, on
which its bias can exceed 32 bits. A coarser scale for that channel costs next to nothing, since its weights hardly matter
beside its bias; ONNX Runtime and TFLite choose it so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.estimators import Observation
from qkit.quant.grids import QuantParams
from qkit.quant.plan import Grid

__all__ = ["coarser_scales"]


def coarser_scales(
    graph: Graph, grids: Mapping[str, Grid], bias_bits: int | None, seen: Mapping[str, Observation], *, free: bool = True
) -> dict[str, Grid]:
    """Weight grids, by name, with the scales raised where a bias would not fit; those alone that change.

    Parameters
    ----------
    bias_bits
        Width of the biases; None for biases in float, which fit.
    free
        Only where a scale per channel is raised, and the noise that this adds to the layer's output stays below the rounding
        of the output itself.
    """
    if bias_bits is None:
        return {}
    found = {}
    for op in graph.operations:
        if op.weight is None or op.bias is None or not op.inputs or op.weight not in grids:
            continue
        tap = graph.operations[op.inputs[0]].tap
        grid, source = grids[op.weight], grids.get(tap or "")
        if source is None or source.params.axis is not None or grid.codes is not None or (free and grid.params.axis is None):
            continue
        raised = _raised(graph.biases[op.bias], grid.params, source.params, bias_bits, power_of_two=grid.spec.power_of_two)
        if raised is None or (free and _noise(graph, op, grid.params, raised, seen, tap or "") > _step(grids.get(op.name))):
            continue
        found[op.weight] = grid.at(raised, grid.method)
    return found


def _raised(bias: Tensor, weight: QuantParams, source: QuantParams, bits: int, *, power_of_two: bool) -> QuantParams | None:
    """The weight's parameters with every scale that its bias needs; None where all biases fit."""
    # the greatest magnitude that both ends hold, less what float32 scales are off
    most = (2.0 ** (bits - 1) - 1.0) * (1.0 - 2.0**-20)
    needed = bias.detach().cpu().double().abs() / (most * source.scale.double())
    if weight.axis is None:
        needed = needed.max()
    elif needed.shape != weight.scale.shape:
        return None
    if power_of_two:
        needed = torch.where(needed > 0.0, needed.clamp_min(2.0**-126).log2().ceil().exp2(), needed)
    if not bool((needed > weight.scale.double()).any()):
        return None
    scale = torch.maximum(needed, weight.scale.double()).float()
    return QuantParams(scale, weight.zero_point, weight.qmin, weight.qmax, weight.axis)


def _noise(
    graph: Graph, op: Operation, before: QuantParams, raised: QuantParams, seen: Mapping[str, Observation], tap: str
) -> float:
    """Deviation of an output by rounding weights to the scales that are raised, times the root of 12: of the worst channel."""
    assert op.weight is not None
    weight = graph.weights[op.weight]
    energy = seen[tap].histogram.mean_square if tap in seen else float("inf")
    fan_in = weight.numel() / max(weight.shape[op.weight_axis or 0], 1)
    coarser = raised.scale[raised.scale > before.scale]
    return float(coarser.double().max()) * math.sqrt(fan_in * energy)


def _step(output: Grid | None) -> float:
    return 0.0 if output is None else float(output.params.scale.double().min())
