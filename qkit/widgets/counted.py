"""Histograms of tensors and of their channels, as the tuner looks at them; counted once each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qkit.quant.estimators import Observation
from qkit.quant.grids import QuantParams
from qkit.quant.histogram import Histogram
from qkit.quant.memory import by_channel

if TYPE_CHECKING:
    from qkit.study import Study


class Counted:
    """What was counted of a study's tensors. An activation's channels take a pass over the data: they are put in by `keep`."""

    def __init__(self) -> None:
        self._channels: dict[str, list[Histogram]] = {}

    def clear(self) -> None:
        """Forget all."""
        self._channels.clear()

    def keep(self, tensor: str, channels: list[Histogram]) -> None:
        """A tap's channels, counted by a pass."""
        self._channels[tensor] = channels

    def has(self, study: Study, tensor: str) -> bool:
        """Whether a tensor's channels are known; a weight's always are."""
        return tensor in self._channels or tensor in study.graph.weights

    def channels(self, study: Study, tensor: str) -> list[Histogram]:
        """One for each channel; of a tap after `keep`."""
        if tensor not in self._channels:
            self._channels[tensor] = Histogram.of_channels(study.graph.weights[tensor], axis_of(study, tensor))
        return self._channels[tensor]

    def of(self, study: Study, tensor: str, params: QuantParams) -> list[Histogram]:
        """As many as the grid has scales."""
        if params.axis is not None:
            return self.channels(study, tensor)
        if tensor in study.graph.weights:
            return [Histogram.merge(self.channels(study, tensor))]
        return [seen(study, tensor).histogram]


def axis_of(study: Study, tensor: str) -> int | None:
    """The axis of a tensor's channels, None where it has none."""
    op = study.graph.operation(tensor)
    return op.weight_axis if tensor == op.weight else op.channel_axis


def seen(study: Study, tap: str) -> Observation:
    """What calibration saw of a tap."""
    return study.observe(progress=False)[tap]


def channel_extremes(study: Study, tensor: str) -> tuple[np.ndarray, np.ndarray]:
    """Every channel's least and greatest value, float64 (C,)."""
    if tensor not in study.graph.weights:
        found = seen(study, tensor)
        return np.asarray(found.channel_min, float), np.asarray(found.channel_max, float)
    weight, axis = study.graph.weights[tensor], axis_of(study, tensor)
    if axis is None:
        return np.array([float(weight.min())]), np.array([float(weight.max())])
    low, high = by_channel(weight, axis).aminmax(dim=1)
    return low.double().cpu().numpy(), high.double().cpu().numpy()
