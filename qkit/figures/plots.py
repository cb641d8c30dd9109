"""Pictures of results, for notebooks and scripts: ``scores.plot()``, ``capture.plot()``, ``sensitivity.plot()`` and their like.

Each function draws into the ``ax`` that it is given and returns it, in the look of the reports. What the methods give is a
`Picture`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.style
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from qkit.errors import QkitError
from qkit.figures import entries, tensors
from qkit.figures.drawing import DPI, WIDTH, Picture, picture
from qkit.style import (
    BAD,
    GOOD,
    INK,
    MUTED,
    NARROW_COLOUR,
    OTHER,
    STYLE,
    WIDE_COLOUR,
    Units,
    decibels,
    number,
    short,
)  # fmt: skip

if TYPE_CHECKING:
    from qkit.execution.capture import Capture
    from qkit.execution.feature_maps import ImageMaps
    from qkit.execution.statistics import Interval
    from qkit.quant.plan import Plan
    from qkit.study import Study

__all__ = ["Picture", "channels", "depth", "feature_maps", "intervals", "maps", "picture", "ranges", "trade_off"]

_COLOURS = (WIDE_COLOUR, NARROW_COLOUR, OTHER)
_DASHES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
_MOST_NAMES = 80


def intervals(
    rows: Mapping[str, Interval],
    *,
    ax: Axes,
    units: Units,
    what: str = "",
    tolerance: float | None = None,
    scores: bool = False,
) -> Axes:
    """A row per name: a figure with its confidence interval, the first at the top.

    Parameters
    ----------
    rows
        In units of the score; percent, or points, where the metric is a share.
    units
        How scores and losses are shown.
    what
        Label of the axis.
    tolerance
        Shades what counts as close to zero: for losses.
    scores
        Whether these are scores, not losses or gains: those stand out that are no chance.
    """
    factor = units.factor * (-1.0 if scores and units.lower else 1.0)
    y = np.arange(len(rows))
    value, low, high = (factor * np.array([getattr(r, end) for r in rows.values()]) for end in ("value", "low", "high"))
    low, high = (low, high) if factor > 0 else (high, low)
    ends = np.stack([np.where(np.isfinite(low), value - low, 0.0), np.where(np.isfinite(high), high - value, 0.0)])
    ends = np.maximum(ends, 0.0)
    if tolerance is not None:
        ax.axvspan(-factor * tolerance, factor * tolerance, color=GOOD, alpha=0.16, lw=0)
    sure = (low > 0) | (high < 0)
    colours = [WIDE_COLOUR] * len(y) if scores else np.where(sure, NARROW_COLOUR, MUTED).tolist()
    ax.barh(y, value, height=0.62, color=colours, alpha=0.75, lw=0)
    ax.axvline(0, color=MUTED, lw=0.8)
    ax.errorbar(value, y, xerr=ends, fmt="none", ecolor=INK, elinewidth=1.0, capsize=3)
    for i, v in enumerate(value):
        right = v >= 0
        ax.annotate(
            f"{v:.1f}" if units.percent else number(v), (v + ends[1][i] if right else v - ends[0][i], i),
            (5 if right else -5, 0), textcoords="offset points", va="center", ha="left" if right else "right", fontsize=8.5,
        )  # fmt: skip
    ax.set_yticks(y, [short(str(name)) for name in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.margins(x=0.12)
    ax.set_xlabel(what)
    ax.set_axisbelow(True)
    ax.grid(axis="x")
    return ax


def depth(capture: Capture, *, ax: Axes, lanes: Sequence[str] | None = None) -> Axes:
    """SQNR of every tap in the order of execution: accumulated (lines), and what the layer alone does (triangles)."""
    table = capture.table()
    names = [str(name) for name in table.index]
    x = np.arange(len(names))
    shown = [lane for lane in (capture.lanes if lanes is None else lanes) if lane != "float"]
    for i, lane in enumerate(shown):
        colour = _COLOURS[i % len(_COLOURS)]
        for column, said, marker, wide, dash in (("sqnr", "accumulated", "o", 1.6, "-"), ("local sqnr", "local", "^", 0.7, "--")):
            y = np.array(table[lane, column], float)
            shown_y = np.where(np.isfinite(y), y, np.nan)
            ax.plot(x, shown_y, color=colour, marker=marker, ms=3.4, lw=wide, ls=dash, label=f"{lane}, {said}")
    every = -(-len(names) // _MOST_NAMES)
    ax.set_xticks(x[::every], [short(name, 26) for name in names[::every]], rotation=90, fontsize=6.5)
    ax.set_xlim(-0.8, len(names) - 0.2)
    ax.axhline(0, color=MUTED, lw=0.8)
    ax.set_ylabel("SQNR (dB), higher is better")
    ax.grid(axis="y")
    ax.legend(ncols=2 * max(len(shown), 1), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8.5)
    return ax


def ranges(study: Study, tensor: str, plans: Mapping[str, Plan], *, ax: Axes) -> Axes:
    """A tap's float values on the calibration data, with the ends of the ranges that several plans give it."""
    seen = study.observe()
    if tensor not in seen:
        raise QkitError(f"{tensor} was not observed: name a tap of study.graph.taps, not a weight.")
    histogram = seen[tensor].histogram
    entry = {"histogram": entries.describe_histogram(histogram, None), "grid": None}
    tensors.histogram(entry, ax=ax)
    for i, (name, plan) in enumerate(plans.items()):
        params = plan[tensor].params
        low, high = float(params.lo.min()), float(params.hi.max())
        colour = (NARROW_COLOUR, OTHER, BAD, GOOD, INK)[i % 5]
        label = f"{name}: {number(low, 3)} to {number(high, 3)}"
        ax.axvline(high, color=colour, lw=1.5, ls=_DASHES[i % len(_DASHES)], label=label)
        if low < 0:
            ax.axvline(low, color=colour, lw=1.5, ls=_DASHES[i % len(_DASHES)])
    ends = [float(plan[tensor].params.hi.max()) for plan in plans.values()]
    left, right = ax.get_xlim()
    ax.set_xlim(left, max(right, 1.02 * max(ends, default=right)))
    ax.set_xlabel(f"{tensor}: float value")
    ax.set_ylabel("elements (log)")
    ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8.5)
    return ax


def trade_off(study: Study, tensor: str, plans: Mapping[str, Plan] | None = None, *, ax: Axes) -> Axes:
    """Rounding, clipping and total error of a tap over the upper end of its range; dots: what several plans choose.

    From the histogram of the calibration data alone, with the rule of the study's own grid; root mean square, in the tensor's
    units. The lower end moves along in proportion.
    """
    seen = study.observe()
    if tensor not in seen:
        raise QkitError(f"{tensor} was not observed: name a tap of study.graph.taps, not a weight.")
    histogram, grid = seen[tensor].histogram, study.plan[tensor]
    if grid.params.per_channel:
        raise QkitError(f"{tensor} has a grid per channel; the picture is of one range.")
    low, high = min(histogram.min, 0.0), max(histogram.max, 0.0)
    shares = np.geomspace(0.03, 1.5, 80)
    errors = [histogram.error(grid.spec.params(torch.tensor(s * low), torch.tensor(s * high))) for s in shares]
    x = shares * high
    for label, values, colour, wide in (
        ("rounding", [e.rounding for e in errors], WIDE_COLOUR, 1.2),
        ("clipping", [e.clipping for e in errors], NARROW_COLOUR, 1.2),
        ("both", [e.total for e in errors], INK, 2.0),
    ):
        ax.plot(x, np.sqrt(np.maximum(values, 0.0)), color=colour, lw=wide, label=label)
    chosen = sorted(((float(p[tensor].params.hi), n, p[tensor].params) for n, p in (plans or {}).items()), key=lambda c: c[:2])
    for i, (at, name, params) in enumerate(chosen):
        total = math.sqrt(histogram.error(params).total)
        ax.plot(at, total, "o", ms=6, color=OTHER, zorder=4)
        # neighbours may lie close together: names stand in turn further above
        ax.annotate(
            name, (at, total), (0, 14 + 13 * (i % 3)), textcoords="offset points", ha="center", fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkA": 0.0, "shrinkB": 4.0},
        )  # fmt: skip
    least = math.sqrt(min(e.total for e in errors))
    ax.set_yscale("log")
    ax.set_ylim(least / 30, 30 * least)
    ax.set_xlabel(f"upper end of the range of {tensor}; its values end at {number(histogram.max, 3)}")
    ax.set_ylabel("error, root mean square")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(axis="y")
    ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8.5)
    return ax


def channels(study: Study, weight: str, *, ax: Axes, plan: Plan | None = None) -> Axes:
    """Greatest magnitude of every output channel of a weight, sorted, against the step of its grid."""
    op = study.graph.operation(weight)
    if op.weight is None:
        raise QkitError(f"{weight} is no weight and has none: name one such as 'features.0.0.weight'.")
    entry = entries.describe(study.graph, study.plan if plan is None else plan, op.name, {}, [])
    tensors.channels(entry, ax=ax)
    ax.set_title(op.weight, fontsize=9.5, loc="left")
    return ax


def maps(found: ImageMaps, *, figure: Figure, channels: int = 3) -> Figure:
    """Feature maps of one image: a row per channel, the worst first; a column per lane, and the differences from float."""
    chosen = [int(c) for c in found.ranking[:channels]]
    others = [lane for lane in found.lanes if lane != "float"]
    axes = figure.subplots(len(chosen), 1 + 2 * len(others), squeeze=False)
    for row, channel in zip(axes, chosen, strict=True):
        exact = found.lanes["float"][channel]
        low = min(float(planes[channel].min()) for planes in found.lanes.values())
        high = max(float(planes[channel].max()) for planes in found.lanes.values())
        for ax, lane in zip(row, found.lanes, strict=False):
            ax.imshow(found.lanes[lane][channel], cmap="cividis", vmin=low, vmax=max(high, low + 1e-12))
            ax.set_title(lane if lane == "float" else f"{lane}, {decibels(found.sqnr[lane][channel])} dB", fontsize=8.5)
        for ax, lane in zip(row[len(found.lanes) :], others, strict=True):
            difference = found.lanes[lane][channel] - exact
            most = max(float(np.abs(difference).max()), 1e-12)
            ax.imshow(difference, cmap="PuOr_r", vmin=-most, vmax=most)
            ax.set_title(f"{lane} − float, ±{number(most, 2)}", fontsize=8.5)
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
        row[0].set_ylabel(f"channel {channel}", fontsize=8.5)
    return figure


def feature_maps(found: ImageMaps, words: str, *, channels: int = 3) -> Picture:
    """`maps` on a figure of its own."""
    columns = 2 * len(found.lanes) - 1
    with matplotlib.style.context(["default", STYLE]):
        side = WIDTH / columns
        figure = Figure(figsize=(WIDTH, channels * (side + 0.28)), layout="constrained", facecolor="white", dpi=DPI)
        maps(found, figure=figure, channels=channels)
    return Picture(figure, words)


def bar_height(rows: int) -> float:
    """Inches for so many rows of `intervals`."""
    return 0.75 + 0.3 * max(rows, 2)
