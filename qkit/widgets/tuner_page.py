"""What the tuner's page shows, as traits; `tuner.js` draws them and sends back what is done with the mouse and the keyboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from qkit.execution.tensors import tensor_classes
from qkit.quant.estimators import METHODS, Method
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.histogram import Histogram
from qkit.quant.plan import Grid
from qkit.widgets.canvas import Canvas, es_module

if TYPE_CHECKING:
    from qkit.study import Study

#: Bars of the histogram as it is drawn.
BARS = 400


class TunerPage(Canvas):
    """The page's side: a histogram with handles, a strip of channels, the score, figures, controls, errors.

    The page sets none of the traits: it sends what is done as messages (`types.d.ts`), and Python answers by the traits.
    """

    _esm = es_module("tuner")
    tensor = traitlets.Unicode("").tag(sync=True)
    # the plot
    counts = traitlets.Bytes(b"").tag(sync=True)
    view: Any = traitlets.List([0.0, 1.0]).tag(sync=True)
    logarithmic = traitlets.Bool(True).tag(sync=True)
    zoomed = traitlets.Bool(False).tag(sync=True)
    grid_drawn: Any = traitlets.Dict({"lo": 0.0, "hi": 1.0, "scale": 1.0, "codes": 2}).tag(sync=True)
    ghost: Any = traitlets.Dict({}).tag(sync=True)
    marks: Any = traitlets.List([]).tag(sync=True)
    mark_rows = traitlets.Int(1).tag(sync=True)
    extremes: Any = traitlets.List([0.0, 1.0]).tag(sync=True)
    stride = traitlets.Float(1.0).tag(sync=True)
    axis = traitlets.Unicode("value").tag(sync=True)
    # the strip: float32 (5, C), as `ChannelStrip.ranges`, and every output channel's SQNR, float32 (C,) or nothing
    ranges = traitlets.Bytes(b"").tag(sync=True)
    ratios = traitlets.Bytes(b"").tag(sync=True)
    selected = traitlets.Int(0).tag(sync=True)
    strip_title = traitlets.Unicode("").tag(sync=True)
    # words
    figure_rows: Any = traitlets.List([]).tag(sync=True)
    measured_rows: Any = traitlets.List([]).tag(sync=True)
    score: Any = traitlets.Dict({"metric": "", "now": "", "interval": "", "unit": "", "lines": [], "note": ""}).tag(sync=True)
    measuring = traitlets.Bool(False).tag(sync=True)
    code = traitlets.Unicode("").tag(sync=True)
    error_words = traitlets.Unicode("").tag(sync=True)
    notice_words = traitlets.Unicode("").tag(sync=True)
    doing = traitlets.Unicode("").tag(sync=True)
    share_done = traitlets.Float(0.0).tag(sync=True)
    # controls
    names: Any = traitlets.List([]).tag(sync=True)
    kinds: Any = traitlets.List([]).tag(sync=True)
    group: Any = traitlets.List([]).tag(sync=True)
    group_name = traitlets.Unicode("").tag(sync=True)
    rule: Any = traitlets.Dict(
        {"bits": 8, "symmetric": True, "power_of_two": False, "per_channel": False, "lo": "", "hi": "", "method": ""}
    ).tag(sync=True)
    methods: Any = traitlets.List([]).tag(sync=True)
    percentile = traitlets.Float(99.99).tag(sync=True)
    can: Any = traitlets.Dict({"undo": False, "redo": False, "reset": False}).tag(sync=True)


def grid_drawn(params: QuantParams) -> dict[str, Any]:
    """A per-tensor grid as the page needs it; the zero point shifts codes, not positions."""
    ends = {"lo": float(params.lo), "hi": float(params.hi)}
    return {**ends, "scale": float(params.scale), "codes": params.qmax - params.qmin + 1}


def channel_of(params: QuantParams, channel: int) -> QuantParams:
    """The grid of the tensor, or with a scale per channel of that one."""
    if params.axis is None:
        return params
    return QuantParams(params.scale[channel].clone(), params.zero_point[channel].clone(), params.qmin, params.qmax)


def bars(histogram: Histogram, params: QuantParams, *, zoomed: bool) -> dict[str, Any]:
    """Counts of the drawn histogram, and the ends of the axis: everything observed, or the range and a tenth around."""
    lo, hi = float(params.lo), float(params.hi)
    if zoomed:
        around = 0.1 * (hi - lo) or 1.0
    else:
        lo, hi = min(lo, histogram.min), max(hi, histogram.max)
        around = 0.03 * (hi - lo) or 1.0
    left, right = lo - around, hi + around
    counts, _ = histogram.linear(BARS, left, right)
    extremes = [min(histogram.min, 0.0), max(histogram.max, 0.0)]
    return {"counts": counts.astype(np.float32).tobytes(), "view": [left, right], "extremes": extremes}


def marks(found: Mapping[Method, Grid], channel: int) -> list[dict[str, Any]]:
    """The ranges of the methods on the axis; those with the same ends share a row."""
    rows: list[dict[str, Any]] = []
    for method, grid in found.items():
        params = channel_of(grid.params, channel)
        ends = {"lo": float(params.lo), "hi": float(params.hi)}
        same = next((mark for mark in rows if (mark["lo"], mark["hi"]) == (ends["lo"], ends["hi"])), None)
        if same is not None:
            same["label"] += f", {method}"
        else:
            rows.append({"label": method, "row": len(rows), **ends})
    return rows


def method_choices(found: Mapping[Method, Grid]) -> list[dict[str, Any]]:
    """All methods, and whether each is defined for this grid."""
    return [{"name": method, "defined": method in found} for method in METHODS]


def rule_shown(spec: QuantSpec, params: QuantParams, *, per_channel: bool, method: str) -> dict[str, Any]:
    """The rule and the ends of a grid, as the controls show them."""
    lo, hi = (f"{float(end):.6g}" for end in (params.lo, params.hi))
    rule = {"bits": spec.bits, "symmetric": spec.symmetric, "power_of_two": spec.power_of_two, "per_channel": per_channel}
    return {**rule, "lo": lo, "hi": hi, "method": method}


def strip_ranges(low: np.ndarray, high: np.ndarray, params: QuantParams) -> bytes:
    """Every channel's least and greatest value, and its grid's ends and step."""
    parts = [part.double().numpy() for part in (params.lo, params.hi, params.scale)]
    grid = [np.broadcast_to(part, len(low)) for part in parts]
    return np.stack([low, high, *grid]).astype(np.float32).tobytes()


def kinds_of(study: Study) -> list[list[Any]]:
    """Kinds that several of the plan's tensors are of, each with their number."""
    found: Mapping[str, Sequence[str]] = tensor_classes(study.graph, study.plan)
    return [[name, len(tensors)] for name, tensors in found.items() if len(tensors) > 1]
