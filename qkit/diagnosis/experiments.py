"""Experiments: many plans scored on the same samples, each from where it parts from a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qkit.execution import statistics
from qkit.execution.evaluator import Budget
from qkit.execution.metrics import TOLERANCE
from qkit.execution.statistics import Interval, Samples
from qkit.quant.plan import FLOAT, Plan

if TYPE_CHECKING:
    from qkit.study import Study


@dataclass
class Bench:
    """Scores plans of one study on a fixed part of its evaluation data, within a budget, and remembers them.

    Attributes
    ----------
    study
        Whose graph, data and metric.
    limit
        Evaluation batches to take; None for all.
    budget
        What the evaluations are counted against: one plan scored on all samples counts as one, however little of it had to be
        computed.
    known
        What has been asked for, with the float lane before anything else.
    tolerance
        Loss that still counts as close.
    """

    study: Study
    limit: int | None = None
    budget: Budget = field(default_factory=Budget)
    progress: bool = True
    known: dict[Plan, Samples] = field(default_factory=dict)
    tolerance: float = TOLERANCE

    def scores(self, plans: Mapping[str, Plan], base: Plan = FLOAT, *, what: str = "experiments") -> dict[str, Samples]:
        """What plans score, by name. `base` is the plan that most of them share a front part with.

        Raises
        ------
        OutOfBudgetError
            If the budget does not allow it; nothing was run then.
        """
        found = self.study.evaluator.samples(
            plans, base=base, batches=self.limit, budget=self.budget, what=what, progress=self.progress
        )
        self.known.update({plan: found[name] for name, plan in plans.items()})
        return found

    def gain(self, after: Plan, before: Plan) -> Interval:
        """What `after` is expected to score more than `before`, paired; both have been scored."""
        return statistics.gain(self.known[after], self.known[before], self.known[FLOAT])

    def expected(self, plan: Plan) -> np.ndarray:
        """What a plan is expected to score, a sample each, float64 (N,); it has been scored."""
        return statistics.expected_scores(self.known[FLOAT], self.known[plan])

    def sure(self, gain: Interval) -> bool:
        """Whether a gain is more than zero, and that is no chance."""
        return gain.sure(self.tolerance)

    @property
    def samples(self) -> int:
        """Samples that the scores are on."""
        return len(next(iter(self.known.values()))) if self.known else 0
