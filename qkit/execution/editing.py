"""Editing a plan by hand: figures of a range at once, what the methods would choose, undo and redo, and the code for it.

No widget is needed for any of it; the widgets are its front end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from qkit.errors import PlanError
from qkit.quant.estimators import METHODS, Method, activation_grid, weight_grid
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.histogram import Histogram
from qkit.quant.plan import Grid, Plan

if TYPE_CHECKING:
    from qkit.study import Study


@dataclass(frozen=True)
class History:
    """Plans in the order in which they were made, and which of them is the current one."""

    plans: tuple[Plan, ...]
    at: int = 0

    @property
    def plan(self) -> Plan:
        """The current one."""
        return self.plans[self.at]

    @property
    def base(self) -> Plan:
        """The first one."""
        return self.plans[0]

    @property
    def previous(self) -> Plan:
        """The one before the current one; the first has itself."""
        return self.plans[max(self.at - 1, 0)]

    @property
    def can_undo(self) -> bool:
        """Whether there is one before."""
        return self.at > 0

    @property
    def can_redo(self) -> bool:
        """Whether one was undone."""
        return self.at < len(self.plans) - 1

    def then(self, plan: Plan) -> History:
        """That plan is the current one now; what was undone before is gone. The same plan once more changes nothing."""
        same = plan == self.plan and {n: g.spec for n, g in plan.grids.items()} == {n: g.spec for n, g in self.plan.grids.items()}
        return self if same else History((*self.plans[: self.at + 1], plan), self.at + 1)

    def undone(self) -> History:
        """One step back, if there is one."""
        return replace(self, at=max(self.at - 1, 0))

    def redone(self) -> History:
        """One step forth, if there is one."""
        return replace(self, at=min(self.at + 1, len(self.plans) - 1))

    def code(self, study: str = "study") -> str:
        """Python that makes the current plan from that of the variable `study`: ranges and rules equal to the last bit.

        What cannot be written as ranges (biases, accumulators, new grids) is said in a comment.
        """
        apart = self.base.diff(self.plan)
        changed = [(name, grid) for name, (old, grid) in apart.items() if old is not None and grid is not None]
        lines = [f"plan = {study}.plan"]
        if changed:
            lines = ["import qkit", *(["import torch"] if any(g.params.axis is not None for _, g in changed) else []), "", *lines]
        for name, grid in changed:
            if grid.codes is not None:
                lines.append(f"# {name} was rounded by a remedy or by study.ptc(), which its range alone does not tell")
            params, spec = grid.params, grid.spec
            axis = "" if params.axis is None else f", axis={params.axis}"
            if params.axis is None:
                spec = replace(spec, per_channel=False)  # a weight without a channel axis has one grid, whatever its rule
            lines += [
                f"plan = plan.with_range({name!r}, {_literal(params.lo)}, {_literal(params.hi)},",
                f"    spec=qkit.{_spec_code(spec)}{axis})",
            ]
        if gone := [name for name, (_, grid) in apart.items() if grid is None]:
            lines.append(f"plan = plan.without({gone!r})")
        if new := [name for name, (old, _) in apart.items() if old is None]:
            lines.append(f"# new grids are left out: {', '.join(new)}")
        if self.plan.bias_bits != self.base.bias_bits or self.plan.corrections != self.base.corrections:
            lines.append("# biases were changed by a remedy: study.apply(remedy) does that")
        if self.plan.accumulator_bits != self.base.accumulator_bits:
            lines.append(f"# accumulators have {self.plan.accumulator_bits} bits: Scheme(accumulator_bits=) sets that")
        return "\n".join([*lines, f"tuned = {study}.with_plan(plan)"])


def _literal(bound: Tensor) -> str:
    """The bound as Python writes it, all digits of a float64."""
    if bound.ndim == 0:
        return repr(float(bound))
    return f"torch.tensor({[float(v) for v in bound]!r}, dtype=torch.float64)"


def _spec_code(spec: QuantSpec) -> str:
    plain = QuantSpec()
    given = {name: value for name, value in vars(spec).items() if value != getattr(plain, name)}
    return f"QuantSpec({', '.join(f'{name}={value!r}' for name, value in given.items())})"


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
