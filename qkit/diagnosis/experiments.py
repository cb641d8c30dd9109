"""Experiments: many plans scored on the same samples, each from where it parts from a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qkit.execution.evaluator import Budget
from qkit.execution.metrics import Interval, paired_interval
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
        What has been asked for: scores per sample, float64 (N,).
    """

    study: Study
    limit: int | None = None
    budget: Budget = field(default_factory=Budget)
    progress: bool = True
    known: dict[Plan, np.ndarray] = field(default_factory=dict)

    def scores(self, plans: Mapping[str, Plan], base: Plan = FLOAT, *, what: str = "experiments") -> dict[str, np.ndarray]:
        """Per-sample scores, float64 (N,), by name. `base` is the plan that most of them share a front part with.

        Raises
        ------
        OutOfBudgetError
            If the budget does not allow it; nothing was run then.
        """
        found = self.study.evaluator.scores(
            plans, base=base, batches=self.limit, budget=self.budget, what=what, progress=self.progress
        )
        self.known.update({plan: found[name] for name, plan in plans.items()})
        return found

    def gain(self, after: Plan, before: Plan) -> Interval:
        """What `after` scores more than `before`, paired; both have been scored."""
        return paired_interval(self.known[after], self.known[before])

    @property
    def samples(self) -> int:
        """Samples that the scores are on."""
        return len(next(iter(self.known.values()))) if self.known else 0
