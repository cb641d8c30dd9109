"""Which tensor of a layer is at fault: what its local error owes to the weight's grid and what to the grid of its own output.

The local error is taken on float inputs: the weight on its grid, then the output on its own. What the output's grid does to the
float values by itself is summed beside it, and the rest is the weight's (with the bias's). The two roundings have nothing to do
with each other, so their squares add up.
"""

from __future__ import annotations

import pandas as pd

from qkit.errors import QkitError
from qkit.execution.capture import Capture
from qkit.quant.sqnr import sqnr

__all__ = ["local_parts", "noisiest_tap", "tensor_at_fault"]


def local_parts(capture: Capture, lane: str | None = None) -> pd.DataFrame:
    """A row per tap: its local error, split.

    Columns: ``weight`` and ``activation``, signal to noise ratios in dB with only that tensor on its grid (infinite where it
    makes no error), and ``weight share``, the weight's part of the squared error from 0 to 1 (NaN where there is none).

    Parameters
    ----------
    lane
        The last one by default.

    Raises
    ------
    QkitError
        If there is no such lane beside float.
    """
    lane = _checked(capture, lane)
    rows = {tap: _parts(capture, tap, lane) for tap in capture.taps if tap in capture.floats}
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["weight", "activation", "weight share"])
    return frame.rename_axis("tap")


def _parts(capture: Capture, tap: str, lane: str) -> dict[str, float]:
    sums = capture.errors[tap, lane]
    signal, local = float(capture.floats[tap].squared.sum()), float(sums.local.sum())
    grid = min(float(sums.grid.sum()), local)  # together they may cancel a little, by chance
    return {
        "weight": float(sqnr(signal, local - grid)),
        "activation": float(sqnr(signal, grid)),
        "weight share": (local - grid) / local if local > 0 else float("nan"),
    }


def _checked(capture: Capture, lane: str | None) -> str:
    """The lane, the last one for None."""
    lane = next(reversed(capture.plans), "") if lane is None else lane
    if lane not in capture.plans:
        raise QkitError(f"no lane {lane!r} was captured; there are {', '.join(capture.plans) or 'none but float'}.")
    return lane


def tensor_at_fault(capture: Capture, tap: str, lane: str | None = None) -> str | None:
    """The tensor of the layer that most of its local error comes from: its weight or its tap; None where neither has a grid.

    Where only one of them has a grid it is that one.

    Raises
    ------
    GraphError, QkitError
        If there is no such tap or lane, or no batch reached it.
    """
    op, lane = capture.graph.operation(tap), _checked(capture, lane)
    if op.name not in capture.floats:
        raise QkitError(f"{tap} was not captured: no batch reached it.")
    plan = capture.plans[lane]
    weight = op.weight if op.weight in plan.grids else None
    if op.name not in plan.grids:
        return weight
    return weight if weight is not None and _parts(capture, op.name, lane)["weight share"] > 0.5 else op.name


def noisiest_tap(capture: Capture, lane: str | None = None) -> str | None:
    """The tap with the lowest local signal to noise ratio; None where no layer makes an error."""
    lane, noise = _checked(capture, lane), {}
    for tap in (tap for tap in capture.taps if tap in capture.floats):
        signal, local = float(capture.floats[tap].squared.sum()), float(capture.errors[tap, lane].local.sum())
        if local > 0.0:
            noise[tap] = float(sqnr(signal, local))
    return min(noise, key=lambda tap: noise[tap]) if noise else None
