"""What the tuner has measured: scores of plans and of float, what plans do to tensors, and how that reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from qkit.execution.metrics import metric_label
from qkit.execution.prefix import Effect
from qkit.execution.statistics import Interval, mean_interval, paired_interval
from qkit.quant.plan import FLOAT, Plan
from qkit.style import Units, decibels
from qkit.widgets.numbers import change_words

if TYPE_CHECKING:
    from qkit.study import Study


@dataclass(eq=False)
class Measured:
    """Effects by tensor and plan, and per-sample scores by plan; `FLOAT` among them."""

    effects: dict[tuple[str, Plan], Effect] = field(default_factory=dict)
    scores: dict[Plan, np.ndarray] = field(default_factory=dict)

    def missing(self, tensor: str, *plans: Plan) -> list[Plan]:
        """Those whose effect on the tensor is not known."""
        return [plan for plan in dict.fromkeys(plans) if (tensor, plan) not in self.effects]

    def add(self, found: Measured) -> None:
        """Take over what another has."""
        self.effects |= found.effects
        self.scores |= found.scores

    def loss(self, plan: Plan, against: Plan) -> Interval | None:
        """The gain of a plan over another, paired; None until both are scored."""
        if plan not in self.scores or against not in self.scores:
            return None
        return paired_interval(self.scores[plan], self.scores[against])

    def card(self, study: Study, plan: Plan, base: Plan, before: Plan | None) -> dict[str, Any]:
        """The score of a plan and of those that it is compared with, as it is written large on the page."""
        units = study.metric.units
        others = {"float": FLOAT, "as opened": base}
        if before is not None and before not in (base, plan):
            others["before"] = before
        others = {name: other for name, other in others.items() if other in self.scores}
        known = self.scores.get(plan)
        score = None if known is None else mean_interval(known)
        return {
            "metric": metric_label(study.metric_name),
            "now": "" if score is None else units.score(score.value),
            "interval": "" if score is None else f"[{units.interval(score.low, score.high)}]",
            "unit": f", {units.points}" if units.points else "",
            "lines": [[name, self._score(other, units), self._change(plan, other, units)] for name, other in others.items()],
            "note": "" if score is None else f"on {score.n} evaluation samples.",
        }

    def _score(self, plan: Plan, units: Units) -> str:
        return units.score(mean_interval(self.scores[plan]).value)

    def _change(self, plan: Plan, other: Plan, units: Units) -> str:
        change = None if plan == other else self.loss(plan, other)
        return "" if change is None else change_words(change, units).replace(f" {units.points} ", " ")

    def rows(self, tensor: str, plan: Plan, before: Plan | None, base: Plan) -> list[list[str]]:
        """The layer's error with what it inherits, and the output's: of a plan, of the one before, of the first."""
        effects = [None if p is None else self.effects.get((tensor, p)) for p in (plan, before, base)]
        if not any(effects):
            return []

        return [
            ["layer, accumulated", *("" if e is None else f"{decibels(e.layer)} dB" for e in effects)],
            ["network's output", *("" if e is None else f"{decibels(e.output)} dB" for e in effects)],
        ]


def measure(study: Study, tensor: str, plans: list[Plan], batches: int | None) -> Measured:
    """Effects of plans on a tensor and their scores, and float's."""
    found = Measured()
    for plan in plans:
        effect = found.effects[tensor, plan] = study.effect(tensor, plan, batches=batches)
        found.scores[plan] = effect.scores
    found.scores[FLOAT] = study.evaluator.scores({"float": FLOAT}, batches=batches, progress=False)["float"]
    return found
