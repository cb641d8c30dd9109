"""A strip of all channels' ranges with their grids, to pick one from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import traitlets

from qkit.quant.grids import QuantParams
from qkit.quant.histogram import Histogram
from qkit.widgets.canvas import Canvas, es_module


class ChannelStrip(Canvas):
    """Every channel's least and greatest value, and the ends and step of its grid."""

    _esm = es_module("strip")
    #: float32 (5, C): least value, greatest value, grid's ends, step
    ranges = traitlets.Bytes(b"").tag(sync=True)
    selected = traitlets.Int(0).tag(sync=True)
    log = traitlets.Bool(True).tag(sync=True)
    title = traitlets.Unicode("output channels").tag(sync=True)

    def show(self, lows: np.ndarray, highs: np.ndarray, params: QuantParams | None) -> None:
        """Ranges by channel, float (C,), against a grid of the tensor or of each channel."""
        count = len(lows)
        grid = [np.zeros(count)] * 3
        if params is not None:
            grid = [np.broadcast_to(part.double().numpy(), count) for part in (params.lo, params.hi, params.scale)]
        self.ranges = np.stack([lows, highs, *grid]).astype(np.float32).tobytes()

    def show_grids(self, histograms: Sequence[Histogram], params: QuantParams | None) -> None:
        """The same from every channel's histogram."""
        self.show(np.array([h.min for h in histograms]), np.array([h.max for h in histograms]), params)
