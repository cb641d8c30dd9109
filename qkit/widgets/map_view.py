"""Feature maps of one image in every lane, with their differences from float, the worst channels first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
import matplotlib
import numpy as np
import traitlets

from qkit.execution.capture import TapCapture
from qkit.execution.feature_maps import ImageMaps, image_maps
from qkit.style import decibels
from qkit.widgets.canvas import Canvas, es_module
from qkit.widgets.composite import Composite
from qkit.widgets.panel import button, row
from qkit.widgets.work import STATE

#: Channels that the list offers; the others are reached by none of them being worse.
MOST_CHANNELS = 512


class MapPlot(Canvas):
    """Maps on shared colour scales."""

    _esm = es_module("maps")
    #: float32 (M, H, W)
    maps = traitlets.Bytes(b"").tag(sync=True)
    shape: Any = traitlets.List([0, 0]).tag(sync=True)
    titles: Any = traitlets.List([]).tag(sync=True)
    #: for each map its ends, and whether it is a difference
    scales: Any = traitlets.List([]).tag(sync=True)
    #: two tables of 256 colours, safe for the colour-blind: values, differences
    colours = traitlets.Bytes(b"").tag(sync=True)


def _colours() -> bytes:
    tables = [matplotlib.colormaps[name](np.arange(256))[:, :3] for name in ("cividis", "PuOr_r")]
    return np.round(255 * np.concatenate(tables)).astype(np.uint8).tobytes()


class FeatureMaps(Composite):
    """The maps with what chooses image and channel; `fail` gets what goes wrong on a choice."""

    def __init__(self, fail: Callable[[Exception], None] | None = None) -> None:
        self._fail = fail
        self.plot = MapPlot(colours=_colours())
        self.image = ipywidgets.BoundedIntText(0, min=0, max=0, description="image", layout=ipywidgets.Layout(width="150px"))
        self.channel = ipywidgets.Dropdown(description="channel", layout=ipywidgets.Layout(width="min(330px, 100%)"))
        self._back = button("", "the channel before in this list", icon="arrow-left")
        self._forth = button("", "the next channel in this list", icon="arrow-right")
        self._back.on_click(lambda _: self._try(lambda: self._step(-1)))
        self._forth.on_click(lambda _: self._try(lambda: self._step(1)))
        self._tap: TapCapture | None = None
        self._axis = 1
        self._found: ImageMaps | None = None
        self.image.observe(lambda _: self._try(self._ranked), "value")
        self.channel.observe(lambda _: self._try(self._drawn), "value")
        super().__init__([row(self.image, self.channel, self._back, self._forth), self.plot])
        self.add_class("qkit-parts")

    def show(self, tap: TapCapture, axis: int) -> None:
        """The captured tensors of a tap, whose channels run along `axis`; the worst channel is chosen."""
        self._check_open()
        self._tap, self._axis = tap, axis
        self.image.max = len(next(iter(tap.lanes.values())).values) - 1
        self._ranked()

    def _release(self) -> None:
        super()._release()
        self._tap = self._found = self._fail = None

    def _try(self, action: Callable[[], None]) -> None:
        try:
            with STATE:
                action()
        except Exception as error:
            if self._fail is None:
                raise
            self._fail(error)

    @property
    def maps(self) -> ImageMaps | None:
        """What is shown."""
        return self._found

    def _ranked(self) -> None:
        if self._tap is None:
            return
        self._found = found = image_maps(self._tap, self.image.value, self._axis)
        listed = found.ranking[:MOST_CHANNELS]
        whole = len(found.ranking) == 1
        ratios = dict(list(found.sqnr.items())[-1:])
        self.channel.options = [
            (": ".join([str("all" if whole else c), *(f"{decibels(f[c])} dB in {lane}" for lane, f in ratios.items())]), int(c))
            for c in listed
        ]
        self.channel.value = int(listed[0])
        self._drawn()

    def _step(self, by: int) -> None:
        at = self.channel.index
        if at is not None:
            self.channel.index = min(max(at + by, 0), len(self.channel.options) - 1)

    def _drawn(self) -> None:
        found = self._found
        if found is None or self.channel.value is None:
            return
        exact = found.lanes["float"][self.channel.value]
        planes = [lane[self.channel.value] for lane in found.lanes.values()]
        others = [name for name in found.lanes if name != "float"]
        apart = [found.lanes[name][self.channel.value] - exact for name in others]
        low, high = (float(bound) for bound in (np.min(planes), np.max(planes)))
        reach = max((float(np.abs(d).max()) for d in apart), default=0.0)
        with self.plot.hold_sync():
            self.plot.maps = np.stack([*planes, *apart]).astype(np.float32).tobytes()
            self.plot.shape = list(exact.shape)
            self.plot.titles = [*found.lanes, *(f"{name} − float" for name in others)]
            self.plot.scales = [[low, high, False]] * len(planes) + [[-reach, reach, True]] * len(apart)
