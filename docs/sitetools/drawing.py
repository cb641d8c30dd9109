"""What the pictures of causes are drawn with: a tensor's histogram on its grid, and channels against a step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from qkit.quant.grids import QuantParams
from qkit.quant.histogram import Histogram
from qkit.style import BAD, GOOD, INK, MUTED, NARROW_COLOUR, STYLE, WIDE_COLOUR

__all__ = ["BAD", "GOOD", "INK", "MUTED", "NARROW", "WIDE", "bars", "channels", "figure", "histogram", "save", "style"]
NARROW, WIDE = NARROW_COLOUR, WIDE_COLOUR

#: Combs of more teeth than this are a grey band at this width.
_TEETH = 70


def style() -> AbstractContextManager[None]:
    """What everything is to be drawn in."""
    own = {"font.size": 9.0, "axes.titlesize": 9.5, "axes.titlelocation": "left", "axes.titleweight": "medium"}
    return matplotlib.style.context(["default", STYLE | own])


def figure(
    count: int = 2, *, width: float = 8.8, height: float = 2.9, ratios: Sequence[float] | None = None
) -> tuple[Figure, Any]:
    """A figure on a light ground with so many axes in a row."""
    made = Figure(figsize=(width, height), facecolor="#fdfdfd", layout="constrained")
    return made, made.subplots(1, count, width_ratios=ratios, squeeze=False)[0]


def save(made: Figure, path: Path) -> None:
    """As a small PNG: few colours are enough for flat areas and text."""
    made.savefig(path, dpi=130, metadata={"Software": None})
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(96, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def histogram(
    ax: Axes, seen: Histogram, params: QuantParams | None, *, view: tuple[float, float] | None = None, log: bool = True,
    colour: str = WIDE, label: str | None = None,
) -> Axes:  # fmt: skip
    """Counts of a tensor with its grid below: a tooth a code, what the grid clips in red, its ends as lines."""
    low, high = (float(x) for x in (params.lo, params.hi)) if params is not None else (seen.min, seen.max)
    if view is None:
        left, right = min(seen.min, low), max(seen.max, high)
        margin = 0.04 * (right - left)
        view = left - margin, right + margin
    counts, edges = seen.linear(160, *view)
    share = counts / seen.total
    centres, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    half = 0.0 if params is None else float(params.scale) / 2
    outside = np.zeros(len(centres), bool) if params is None else (edges[1:] <= low - half) | (edges[:-1] >= high + half)
    ax.bar(centres[~outside], share[~outside], width, color=colour, alpha=0.75, lw=0, label=label)
    if outside.any() and share[outside].sum() > 0:
        ax.bar(centres[outside], share[outside], width, color=BAD, lw=0, label="clipped")
    if log:
        ax.set_yscale("log")
        positive = share[share > 0]
        ax.set_ylim(min(0.4 * float(positive.min()), 1e-4) if len(positive) else 1e-6, 2.0)
        ax.yaxis.set_major_formatter(
            FuncFormatter(lambda v, _: f"{100 * v:g} %" if v >= 1e-4 else f"{100 * v:.0e} %".replace("e-0", "e-"))
        )
        ax.yaxis.set_minor_formatter(NullFormatter())
    if params is not None:
        comb(ax, params, view)
        for end in (low, high):
            ax.axvline(end, color=INK, lw=0.9, ls=(0, (3, 2)))
    ax.set_xlim(*view)
    ax.set_ylabel("share of elements")
    ax.set_xlabel("value")
    return ax


def comb(ax: Axes, params: QuantParams, view: tuple[float, float]) -> None:
    """A tooth for every code in view, along the lower edge; a band where they are too many to be told apart."""
    scale, low, high = float(params.scale), float(params.lo), float(params.hi)
    visible = (min(high, view[1]) - max(low, view[0])) / scale
    transform = ax.get_xaxis_transform()
    if visible > _TEETH:
        ax.fill_between([max(low, view[0]), min(high, view[1])], 0, 0.045, color=INK, alpha=0.35, lw=0, transform=transform)
        return
    teeth = np.arange(round((high - low) / scale) + 1) * scale + low
    teeth = teeth[(teeth >= view[0]) & (teeth <= view[1])]
    ax.vlines(teeth, 0, 0.1, color=INK, lw=1.1, transform=transform, zorder=3)


def channels(ax: Axes, peaks: np.ndarray, step: float | np.ndarray, *, what: str) -> Axes:
    """Every channel's greatest magnitude, in order, with the step that it is measured in; those below half a step are lost."""
    order = np.argsort(peaks)
    x = np.arange(len(peaks))
    steps = np.broadcast_to(np.asarray(step, float), peaks.shape)[order]
    heights = np.maximum(peaks[order], 1e-9 * peaks.max())
    lost = heights < steps / 2
    floor = 0.3 * min(float(heights[heights > 1e-8 * peaks.max()].min()), float(steps.min()))
    ax.bar(x[~lost], heights[~lost], 0.85, color=WIDE, alpha=0.75, lw=0)
    if lost.any():
        ax.bar(x[lost], heights[lost], 0.85, color=BAD, lw=0, label="below half a step: rounds to 0")
    ax.step(x, steps, where="mid", color=INK, lw=1.2, label="one step of the grid")
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(numticks=7))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(floor, 4 * max(float(heights.max()), float(steps.max())))
    ax.set_xlabel("channels, narrowest first")
    ax.set_ylabel(what)
    ax.legend(loc="upper left", fontsize=8)
    return ax


def bars(
    ax: Axes, names: Sequence[str], values: Sequence[float], colours: Sequence[str] | str, *, said: Sequence[str] = ()
) -> Axes:
    """Horizontal bars with their names, and figures at their ends."""
    y = np.arange(len(names))
    ax.barh(y, values, color=colours, height=0.7, lw=0)
    ax.set_yticks(y, names)
    ax.invert_yaxis()
    for at, (value, text) in enumerate(zip(values, said, strict=False)):
        ax.annotate(text, (value, at), (4, 0), textcoords="offset points", va="center", fontsize=8)
    return ax
