"""Experiments: many plans scored on the same samples, each from where it parts from a base."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from qkit.lanes import Lane, run_lanes
from qkit.loading import batches
from qkit.metrics import Interval, paired_interval, score_batch
from qkit.plan import FLOAT, Plan
from qkit.progress import Bar
from qkit.rescore import first_difference
from qkit.sensitivity import MEMORY_BUDGET, run_from_base

if TYPE_CHECKING:
    from qkit.study import Study

logger = logging.getLogger(__name__)


class OutOfBudgetError(Exception):
    """The next experiment would exceed the budget; what was found so far stands."""


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
        Most evaluations to spend; None for no bound.
    spent
        Evaluations made so far: one plan scored on all samples counts as one, however little of it had to be computed.
    """

    study: Study
    limit: int | None = None
    budget: int | None = None
    progress: bool = True
    spent: int = 0
    known: dict[Plan, np.ndarray] = field(default_factory=dict)

    def scores(self, plans: Mapping[str, Plan], base: Plan = FLOAT, *, what: str = "experiments") -> dict[str, np.ndarray]:
        """Per-sample scores, float64 (N,), by name. `base` is the plan that most of them share a front part with.

        Raises
        ------
        OutOfBudgetError
            If the budget does not allow it; nothing was run then.
        """
        todo = {plan: name for name, plan in plans.items() if plan not in self.known}
        if todo and self.budget is not None and self.spent + len(todo) > self.budget:
            raise OutOfBudgetError(f"{what}: {len(todo)} more evaluations, {self.budget - self.spent} left")
        if todo:
            self._run(todo, base, what)
            self.spent += len(todo)
        return {name: self.known[plan] for name, plan in plans.items()}

    def _run(self, todo: Mapping[Plan, str], base: Plan, what: str) -> None:
        graph, metric = self.study.graph, self.study.metric
        end = len(graph.steps)

        def start(plan: Plan) -> int:
            first = first_difference(graph, base, plan)
            return end - 1 if first is None else first

        lanes = sorted(((start(plan), Lane(str(i), plan)) for i, plan in enumerate(todo)), key=lambda pair: pair[0])
        order = list(todo)
        rows: list[list[np.ndarray]] = [[] for _ in order]
        source = batches(self.study.evaluation, self.limit)
        total = source.__length_hint__() * len(lanes) or None
        with Bar(what, total, unit="lane", show=self.progress) as bar:
            for batch in source:
                reference = run_lanes(graph, [Lane("float")], batch.inputs)["float"] if metric == "agreement" else None
                outputs = run_from_base(graph, batch, base, lanes, MEMORY_BUDGET, bar)
                for i, row in enumerate(rows):
                    row.append(score_batch(metric, outputs[str(i)], batch.targets, reference, batch.size))
        self.known.update({plan: np.concatenate(row) for plan, row in zip(order, rows, strict=True)})

    def gain(self, after: Plan, before: Plan) -> Interval:
        """What `after` scores more than `before`, paired; both have been scored."""
        return paired_interval(self.known[after], self.known[before])

    @property
    def samples(self) -> int:
        """Samples that the scores are on."""
        return len(next(iter(self.known.values()))) if self.known else 0
