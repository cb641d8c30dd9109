"""Sets of 16-bit layers put to the test: scores and output errors on given data, each set once, together in lanes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from qkit.execution.evaluator import Evaluator, OutOfBudgetError
from qkit.mixed.layers import Network
from qkit.quant.plan import FLOAT, Plan

Chosen = frozenset[int]


@dataclass(frozen=True, eq=False)
class Trial:
    """What a set did: scores per sample, float64 (N,), and the output's relative squared error against float."""

    scores: np.ndarray
    error: float

    @property
    def score(self) -> float:
        """The mean."""
        return float(self.scores.mean())


@dataclass(eq=False)
class Trials:
    """Tries sets on one evaluator's data and remembers them.

    Attributes
    ----------
    network, evaluator, limit
        What runs, what scores it, and batches at most.
    budget
        Most sets to try; None for no bound.
    known
        What has been tried.
    exact
        The float lane's scores per sample, float64 (N,), once something has been tried.
    """

    network: Network
    evaluator: Evaluator
    limit: int | None
    budget: int | None = None
    progress: bool = True
    known: dict[Chosen, Trial] = field(default_factory=dict)
    exact: np.ndarray | None = None

    def __getitem__(self, chosen: Chosen) -> Trial:
        return self.known[chosen]

    @property
    def spent(self) -> int:
        """Sets tried."""
        return len(self.known)

    @property
    def float_score(self) -> float:
        """The float lane's mean score; something has been tried."""
        assert self.exact is not None
        return float(self.exact.mean())

    def run(self, sets: Iterable[Chosen], near: Chosen, what: str) -> None:
        """Try those of the sets that are new, from where each parts from the set `near`.

        Raises
        ------
        OutOfBudgetError
            If they were too many; the first ones that the budget allowed have been tried.
        """
        todo = [chosen for chosen in dict.fromkeys(sets) if chosen not in self.known]
        room = len(todo) if self.budget is None else max(self.budget - self.spent, 0)
        if todo[:room]:
            plans = {chosen: self.network.plan(chosen) for chosen in todo[:room]}
            found = self._tried(list(plans.values()), self.network.plan(near), what)
            self.known.update(zip(plans, found, strict=True))
        if room < len(todo):
            raise OutOfBudgetError

    def plan(self, plan: Plan, what: str) -> Trial:
        """A plan that is no set of layers; not remembered as one."""
        return self._tried([plan], plan, what)[0]

    def _tried(self, plans: list[Plan], base: Plan, what: str) -> list[Trial]:
        lanes = {"float": FLOAT, **{str(i): plan for i, plan in enumerate(plans)}}
        scores = self.evaluator.scores(lanes, base=base, batches=self.limit, errors=True, what=what, progress=self.progress)
        self.exact = scores["float"]
        return [Trial(scores[str(i)], self.evaluator.error(plan, self.limit)) for i, plan in enumerate(plans)]
