"""The report's pictures: its losses, its sensitivity, and its worst tensors, each as SVG in a data URI."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from qkit.figures.drawing import address_of, svg_address
from qkit.figures.tensors import channels, feature_maps, histogram
from qkit.report.contents.data import WIDE, Report
from qkit.report.text.tables import bars_shown
from qkit.style import GOOD, INK, MUTED, NARROW_COLOUR, OTHER, WIDE_COLOUR, short, units_of


def _colour(report: Report, lane: str) -> str:
    return {WIDE: WIDE_COLOUR, report.narrow: NARROW_COLOUR}.get(lane, OTHER)


def losses(report: Report, *, ax: Axes) -> Axes:
    """Every lane's loss with its interval, against the band that counts as close."""
    units = units_of(report.metric)
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


def sensitivity(report: Report, *, ax: Axes) -> Axes:
    """Loss of each layer quantized alone with its interval, the greatest first."""
    assert report.sensitivity is not None
    units = units_of(report.metric)
    top = report.sensitivity.head(bars_shown(report))
    y = np.arange(len(top))
    value, low, high = (units.factor * np.asarray(top[c], dtype=float) for c in ("loss", "loss low", "loss high"))
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


def map_pictures(entry: dict[str, Any]) -> str:
    """Feature maps of one layer: a row per channel; float, the lane, and their difference, as SVG in a data URI."""
    count, high, wide = entry["shape"]
    cell = min(1.9, 1.9 * wide / high)
    return address_of(
        lambda figure: feature_maps(entry, axes=figure.subplots(count, 3, squeeze=False)),
        width=3 * (cell + 0.75),
        height=count * (cell * high / wide + 0.42) + 0.2,
    )


def all_pictures(report: Report) -> dict[str, Any]:
    """Every picture of the report as a data URI: ``losses``, ``sensitivity``, and those of each worst layer."""
    maps = report.maps or {}
    bars = bars_shown(report)
    return {
        "losses": svg_address(losses, report, width=5.4, height=0.95 + 0.42 * len(report.lanes)),
        "sensitivity": svg_address(sensitivity, report, width=9.2, height=0.8 + 0.25 * max(bars, 2)) if bars else None,
        "worst": [
            {
                "histogram": svg_address(histogram, e, width=6.2, height=2.5) if e["histogram"] else None,
                "channels": svg_address(channels, e, width=4.5, height=2.5) if e["weight"] else None,
                "maps": map_pictures(maps[e["tap"]]) if e["tap"] in maps else None,
            }
            for e in report.worst
        ],
    }
