"""A tensor's float values beside those of a lane: where they part, and in which channels.

What is drawn are counts and quantiles, so that a tensor of millions of elements is as small a picture as any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

from qkit.errors import QkitError
from qkit.figures.drawing import Picture, picture
from qkit.style import INK, MUTED, NARROW_COLOUR, WIDE_COLOUR, decibels, number

if TYPE_CHECKING:
    from qkit.execution.capture import TapCapture

#: Cells of the density along each side.
CELLS = 64
#: Most channels that are drawn.
MOST_CHANNELS = 24
#: Quantiles of a box: whiskers, box, middle.
_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


def last_lane(tap: TapCapture) -> str:
    """The narrowest lane that was captured: the last that is not float.

    Raises
    ------
    QkitError
        If there is none beside float.
    """
    lanes = [lane for lane in tap.lanes if lane != "float"]
    if not lanes:
        raise QkitError(f"{tap.name} was captured in float only: capture a lane to compare with it.")
    return lanes[-1]


def density(tap: TapCapture, lane: str | None = None, *, ax: Axes) -> Axes:
    """A lane's values over float's: how many elements are where; on the dashed line both are equal.

    Parameters
    ----------
    lane
        The last one captured, where none is named.
    """
    lane = lane or last_lane(tap)
    exact, rounded = _values(tap, "float"), _values(tap, lane)
    low, high = min(float(exact.min()), float(rounded.min())), max(float(exact.max()), float(rounded.max()))
    high = high if high > low else low + 1.0
    counts, _, _ = np.histogram2d(rounded, exact, bins=CELLS, range=((low, high), (low, high)))
    strength = np.log1p(counts) / max(float(np.log1p(counts.max())), 1e-12)
    image = np.empty((CELLS, CELLS, 4))
    image[..., :3] = to_rgb(NARROW_COLOUR)
    # a single element is seen as well
    image[..., 3] = np.where(counts > 0, 0.18 + 0.82 * strength, 0.0)
    ax.axline((low, low), (high, high), color=MUTED, lw=0.8, ls="--")
    ax.imshow(image, origin="lower", extent=(low, high, low, high), aspect="auto", interpolation="nearest", zorder=2)
    params = tap[lane].params
    if params is not None and not params.per_channel:
        for end in (float(params.lo), float(params.hi)):
            if low < end < high:
                ax.axvline(end, color=WIDE_COLOUR, lw=0.9, ls=":")
    ax.set_xlabel("float value")
    ax.set_ylabel(f"value in {lane}")
    error = float(np.square(rounded - exact).sum())
    ratio = decibels(np.inf if error == 0 else 10 * np.log10(float(np.square(exact).sum()) / error)) if exact.any() else "–"
    ax.set_title(f"{number(len(exact))} elements, SQNR {ratio} dB", fontsize=9, loc="left")
    return ax


def channel_boxes(tap: TapCapture, lane: str | None = None, *, axis: int = 1, most: int = MOST_CHANNELS, ax: Axes) -> Axes:
    """Boxes of the error by channel, those with the largest errors first: 1 to 99 % of the elements, 25 to 75 %, the middle.

    Parameters
    ----------
    lane
        The last one captured, where none is named.
    axis
        Of the channels.
    most
        Channels to draw.
    """
    lane = lane or last_lane(tap)
    exact, rounded = tap["float"].values, tap[lane].values
    apart = (rounded.double() - exact.double()).cpu()
    by_channel = apart.movedim(axis, 0) if apart.ndim > axis else apart[None]
    flat = by_channel.reshape(len(by_channel), -1).numpy()
    power = np.square(flat).mean(1)
    order = np.argsort(-power, kind="stable")[:most]
    boxes = []
    for channel in order:
        low, first, middle, third, high = (float(q) for q in np.quantile(flat[channel], _QUANTILES))
        boxes.append({"label": str(channel), "whislo": low, "q1": first, "med": middle, "q3": third, "whishi": high})
    ax.bxp(
        boxes, showfliers=False, widths=0.6, patch_artist=True,
        boxprops={"facecolor": WIDE_COLOUR, "alpha": 0.55, "edgecolor": WIDE_COLOUR}, medianprops={"color": INK},
        whiskerprops={"color": MUTED}, capprops={"color": MUTED},
    )  # fmt: skip
    ax.axhline(0.0, color=MUTED, lw=0.8, ls="--")
    ax.tick_params(axis="x", labelsize=7, rotation=90 if len(order) > 12 else 0)
    ax.set_xlabel("channel, the largest error first")
    ax.set_ylabel(f"{lane} − float")
    left = len(flat) - len(order)
    ax.set_title(f"error by channel{f', {left} more not shown' if left else ''}", fontsize=9, loc="left")
    return ax


def density_picture(tap: TapCapture, lane: str | None) -> Picture:
    """`density` on a figure of its own."""
    lane = lane or last_lane(tap)
    return picture(density, tap, lane, words=f"values of {tap.name} in {lane} over float's", width=4.6, height=4.0)


def channel_picture(tap: TapCapture, lane: str | None, axis: int) -> Picture:
    """`channel_boxes` on a figure of its own."""
    lane = lane or last_lane(tap)
    return picture(channel_boxes, tap, lane, axis=axis, words=f"errors of {tap.name} in {lane} by channel")


def _values(tap: TapCapture, lane: str) -> np.ndarray:
    return tap[lane].values.double().cpu().numpy().ravel()
