"""Cross-layer equalization, as grids.

Dividing a layer's output channel c by s_c and multiplying the next layer's weights on that channel by s_c changes no float
result as long as what lies between commutes with positive factors (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction"). In fixed point it is the same as leaving the weights alone and letting the *steps* of the
three tensors vary by channel: s_c times as wide for the first weight's output channel and for the tap, 1/s_c for the second
weight's input channel. So it is a change of grids, and the lanes can try it without another network.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.grids import QuantParams
from qkit.quant.memory import by_channel
from qkit.quant.plan import Grid

_WEIGHTED = frozenset({"conv", "linear"})


def next_layer(graph: Graph, op: Operation) -> Operation | None:
    """The one weighted layer that alone reads the step's tap, through operations that keep the grid; None otherwise."""
    if op.kind not in _WEIGHTED or not (op.act[0] in (0.0, -np.inf) and op.act[1] == np.inf):
        return None
    at = op
    while True:
        readers = [s for s in graph.operations if at.index in s.inputs]
        if len(readers) != 1:
            return None
        reader = readers[0]
        if reader.kind in _WEIGHTED:
            return reader if reader.inputs[0] == at.index else None
        if reader.kind != "keep" or reader.shape[1:2] != op.shape[1:2]:
            return None
        at = reader


def equalized(
    graph: Graph, op: Operation, grids: Mapping[str, Grid], channel_min: np.ndarray, channel_max: np.ndarray, by: str
) -> dict[str, Grid]:
    """Grids of the layer's weight, its tap and the next layer's weight after equalization; empty where it does not apply.

    Parameters
    ----------
    grids
        The plan's; all three tensors need one, per tensor.
    channel_min, channel_max
        Extremes of the tap's channels.
    by
        "weights": factors even out the two weights' ranges (Nagel's choice). "activations": those of the tap.
    """
    other = next_layer(graph, op)
    if other is None or op.weight is None or other.weight is None:
        return {}
    names = (op.weight, op.name, other.weight)
    if any(name not in grids or grids[name].params.axis is not None for name in names):
        return {}
    first, second = graph.weights[op.weight].cpu(), graph.weights[other.weight].cpu()
    channels = len(channel_max)
    depthwise = second.ndim > 2 and second.shape[0] == channels and second.shape[1] == 1
    axis = 0 if depthwise else 1
    if op.weight_axis != 0 or first.shape[0] != channels or second.shape[axis] != channels:
        return {}
    ranges = [by_channel(w, a).abs().amax(1).double().numpy() for w, a in ((first, 0), (second, axis))]
    reach = np.maximum(np.abs(channel_min), np.abs(channel_max)).astype(float)
    factor = np.sqrt(ranges[0] / np.maximum(ranges[1], 1e-12)) if by == "weights" else reach
    used = factor > 1e-9 * max(float(factor.max()), 1e-30)
    factor = np.where(used, factor / np.exp(np.log(factor[used]).mean()), 1.0) if used.any() else np.ones(channels)
    return {
        names[0]: _scaled(grids[names[0]], float((ranges[0] / factor).max()), None, factor, 0),
        names[1]: _scaled(grids[names[1]], float((channel_max / factor).max()), float((channel_min / factor).min()), factor, 1),
        names[2]: _scaled(grids[names[2]], float((ranges[1] * factor).max()), None, 1.0 / factor, axis),
    }


def _scaled(grid: Grid, hi: float, lo: float | None, factor: np.ndarray, axis: int) -> Grid:
    """One grid over ``[lo, hi]``, its step multiplied by each channel's factor."""
    lo, hi = (-hi if lo is None else min(lo, 0.0)), max(hi, 0.0)
    one = grid.spec.params(lo, hi)
    scale = (one.scale.double() * torch.from_numpy(factor)).clamp(min=2.0**-126).float()
    zero = one.zero_point.expand(len(factor)).clone()
    return grid.at(QuantParams(scale, zero, one.qmin, one.qmax, axis), "equalized")
