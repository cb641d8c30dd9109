"""The report's pictures: matplotlib figures written as SVG that follows the reader's light or dark colours.

No pyplot: figures are made directly, so neither a backend nor a global style is touched. Every function that draws takes an
``ax`` and returns it, so the same pictures can be put into figures of one's own.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from qkit.report.data import WIDE, Report
from qkit.report.formats import Units, decibels, number
from qkit.report.maps import arrays
from qkit.report.words import MOST_BARS

#: Colours by role: in light and in dark surroundings. All light ones differ, since they are found again in the SVG.
COLOURS = {
    "ink": ("#24292f", "#e6e8eb"),
    "muted": ("#6b7280", "#9aa3af"),
    "lines": ("#d5d9df", "#3b4149"),
    "page": ("#fefefe", "#1b1e22"),
    "wide": ("#0f73b3", "#5cb3ea"),
    "narrow": ("#cc5f00", "#ff9d4d"),
    "other": ("#7a4fb0", "#b79af0"),
    "bad": ("#b3261e", "#ff7b72"),
    "good": ("#1c7a55", "#56c596"),
}
INK, MUTED, LINES, PAGE, WIDE_COLOUR, NARROW_COLOUR, OTHER, BAD, GOOD = (light for light, _ in COLOURS.values())

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qkit",
    "font.size": 9.0,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": LINES,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    # names of layers and classes are text, whatever signs they hold
    "text.parse_math": False,
}
_LONGEST_NAME = 34


def picture(draw: Callable[..., Axes], *args: Any, width: float, height: float) -> str:
    """A figure of so many inches with one picture in it, as SVG in a data URI that follows the reader's preference."""
    return _as_address(lambda figure: draw(*args, ax=figure.add_subplot()), width=width, height=height)


def _as_address(draw: Callable[[Figure], Any], *, width: float, height: float) -> str:
    light = ";".join(f"--qkit-{name}:{colours[0]}" for name, colours in COLOURS.items())
    dark = ";".join(f"--qkit-{name}:{colours[1]}" for name, colours in COLOURS.items())
    rules = f"svg{{{light}}}@media screen and (prefers-color-scheme:dark){{svg{{{dark}}}}}"
    text = _svg(draw, width=width, height=height).replace("<defs>", f"<defs><style>{rules}</style>", 1)
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def svg(draw: Callable[..., Axes], *args: Any, width: float, height: float) -> str:
    """The same as SVG to be put into a page that sets the colours: variables ``--qkit-`` and a name of `COLOURS`."""
    return _svg(lambda figure: draw(*args, ax=figure.add_subplot()), width=width, height=height)


def _svg(draw: Callable[[Figure], Any], *, width: float, height: float) -> str:
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), facecolor="none", layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _themed(buffer.getvalue())


def _themed(text: str) -> str:
    """Colours as variables, fonts of the reader's system."""
    # two digits place a point well enough; words between the tags stay as they are
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text[text.index("<svg") :])
    for name, (colour, _) in COLOURS.items():
        text = text.replace(colour, f"var(--qkit-{name})")
    return re.sub(r"(font:[^;\"]*?px )[^;\"]*", r"\1system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif", text)


def short(name: str, most: int = _LONGEST_NAME) -> str:
    """A name cut in its middle where it is too long for an axis."""
    name = " ".join(name.split()) or "(unnamed)"
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


def _colour(report: Report, lane: str) -> str:
    return {WIDE: WIDE_COLOUR, report.narrow: NARROW_COLOUR}.get(lane, OTHER)


def losses(report: Report, *, ax: Axes) -> Axes:
    """Every lane's loss with its interval, against the band that counts as close."""
    units = Units(percent=report.metric["percent"])
    tolerance = units.factor * report.metric["tolerance"]
    ax.axvspan(-tolerance, tolerance, color=GOOD, alpha=0.16, lw=0)
    ax.axvline(0, color=MUTED, lw=0.8)
    for i, lane in enumerate(report.lanes):
        value, low, high = (units.factor * float(report.scores[c][lane]) for c in ("loss", "loss low", "loss high"))
        ends = [value - low, high - value]
        bounded = [end if math.isfinite(end) else 0.0 for end in ends]
        ax.errorbar(value, i, xerr=np.array([bounded]).T, fmt="o", ms=6, capsize=4, lw=1.6, color=_colour(report, lane))
        text = units.loss(value / units.factor) + (" (interval unbounded)" if bounded != ends else "")
        ax.annotate(text, (value, i), (0, 8), textcoords="offset points", ha="center")
    ax.set_yticks(range(len(report.lanes)), [short(lane, 24) for lane in report.lanes])
    ax.set_ylim(len(report.lanes) - 0.5, -0.7)
    ax.margins(x=0.12)
    unit = f" in {units.points}" if units.points else ""
    ax.set_xlabel(f"loss against float{unit}; shaded: within the tolerance")
    ax.grid(axis="x")
    return ax


def _finite(values: Any) -> np.ndarray:
    return np.asarray(values, dtype=float)


def sensitivity(report: Report, *, ax: Axes) -> Axes:
    """Loss of each layer quantized alone with its interval, the greatest first."""
    assert report.sensitivity is not None
    units = Units(percent=report.metric["percent"])
    top = report.sensitivity.head(MOST_BARS)
    y = np.arange(len(top))
    value, low, high = (units.factor * _finite(top[c]) for c in ("loss", "loss low", "loss high"))
    ends = np.stack([np.where(np.isfinite(low), value - low, 0.0), np.where(np.isfinite(high), high - value, 0.0)])
    tolerance = units.factor * report.metric["tolerance"]
    ax.axvspan(-tolerance, tolerance, color=GOOD, alpha=0.16, lw=0)
    sure = low > 0
    ax.barh(y, value, height=0.62, color=np.where(sure, NARROW_COLOUR, MUTED).tolist(), alpha=0.75, lw=0)
    ax.errorbar(value, y, xerr=ends, fmt="none", ecolor=INK, elinewidth=1.0, capsize=2.5)
    ax.axvline(0, color=MUTED, lw=0.8)
    ax.set_yticks(y, [short(str(name)) for name in top.index], fontsize=8)
    ax.set_ylim(len(top) - 0.4, -0.6)
    unit = f" in {units.points}" if units.points else ""
    ax.set_xlabel(f"loss with this layer alone in {report.narrow}{unit}; shaded: within the tolerance")
    ax.grid(axis="x")
    return ax


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


def map_pictures(entry: dict[str, Any]) -> str:
    """Feature maps of one layer: a row per channel; float, the lane, and their difference, as SVG in a data URI."""
    count, high, wide = entry["shape"]
    cell = min(1.9, 1.9 * wide / high)
    return _as_address(
        lambda figure: feature_maps(entry, axes=figure.subplots(count, 3, squeeze=False)),
        width=3 * (cell + 0.75),
        height=count * (cell * high / wide + 0.42) + 0.2,
    )


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


def all_pictures(report: Report) -> dict[str, Any]:
    """Every picture of the report as a data URI: ``losses``, ``sensitivity``, and those of each worst layer."""
    maps = report.maps or {}
    bars = 0 if report.sensitivity is None else min(len(report.sensitivity), MOST_BARS)
    return {
        "losses": picture(losses, report, width=5.4, height=0.95 + 0.42 * len(report.lanes)),
        "sensitivity": picture(sensitivity, report, width=9.2, height=0.8 + 0.25 * max(bars, 2)) if bars else None,
        "worst": [
            {
                "histogram": picture(histogram, e, width=6.2, height=2.5) if e["histogram"] else None,
                "channels": picture(channels, e, width=4.5, height=2.5) if e["weight"] else None,
                "maps": map_pictures(maps[e["tap"]]) if e["tap"] in maps else None,
            }
            for e in report.worst
        ],
    }
