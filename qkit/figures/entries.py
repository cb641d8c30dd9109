"""What a picture of a tensor shows, as plain numbers that a report can keep: its grid, histogram and channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from qkit.graph import Graph
    from qkit.graph.operation import Operation
    from qkit.quant.estimators import Observation
    from qkit.quant.grids import QuantParams
    from qkit.quant.histogram import Histogram
    from qkit.quant.plan import Grid, Plan

#: Bars of a histogram.
BINS = 160


def describe(graph: Graph, plan: Plan, name: str, seen: Mapping[str, Observation], rules: list[str]) -> dict[str, Any]:
    """Grid, histogram and weight of one tap, as plain numbers and lists."""
    op = graph.operation(name)
    grid = plan.grids.get(name)
    entry: dict[str, Any] = {
        "tap": name,
        "rules": rules,
        "kind": op.kind,
        "layer": op.layer,
        "note": op.note,
        "grid": None if grid is None else describe_grid(grid),
        "histogram": None,
        "grid_error": None,
        "weight": _weight(graph, plan, op),
    }
    if name in seen:
        histogram = seen[name].histogram
        entry["histogram"] = describe_histogram(histogram, None if grid is None else grid.params)
        if grid is not None and grid.params.axis is None:
            error = histogram.error(grid.params)
            parts = ("rounding", "clipping", "clipped", "sqnr")
            entry["grid_error"] = {part: float(getattr(error, part)) for part in parts}
    return entry


def describe_histogram(histogram: Histogram, params: QuantParams | None) -> dict[str, Any]:
    """Counts in equal bins over all values and the whole grid."""
    lo, hi = histogram.min, histogram.max
    if params is not None:
        lo, hi = min(lo, float(params.lo.min())), max(hi, float(params.hi.max()))
    counts, edges = histogram.linear(BINS, lo, hi)
    return {
        "elements": histogram.total,
        "zeros": histogram.zeros,
        "min": histogram.min,
        "max": histogram.max,
        "counts": np.round(counts, 3).tolist(),
        "edges": edges.tolist(),
    }


def describe_grid(grid: Grid) -> dict[str, Any]:
    """The grid's numbers; with a scale per channel the widest and the least."""
    params = grid.params
    return {
        "method": grid.method,
        "bits": params.bits,
        "per_channel": params.per_channel,
        "scale": float(params.scale.max()),
        "least_scale": float(params.scale.min()),
        "zero_point": None if params.per_channel else int(params.zero_point),
        "qmin": params.qmin,
        "qmax": params.qmax,
        "lo": float(params.lo.min()),
        "hi": float(params.hi.max()),
    }


def _weight(graph: Graph, plan: Plan, op: Operation) -> dict[str, Any] | None:
    if op.weight is None:
        return None
    weight = graph.weights[op.weight]
    grid = plan.grids.get(op.weight)
    axis = op.weight_axis or 0
    rows = weight.movedim(axis, 0).flatten(1) if weight.ndim > 1 else weight[:, None]
    peaks = rows.abs().amax(1).double().cpu()
    order = torch.argsort(peaks, descending=True, stable=True)
    entry: dict[str, Any] = {
        "name": op.weight,
        "shape": "x".join(map(str, weight.shape)),
        "elements": weight.numel(),
        "channels": order.tolist(),
        "peaks": peaks[order].tolist(),
        "grid": None,
        "vanished": None,
    }
    if grid is not None:
        scale = grid.params.scale.double()
        steps = scale if scale.ndim == 0 else scale[order]
        entry["grid"] = describe_grid(grid) | {"scales": None if scale.ndim == 0 else steps.tolist()}
        entry["vanished"] = int(((peaks[order] <= steps / 2) & (peaks[order] > 0)).sum())
    return entry
