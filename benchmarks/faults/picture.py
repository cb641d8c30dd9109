"""The confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.score import CONTROL, ERROR, NONE
from benchmarks.faults.truth import KINDS


def draw(counts: Mapping[tuple[str, str], int], ax: Any) -> Any:
    """Planted kinds down, named ones across, counts in the cells; shades by share of the row. Returns `ax`."""
    rows = [k for k in (*KINDS, CONTROL) if any(truth == k for truth, _ in counts)]
    seen = {said for _, said in counts}
    columns = [k for k in KINDS if k in seen or k in rows]
    columns += sorted(seen - {*KINDS, NONE, ERROR}) + [NONE] + ([ERROR] if ERROR in seen else [])
    table = np.array([[counts.get((row, column), 0) for column in columns] for row in rows])
    part = table / np.maximum(table.sum(1, keepdims=True), 1)
    # one hue from light to dark: readable without colour vision and in print
    ax.imshow(part, cmap="Blues", vmin=0.0, vmax=1.0, aspect="equal")
    for (i, j), count in np.ndenumerate(table):
        if count:
            ax.text(j, i, str(count), ha="center", va="center", color="white" if part[i, j] > 0.55 else "black", fontsize=8)
    ax.set_xticks(range(len(columns)), columns, rotation=55, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="#dddddd", linewidth=0.6)
    ax.tick_params(which="both", length=0)
    ax.set_xlabel("first cause named")
    ax.set_ylabel("planted")
    return ax


def save(counts: Mapping[tuple[str, str], int], path: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(counts, figure.subplots())
    figure.savefig(path, dpi=130)
