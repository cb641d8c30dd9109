"""Feature maps of one captured image in every lane, the channels with the lowest signal to noise ratio first."""

from __future__ import annotations

from collections.abc import Sequence
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


def image_maps(tap: TapCapture, image: int, axis: int, lanes: Sequence[str] | None = None) -> ImageMaps:
    """The maps of one of the captured images, in those lanes, "float" among them; in all by default.

    Raises
    ------
    QkitError
        If there is no such image.
    """
    samples = len(next(iter(tap.lanes.values())).values)
    if not 0 <= image < samples:
        raise QkitError(f"image {image} was not captured: there are 0 to {samples - 1}.")
    shown = {name: _planes(tap.lanes[name].values[image], axis - 1) for name in (tap.lanes if lanes is None else lanes)}
    exact = shown["float"].astype(np.float64)
    signal = (exact**2).sum((1, 2))
    noise = {name: ((planes - exact) ** 2).sum((1, 2)) for name, planes in shown.items() if name != "float"}
    figures = {name: sqnr(signal, power) for name, power in noise.items()}
    order = np.arange(len(exact))
    if figures:
        last = list(figures)[-1]
        # among channels without signal those with more noise come first
        order = np.lexsort((-noise[last], figures[last]))
    return ImageMaps(shown, order, figures)


def _planes(value: Tensor, axis: int) -> np.ndarray:
    if value.ndim <= 1:
        return value.reshape(1, 1, -1).float().numpy()
    planes = value.movedim(axis, 0).float()
    planes = planes[:, None] if planes.ndim == 2 else planes.flatten(1, -2) if planes.ndim > 3 else planes
    return np.ascontiguousarray(planes.contiguous().numpy())
