"""The range tuner's plot."""

from __future__ import annotations

from typing import Any

import traitlets

from qkit.widgets.canvas import Canvas, es_module


class RangePlot(Canvas):
    """Histogram, grid, marks and handles; reports ``drag`` and ``release`` of an end."""

    _esm = es_module("range")
    counts = traitlets.Bytes(b"").tag(sync=True)
    view: Any = traitlets.List([0.0, 1.0]).tag(sync=True)
    log = traitlets.Bool(True).tag(sync=True)
    grid: Any = traitlets.Dict({"lo": 0.0, "hi": 1.0, "scale": 1.0, "codes": 2}).tag(sync=True)
    marks: Any = traitlets.List([]).tag(sync=True)
    mark_rows = traitlets.Int(1).tag(sync=True)
    ghost: Any = traitlets.Dict({}).tag(sync=True)
    figures: Any = traitlets.List([]).tag(sync=True)
    extremes: Any = traitlets.List([0.0, 1.0]).tag(sync=True)
    stride = traitlets.Float(1.0).tag(sync=True)
    axis = traitlets.Unicode("value").tag(sync=True)
    locked = traitlets.Bool(False).tag(sync=True)
