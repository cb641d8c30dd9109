"""The front as a picture: how much score microseconds, or multiply-accumulates in 16 bits, buy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes

from qkit.style import BAD, INK, LINES, MUTED, NARROW_COLOUR, STYLE, WIDE_COLOUR, short

if TYPE_CHECKING:
    from qkit.mixed.settings import Mixed, Setting

_LINES = 4


def draw(mixed: Mixed, *, ax: Axes) -> Axes:
    """Score on the evaluation data over time, or the share of multiply-accumulates in 16 bits: front, what was found, baselines,
    target, float.
    """
    with matplotlib.style.context(STYLE):
        factor = mixed.units.factor
        ax.axhline(factor * mixed.float_score.value, color=MUTED, lw=1.0, ls=":", label="float")
        ax.axhline(factor * mixed.target, color=BAD, lw=1.0, ls="--", label="target")
        timed = mixed.unit == "µs"
        _points(ax, mixed.front, factor, WIDE_COLOUR, "o-", "front", timed=timed, step=True)
        _points(ax, mixed.baselines, factor, NARROW_COLOUR, "s", "baselines", timed=timed)
        _points(ax, [mixed.found], factor, INK, "*", "found", timed=timed, size=13)
        _names(ax, mixed.baselines, factor, timed=timed)
        unit = ", %" if factor == 100.0 else ""
        ax.set_xlabel("time of the network, µs" if timed else "share of multiply-accumulates in 16 bits, %")
        ax.set_ylabel(f"{mixed.metric} on {mixed.float_score.n} evaluation samples{unit}")
        shown = [_x(s, timed=timed) for s in (*mixed.baselines, *mixed.front, mixed.found)]
        low, high = (min(shown), max(shown)) if timed else (0.0, 100.0)
        ax.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        ax.grid(axis="y")
        ax.legend(loc="lower right")
    return ax


def _x(setting: Setting, *, timed: bool) -> float:
    return setting.cost if timed else 100.0 * setting.share


def _points(
    ax: Axes, settings: Sequence[Setting], factor: float, colour: str, style: str, label: str, *, timed: bool,
    size: float = 5.0, step: bool = False,
) -> None:  # fmt: skip
    if not settings:
        return
    x = [_x(s, timed=timed) for s in settings]
    y = np.array([s.evaluation.value for s in settings])
    ends = np.array([[s.evaluation.value - s.evaluation.low, s.evaluation.high - s.evaluation.value] for s in settings]).T
    ends = np.where(np.isfinite(ends), np.maximum(ends, 0.0), 0.0)
    drawn = ax.errorbar(
        x, factor * y, yerr=factor * ends, fmt=style, ms=size, capsize=2, lw=1.2, elinewidth=0.9, color=colour, label=label,
        zorder=4 if size > 5.0 else 3,
    )  # fmt: skip
    if step:
        drawn.lines[0].set_drawstyle("steps-post")


def _names(ax: Axes, settings: Sequence[Setting], factor: float, *, timed: bool) -> None:
    """Baselines by name; neighbours, whose names would run into each other, one line below the other."""
    shown = sorted((s for s in settings if math.isfinite(s.evaluation.value)), key=lambda s: s.cost)
    values = [s.evaluation.value for s in shown]
    middle = 0.5 * (min(values, default=0.0) + max(values, default=0.0))
    lines: dict[bool, int] = {True: 0, False: 0}
    for s in shown:
        right = s.share > 0.5
        high = s.evaluation.value > middle
        lines[high] = lines[high] + 1 if lines[high] < _LINES else 1
        way = -12 if high else 12
        ax.annotate(
            short(s.name, 30), (_x(s, timed=timed), factor * s.evaluation.value), (-8 if right else 8, way * lines[high]),
            textcoords="offset points", ha="right" if right else "left", va="center", color=MUTED, fontsize=8,
            arrowprops={"arrowstyle": "-", "color": LINES, "lw": 0.6, "shrinkA": 0.0, "shrinkB": 3.0},
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}, zorder=5,
        )  # fmt: skip
