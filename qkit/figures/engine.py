"""An engine against the simulation as a picture: where its differences arise, and where they merely arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from qkit.style import BAD, NARROW_COLOUR, WIDE_COLOUR, short

if TYPE_CHECKING:
    from qkit.engines.tap_comparison import Comparison

_MOST_NAMES = 80


def draw(comparison: Comparison, *, ax: Axes) -> Axes:
    """Share of codes within a step of the simulation, tap by tap: from the network's input on, and from equal inputs."""
    names = list(comparison.taps)
    x = np.arange(len(names))
    accumulated = [100.0 * sums.accumulated.within_one for sums in comparison.taps.values()]
    local = [100.0 * sums.local.within_one for sums in comparison.taps.values()]
    ax.plot(x, accumulated, "o-", ms=3.4, lw=1.4, color=NARROW_COLOUR, label="both from the network's input")
    ax.plot(x, local, "^", ms=5.0, color=WIDE_COLOUR, label="the layer alone, on the engine's inputs")
    if comparison.first is not None:
        at = names.index(comparison.first)
        ax.axvline(at, color=BAD, lw=1.0, ls="--", label=f"first that differs: {short(comparison.first)}")
    every = -(-len(names) // _MOST_NAMES)
    ax.set_xticks(x[::every], [short(name, 26) for name in names[::every]], rotation=90, fontsize=6.5)
    ax.set_xlim(-0.8, len(names) - 0.2)
    ax.set_ylim(-4.0, 104.0)
    ax.set_ylabel("codes within a step of the simulation, %")
    ax.grid(axis="y")
    ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8.5)
    return ax
