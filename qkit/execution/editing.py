"""Editing a range by hand: its figures at once, what the methods would choose, and where an end may go.

No widget is needed for any of it; the widgets are its front end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qkit.errors import PlanError
from qkit.quant.estimators import METHODS, Method, activation_grid, weight_grid
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.histogram import Histogram
from qkit.quant.plan import Grid

if TYPE_CHECKING:
    from qkit.study import Study


@dataclass(frozen=True)
class Figures:
    """What a grid does to the values that were observed.

    Attributes
    ----------
    clipped
        Share of elements beyond the grid's ends by more than half a step.
    rounding, clipping
        Root of the mean squared error of the elements inside, and of those beyond the ends, over all elements; in the
        tensor's units.
    sqnr
        Signal to quantization noise ratio in dB.
    used, steps
        Codes between the extremes of the values, and codes of the grid (the largest share of a channel's, per channel).
    """

    clipped: float
    rounding: float
    clipping: float
    sqnr: float
    used: int
    steps: int


def figures(histograms: Sequence[Histogram], params: QuantParams) -> Figures:
    """Figures of a grid: from the tensor's one histogram, or with one scale per channel from every channel's.

    Raises
    ------
    PlanError
        If there is not one histogram for each scale.
    """
    grids = [params] if params.axis is None else channel_params(params)
    if len(grids) != len(histograms):
        raise PlanError(f"figures of {len(grids)} grids need as many histograms, not {len(histograms)}.")
    total = sum(h.total for h in histograms)
    clipped = rounding = clipping = signal = 0.0
    used = 0
    for histogram, grid in zip(histograms, grids, strict=True):
        error, weight = histogram.error(grid), histogram.total / total
        clipped += weight * error.clipped
        rounding += weight * error.rounding
        clipping += weight * error.clipping
        signal += weight * error.signal
        used = max(used, codes_used(histogram, grid))
    whole = replace(error, rounding=rounding, clipping=clipping, clipped=clipped, signal=signal)
    return Figures(clipped, rounding**0.5, clipping**0.5, whole.sqnr, used, params.qmax - params.qmin + 1)


def codes_used(histogram: Histogram, params: QuantParams) -> int:
    """Codes from that of the least value to that of the greatest."""
    _, scale, low, high = params.scalars
    first, last = (min(max(round(value / scale), low), high) for value in (histogram.min, histogram.max))
    return int(last - first) + 1


def channel_params(params: QuantParams) -> list[QuantParams]:
    """A grid per channel as one grid for each."""
    pairs = zip(params.scale, params.zero_point, strict=True)
    return [QuantParams(scale.clone(), zero.clone(), params.qmin, params.qmax) for scale, zero in pairs]


def rule_of(grid: Grid, **changes: object) -> QuantSpec:
    """The grid's rule with these changes; a narrow grid stays narrow only where it is symmetric.

    Raises
    ------
    PlanError
        For bits that no grid has.
    """
    spec = replace(grid.spec, **changes)  # type: ignore[arg-type]
    return spec if spec.symmetric else replace(spec, narrow=False)


def suggestions(study: Study, tensor: str, spec: QuantSpec, percentile: float = 99.99) -> dict[Method, Grid]:
    """What every method would choose for a tap or weight under that rule; methods that are not defined for it are left out.

    Raises
    ------
    PlanError
        If the tensor has no grid of its own.
    """
    op = study.graph.operation(tensor)
    if op.weight != tensor and not op.quantized:
        raise PlanError(f"{tensor} has no grid of its own: there is no range to choose.")
    found: dict[Method, Grid] = {}
    for method in METHODS:
        try:
            if op.weight == tensor:
                grid = weight_grid(study.graph.weights[tensor], spec, method, op.weight_axis, percentile)
            else:
                grid = activation_grid(study.observe(progress=False)[tensor], spec, method, op.channel_axis, percentile)
        except PlanError:
            continue
        if grid.method == method:
            found[method] = grid
    return found


def moved_end(spec: QuantSpec, end: str, value: float, lo: float, hi: float, *, least: float = 2.0**-100) -> tuple[float, float]:
    """The range after one end of a grid was moved: it contains 0, and with a symmetric rule the other end keeps pace.

    Parameters
    ----------
    end
        "lo" or "hi", the one that was moved to `value`.
    lo, hi
        Ends of the grid before.
    least
        Narrowest range: one of no width at all would become a grid of steps of 1.
    """
    if spec.symmetric and lo < 0:
        # by the same factor, since a symmetric grid has one code more below 0 than above
        reach, old = max(abs(value), least), abs(lo if end == "lo" else hi)
        return (lo * reach / old, hi * reach / old) if old > 0 and hi > 0 else (-reach, reach)
    if end == "lo":
        low, high = min(value, 0.0), max(hi, 0.0)
        return min(low, high - least), high
    low, high = min(lo, 0.0), max(value, 0.0)
    return low, max(high, low + least)
