"""A tensor's pictures: its histogram on its grid, its channels against their steps, its feature maps in two lanes."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from qkit.style import BAD, MUTED, NARROW_COLOUR, OTHER, WIDE_COLOUR, decibels, number


def _finite(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=float)


def _power(value: float, _: int) -> str:
    exponent = round(math.log10(value))
    if -3 <= exponent <= 3:
        return f"{10.0**exponent:g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _powers(ax: Axes) -> None:
    """Powers of ten as plain text on a logarithmic axis, and no labels between them."""
    ax.yaxis.set_major_formatter(FuncFormatter(_power))
    ax.yaxis.set_minor_formatter(NullFormatter())


def _tick_every(width: float, scale: float, *, most: int = 130) -> int:
    """The power of two of grid steps between two ticks, so that at most `most` of them fit."""
    steps = max(width / scale, 1.0)
    return int(2 ** max(0, math.ceil(math.log2(steps / most))))


def histogram_caption(entry: dict[str, Any]) -> str:
    """What the histogram shows."""
    grid = entry["grid"]
    if grid is None:
        return "Float values on the calibration data; there is no grid here: the tensor stays float."
    if grid["per_channel"]:
        return "Float values on the calibration data; every channel has a grid of its own, which is not drawn."
    width = entry["histogram"]["edges"][-1] - entry["histogram"]["edges"][0]
    every = _tick_every(width, grid["scale"])
    step = "each step" if every == 1 else f"every {every} steps"
    beyond = " Red lies beyond the ends and is clipped." if any(_beyond(entry["histogram"], grid)) else ""
    return (
        f"Float values on the calibration data (counts on a logarithmic axis). Lines: the ends of the grid; ticks at the bottom: "
        f"{step} of {number(grid['scale'], 3)}.{beyond}"
    )


def _beyond(seen: dict[str, Any], grid: dict[str, Any]) -> tuple[bool, bool]:
    """Whether values lie below and above the grid, by more than half a step."""
    half = grid["scale"] / 2
    return seen["min"] < grid["lo"] - half, seen["max"] > grid["hi"] + half


def channels_caption(entry: dict[str, Any]) -> str:
    """What the channels' picture shows."""
    text = "Greatest |w| of every output channel, sorted (logarithmic axis)."
    grid = entry["weight"]["grid"]
    if grid is None:
        return f"{text} The weight stays float."
    if grid["scales"] is None:
        return f"{text} Line: the step, the same for all; a channel in the shaded part rounds to 0 as a whole."
    return f"{text} Line: each channel's own step; dashed: the step if all shared one."


def histogram(entry: dict[str, Any], *, ax: Axes) -> Axes:
    """Log counts of a tap's float values, with the grid drawn on them: its ends, steps, and what lies beyond."""
    seen, grid = entry["histogram"], entry["grid"]
    edges, counts = _finite(seen["edges"]), _finite(seen["counts"])
    floor = 0.5
    ax.set_yscale("log")
    ax.stairs(np.maximum(counts, floor), edges, baseline=floor, fill=True, color=WIDE_COLOUR, alpha=0.55, lw=0)
    peak = max(float(counts.max()), 1.0)
    ax.set_ylim(floor, peak * 4)
    span = edges[-1] - edges[0]
    ax.set_xlim(edges[0] - 0.02 * span, edges[-1] + 0.02 * span)
    if grid is not None and not grid["per_channel"]:
        half = grid["scale"] / 2
        left, right = ax.get_xlim()
        lo, hi = grid["lo"], grid["hi"]
        for clips, start, stop in zip(_beyond(seen, grid), (left, hi + half), (lo - half, right), strict=True):
            if clips:
                ax.axvspan(start, stop, color=BAD, alpha=0.18, lw=0)
        for end in (lo, hi):
            ax.axvline(end, color=NARROW_COLOUR, lw=1.4)
        every = _tick_every(span, grid["scale"])
        codes = np.arange(grid["qmin"], grid["qmax"] + 1)
        codes = codes[(codes - grid["zero_point"]) % every == 0]
        at = (codes - grid["zero_point"]) * grid["scale"]
        ax.vlines(at, 0, 0.045, transform=ax.get_xaxis_transform(), color=NARROW_COLOUR, lw=0.7)
    ax.xaxis.set_major_locator(MaxNLocator(7))
    ax.set_xlabel("value")
    ax.set_ylabel("elements")
    _powers(ax)
    return ax


def channels(entry: dict[str, Any], *, ax: Axes) -> Axes:
    """Greatest magnitude of every output channel, sorted, against the grid's step."""
    weight = entry["weight"]
    peaks = _finite(weight["peaks"])
    grid = weight["grid"]
    x = np.arange(1, len(peaks) + 1)
    positive = peaks[peaks > 0]
    least = float(positive.min()) if len(positive) else 1.0
    greatest = float(positive.max()) if len(positive) else 1.0
    ax.set_yscale("log")
    ax.plot(x, np.where(peaks > 0, peaks, np.nan), color=OTHER, lw=1.2, marker="o", ms=3 if len(x) < 120 else 1.5)
    if grid is not None:
        scales = _finite(grid["scales"] if grid["scales"] is not None else [grid["scale"]] * len(x))
        tensor = grid["scale"] if grid["scales"] is None else greatest / grid["qmax"]
        least = min(least, float(scales.min()), tensor / 2)
        if grid["scales"] is None:
            ax.axhspan(least / 2, tensor / 2, color=BAD, alpha=0.16, lw=0)
            ax.axhline(tensor, color=NARROW_COLOUR, lw=1.3)
        else:
            ax.step(x, scales, where="mid", color=NARROW_COLOUR, lw=1.2)
            ax.axhline(tensor, color=MUTED, lw=1.0, ls="--")
    ax.set_ylim(least / 2, greatest * 2)
    ax.set_xlim(0.5, len(x) + 0.5 if len(x) > 1 else 1.5)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    ax.set_xlabel("output channels, greatest first")
    ax.set_ylabel("max |w|")
    _powers(ax)
    return ax


def arrays(entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The maps of `describe`, float32 (C, H, W): float, and the lane's."""
    raw = (np.frombuffer(base64.b64decode(entry[name]), "<f4").reshape(entry["shape"]) for name in ("float", "quantized"))
    first, second = raw
    return first, second


def feature_maps(entry: dict[str, Any], *, axes: Any) -> Any:
    """Draw a layer's maps into axes of three columns, a row per channel; the first two of a row share their colours' scale."""
    exact, other = (maps.astype(np.float64) for maps in arrays(entry))
    for row, channel in enumerate(entry["channels"]):
        ends = min(exact[row].min(), other[row].min()), max(exact[row].max(), other[row].max())
        apart = other[row] - exact[row]
        most = float(np.abs(apart).max()) or 1.0
        shown = (
            (exact[row], "cividis", ends, f"channel {channel}, float"),
            (other[row], "cividis", ends, f"{entry['lane']}, {decibels(entry['sqnr'][row])} dB"),
            (apart, "PuOr_r", (-most, most), "difference"),
        )
        for ax, (plane, colours, (low, high), title) in zip(axes[row], shown, strict=True):
            drawn = ax.imshow(plane, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.set_title(title, fontsize=8)
            bar = ax.figure.colorbar(drawn, ax=ax, fraction=0.05, pad=0.03)
            bar.ax.tick_params(labelsize=6.5)
            bar.outline.set_visible(False)
    return axes


def maps_caption(entry: dict[str, Any]) -> str:
    """What the feature maps show."""
    text = f"Feature maps of evaluation image {entry['image']}: the {len(entry['channels'])} channels with the lowest SQNR in it."
    if max(entry["thinned"]) > 1:
        text += f" Every {entry['thinned'][0]}th row and {entry['thinned'][1]}th column is shown."
    return f"{text} Float and {entry['lane']} share their colours in each row; the difference has its own, white is none."
