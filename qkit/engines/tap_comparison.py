"""What comparing an engine with the simulation found: a table, the first tap that differs, and reasons."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from qkit.engines.equal_inputs import Visit
from qkit.engines.faults import FaultKind
from qkit.execution.scores import Scores
from qkit.quant.grids import QuantParams
from qkit.quant.plan import Plan
from qkit.quant.sqnr import sqnr

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture

#: Share of a tap's codes that rounding keeps within one step, and on the grid.
ROUNDING = 0.999
#: Rounding moves a code by one step, in multipliers of few bits by two: of those further apart a tap may have this share.
FAR_STEPS, FAR = 2, 1e-4
#: Below this share of equal codes a reason is looked for, though none differ by more than one step.
WORTH_A_REASON = 0.99
#: Tensors without codes agree if this many decibels lie between them and their difference: float32 sums in another order do.
FLOAT_AGREEMENT = 60.0
#: Below so many decibels two tensors have nothing in common but their sign and size.
UNRELATED = 3.0
#: No element counts for more than so many steps in the mean distance.
_MOST_APART = 16.0


@dataclass(eq=False)
class Steps:
    """How many codes differ by 0, by 1, by more and by far more steps, the greatest difference, and their sum."""

    same: int = 0
    one: int = 0
    more: int = 0
    largest: int = 0
    far: int = 0
    total: float = 0.0

    def add(self, difference: Tensor) -> None:
        """Add differences in steps, which need not be whole; one that is no number counts as infinite."""
        size = difference.abs().nan_to_num(nan=math.inf, posinf=math.inf)
        self.total += float(size.clamp(max=_MOST_APART).sum())
        size = size.round_()
        same, more = int((size == 0).sum()), int((size > 1).sum())
        self.same, self.one, self.more = self.same + same, self.one + size.numel() - same - more, self.more + more
        self.far += int((size > FAR_STEPS).sum())
        self.largest = max(self.largest, int(size.max().clamp(max=2.0**31)) if size.numel() else 0)

    def merge(self, other: Steps) -> None:
        """Add what another one counted."""
        self.same, self.one, self.more = self.same + other.same, self.one + other.one, self.more + other.more
        self.far, self.total, self.largest = self.far + other.far, self.total + other.total, max(self.largest, other.largest)

    @property
    def distance(self) -> float:
        """Mean difference in steps, where no element counts for more than sixteen; NaN without elements."""
        return self.total / self.count if self.count else math.nan

    @property
    def count(self) -> int:
        """Elements."""
        return self.same + self.one + self.more

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of the three, NaN without elements."""
        return tuple(n / self.count if self.count else math.nan for n in (self.same, self.one, self.more))  # type: ignore[return-value]

    @property
    def within_one(self) -> float:
        """Share that differs by one step at most."""
        return (self.same + self.one) / self.count if self.count else math.nan


@dataclass(eq=False)
class TapSums:
    """What is summed up about a tap, over any number of batches.

    Attributes
    ----------
    kind
        Of its step.
    accumulated, equal
        Differences in steps: both run from the network's input; the kit's step run on the engine's values.
    explained, far
        Elements of the latter that rounding explains, and that are so far apart that no rounding does.
    has_grid
        Whether the tap has one; a step of a float tensor is a thousandth of its size.
    signal, against_float, against_simulation
        Sums of squares: of the float values, of the engine's difference to them, and to the simulation.
    local_signal, local_error
        The same of the step on equal inputs, and of the engine's difference to it.
    """

    kind: str
    accumulated: Steps = field(default_factory=Steps)
    equal: Steps = field(default_factory=Steps)
    explained: int = 0
    far: int = 0
    has_grid: bool = True
    signal: float = 0.0
    against_float: float = 0.0
    against_simulation: float = 0.0
    local_signal: float = 0.0
    local_error: float = 0.0

    def add_accumulated(self, engine: Tensor, floats: Tensor, simulated: Tensor, scale: Tensor | None) -> None:
        """Add a batch; `scale` is the grid's step, None where the tap is float."""
        values, difference = engine.double(), engine.double() - simulated.double()
        self.signal += float(floats.double().square().sum())
        self.against_float += float((values - floats.double()).square().sum())
        self.against_simulation += float(difference.square().sum())
        if scale is not None:
            self.accumulated.add(difference / scale)

    def add_local(self, visit: Visit) -> bool:
        """Add a batch of the step on equal inputs; whether a reason is worth looking for."""
        apart = visit.apart(visit.simulated)
        self.has_grid = visit.params is not None
        self.local_signal += float(visit.simulated.double().square().sum())
        self.local_error += float((apart * visit.unit).square().sum())
        batch = Steps()
        batch.add(apart)
        beyond = apart.abs() - visit.slack
        explained = int(((beyond < 1.5) & visit.on_grid).sum())
        self.equal.merge(batch)
        self.explained += explained
        self.far += int((beyond > FAR_STEPS + 0.5).sum())
        if batch.count == 0:
            return False
        # even one that is far away is worth it: a rare fault is named if it is reproduced
        return explained < ROUNDING * batch.count or batch.shares[0] < WORTH_A_REASON or batch.far > 0

    @property
    def local(self) -> Steps:
        """Differences in codes on equal inputs, none where the tap has no grid."""
        return self.equal if self.has_grid else Steps()

    @property
    def share(self) -> float:
        """Share of elements that rounding explains on equal inputs: within a step, and on the grid; NaN without elements."""
        return self.explained / self.equal.count if self.equal.count else math.nan

    @property
    def agrees(self) -> bool:
        """Whether the step computes what the kit's does on the same inputs, as far as rounding goes."""
        if self.local.count:
            return self.share >= ROUNDING and self.far <= FAR * self.local.count
        return bool(sqnr(self.local_signal, self.local_error) >= FLOAT_AGREEMENT)

    @property
    def unrelated(self) -> bool:
        """Whether the engine's values have nothing to do with what the step gives on the same inputs."""
        return bool(sqnr(self.local_signal, self.local_error) < UNRELATED)


@dataclass(frozen=True)
class Explanation:
    """What was simulated that reproduces an engine's tensor.

    Attributes
    ----------
    kind, words, cure
        Of the fault (`qkit.engines.faults`).
    share
        Share of the elements that are within a step with it.
    """

    kind: FaultKind
    words: str
    cure: str
    share: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """An engine against the simulation.

    Attributes
    ----------
    lane
        The engine's name.
    plan
        That was simulated.
    taps
        Sums by tap, in execution order.
    samples
        How many.
    reasons
        By tap, why it differs, as far as an experiment tells.
    missing
        Taps that the engine does not yield.
    notes
        What a reader has to know, the lane's own notes among it.
    faults
        By tap, what reproduces the engine's values, where something does.
    grids
        By tap, the plan's own grid where the engine has another, which was taken.
    scores
        Of "float", "simulated" and the lane by its name, where they were asked for and the engine's outputs are known.
    """

    lane: str
    plan: Plan
    taps: Mapping[str, TapSums]
    samples: int
    reasons: Mapping[str, str]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    faults: Mapping[str, Explanation] = field(default_factory=dict)
    grids: Mapping[str, QuantParams | None] = field(default_factory=dict)
    scores: Scores | None = None

    def differs(self, tap: str) -> bool:
        """Whether the tap differs, on equal inputs, by more than rounding explains, or by as little through a known fault."""
        fault = self.faults.get(tap)
        return not self.taps[tap].agrees or (fault is not None and fault.kind != "rounding")

    @property
    def first(self) -> str | None:
        """The first tap that differs, on equal inputs, by more than rounding explains; None where all agree."""
        return next(filter(self.differs, self.taps), None)

    @property
    def agrees(self) -> bool:
        """Whether every tap does, on equal inputs, as far as rounding goes."""
        return self.first is None

    def table(self) -> pd.DataFrame:
        """A row per tap. Under "accumulated" and "equal inputs": shares of codes that differ by 0, 1 and more steps, and the
        greatest difference; under "sqnr", in dB: the engine against float, against the simulation, and on equal inputs.
        """
        rows: dict[str, dict[tuple[str, str], Any]] = {}
        for tap, sums in self.taps.items():
            row: dict[tuple[str, str], Any] = {("", "kind"): sums.kind}
            for name, steps in (("accumulated", sums.accumulated), ("equal inputs", sums.local)):
                row |= {(name, column): share for column, share in zip(("same", "one", "more"), steps.shares, strict=True)}
                row[name, "largest"] = float(steps.largest) if steps.count else math.nan
            noises = {"float": sums.against_float, "simulation": sums.against_simulation, "equal inputs": sums.local_error}
            row |= {("sqnr", name): float(sqnr(sums.signal, noise)) for name, noise in noises.items()}
            rows[tap] = row
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("tap")
        frame.columns = pd.MultiIndex.from_tuples([*next(iter(rows.values()), {})])
        return frame

    def plot(self) -> Picture:
        """Share of codes within a step of the simulation, tap by tap: from the network's input, and from equal inputs."""
        from qkit.figures.drawing import picture
        from qkit.figures.engine import draw

        return picture(draw, self, words=f"{self.lane} against the simulation, {len(self.taps)} taps", width=9.6, height=4.6)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings; infinite and missing ones as None."""
        table = self.table()
        names = [" ".join(key).strip() for key in table.columns]
        rows = {
            str(tap): dict(zip(names, map(_plain, values), strict=True))
            for tap, values in zip(table.index, table.to_numpy(dtype=object), strict=True)
        }
        return {
            "lane": self.lane,
            "plan": self.plan.name,
            "samples": self.samples,
            "first": self.first,
            "taps": rows,
            "reasons": dict(self.reasons),
            "missing": list(self.missing),
            "notes": list(self.notes),
        }

    @property
    def summary(self) -> str:
        """One or two sentences."""
        worst = min((s.local.within_one for s in self.taps.values() if s.local.count), default=math.nan)
        share = "" if math.isnan(worst) else f"; at the worst tap {worst:.3%} of the codes are within one step on equal inputs"
        if self.first is None:
            return f"{self.lane} agrees with the simulation of {self.plan.name!r} at all {len(self.taps)} taps{share}."
        differ = sum(map(self.differs, self.taps))
        reason = self.reasons.get(self.first)
        return (
            f"{self.lane} leaves the simulation of {self.plan.name!r} at {self.first} first, and at {differ} of {len(self.taps)} "
            f"taps in all{share}." + (f" {self.first}: {reason}." if reason else " No known difference of engines explains it.")
        )

    def __repr__(self) -> str:
        return f"Comparison({self.samples} samples: {self.summary})"

    def _repr_html_(self) -> str:
        listed = "".join(f"<li>{html.escape(f'{tap}: {why}')}</li>" for tap, why in self.reasons.items())
        listed += "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"<p>{html.escape(self.summary)}</p><ul>{listed}</ul>" + str(self.table().to_html(float_format="{:.4g}".format))


def _plain(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
