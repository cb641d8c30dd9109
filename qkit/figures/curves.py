"""Curves of losses: along the depth of the network, and over the first tensors of a ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qkit.figures.drawing import DPI, WIDTH, Picture
from qkit.style import INK, MUTED, NARROW_COLOUR, OTHER, STYLE, WIDE_COLOUR, short

if TYPE_CHECKING:
    from qkit.execution.depth import Depth
    from qkit.execution.statistics import Interval
    from qkit.execution.together import Together

__all__ = ["depth", "together"]

_COLOURS = {"weights": WIDE_COLOUR, "activations": NARROW_COLOUR, "both": OTHER}
_MOST_NAMES = 40


def depth(found: Depth, *, ax: Axes, what: Literal["loss", "sqnr"] = "loss") -> Axes:
    """A line per curve over the operation up to which it is quantized: its loss with its interval, or the output's SQNR.

    A legend stands above the losses; the other picture has the same colours.
    """
    x = np.asarray(found.counts)
    table = found.table()
    for curve in found.scores:
        colour = _COLOURS.get(curve, INK)
        if what == "sqnr":
            y = table[curve, "sqnr"].to_numpy(float)
            ax.plot(x, np.where(np.isfinite(y), y, np.nan), "o-", ms=3, lw=1.5, color=colour, label=curve)
        else:
            _band(ax, x, [found.loss(curve, at) for at in range(len(x))], found.units.factor, colour, curve)
    _names(ax, x, found.operations)
    ax.set_ylabel("SQNR of the output (dB)" if what == "sqnr" else f"loss{_unit(found)}")
    if what == "loss":
        ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8.5)
    return ax


def depth_figure(found: Depth, words: str) -> Picture:
    """Loss above and SQNR of the output below."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 5.4), layout="constrained", facecolor="white", dpi=DPI)
        above, below = figure.subplots(2, 1, sharex=True)
        depth(found, ax=above).tick_params(labelbottom=False)
        depth(found, ax=below, what="sqnr")
        below.set_xlabel("quantized up to this operation, in the order of execution")
    return Picture(figure, words)


def together(found: Together, *, ax: Axes) -> Axes:
    """What the first k tensors lose (or recover) together, with its interval; the sum of what they do alone; the whole loss."""
    x = np.arange(1, len(found.tensors) + 1)
    factor = found.units.factor
    _band(ax, x, [found.effect(int(k)) for k in x], factor, NARROW_COLOUR, "together, measured")
    ax.plot(x, factor * found.table()["sum"].to_numpy(float), "^--", ms=4, lw=1.2, color=WIDE_COLOUR, label="sum of each alone")
    ax.axhline(factor * found.loss.value, color=INK, lw=1.0, ls=":", label="the whole plan's loss")
    _names(ax, x, found.tensors)
    ax.set_ylabel(("loss" if found.mode == "only" else "recovered") + _unit(found))
    ax.set_xlabel("the first tensors, up to this one")
    ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8.5)
    return ax


def _band(ax: Axes, x: np.ndarray, losses: Sequence[Interval], factor: float, colour: str, label: str) -> None:
    value, low, high = (factor * np.array([getattr(loss, end) for loss in losses]) for end in ("value", "low", "high"))
    low, high = np.where(np.isfinite(low), low, value), np.where(np.isfinite(high), high, value)
    ax.fill_between(x, low, high, color=colour, alpha=0.14, lw=0)
    ax.plot(x, value, "o-", ms=3, lw=1.5, color=colour, label=label)


def _names(ax: Axes, x: np.ndarray, names: Sequence[str]) -> None:
    every = -(-len(x) // _MOST_NAMES)
    ax.set_xticks(x[::every], [short(name, 26) for name in names[::every]], rotation=90, fontsize=6.5)
    ax.set_xlim(x[0] - 0.6, x[-1] + 0.6)
    ax.axhline(0, color=MUTED, lw=0.8)
    ax.grid(axis="y")


def _unit(found: Depth | Together) -> str:
    return f", {found.units.points}" if found.units.points else ""
