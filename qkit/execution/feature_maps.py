"""Feature maps of one captured image in every lane, the channels with the lowest signal to noise ratio first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from qkit.errors import QkitError
from qkit.quant.sqnr import sqnr

if TYPE_CHECKING:
    from qkit.execution.capture import TapCapture


@dataclass(frozen=True, eq=False)
class ImageMaps:
    """One image at one tap.

    Attributes
    ----------
    lanes
        float32 (C, H, W) by lane name, float first. A tensor with fewer dimensions has H = 1; one without positions is one
        channel that holds all.
    ranking
        Channels, the least signal to quantization noise ratio first, by the last lane's.
    sqnr
        That ratio in dB by lane but float, float64 (C,).
    """

    lanes: dict[str, np.ndarray]
    ranking: np.ndarray
    sqnr: dict[str, np.ndarray]


def image_maps(tap: TapCapture, image: int, axis: int) -> ImageMaps:
    """The maps of one of the captured images.

    Raises
    ------
    QkitError
        If there is no such image.
    """
    samples = len(next(iter(tap.lanes.values())).values)
    if not 0 <= image < samples:
        raise QkitError(f"image {image} was not captured: there are 0 to {samples - 1}.")
    lanes = {name: _planes(lane.values[image], axis - 1) for name, lane in tap.lanes.items()}
    exact = lanes["float"].astype(np.float64)
    signal = (exact**2).sum((1, 2))
    noise = {name: ((planes - exact) ** 2).sum((1, 2)) for name, planes in lanes.items() if name != "float"}
    figures = {name: sqnr(signal, power) for name, power in noise.items()}
    order = np.arange(len(exact))
    if figures:
        last = list(figures)[-1]
        # among channels without signal those with more noise come first
        order = np.lexsort((-noise[last], figures[last]))
    return ImageMaps(lanes, order, figures)


def _planes(value: Tensor, axis: int) -> np.ndarray:
    if value.ndim <= 1:
        return value.reshape(1, 1, -1).float().numpy()
    planes = value.movedim(axis, 0).float()
    planes = planes[:, None] if planes.ndim == 2 else planes.flatten(1, -2) if planes.ndim > 3 else planes
    return np.ascontiguousarray(planes.contiguous().numpy())
