"""How much of the loss a few tensors explain together: the first k of a ranking quantized, or spared, measured.

What tensors cost alone does not add up to what they cost together. So every figure here is measured: the first k together, each
of them alone, and the whole plan. The difference between the first two is called interaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from qkit.errors import QkitError
from qkit.execution.evaluator import MEMORY_BUDGET, Evaluator
from qkit.execution.gradient import rank_by_gradient
from qkit.execution.sensitivity import Mode
from qkit.execution.statistics import Interval, mean_interval, paired_interval
from qkit.quant.plan import FLOAT, Plan
from qkit.style import PLAIN, Units

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture

__all__ = ["FIRST", "Ranking", "Together", "explained"]

Ranking = Literal["gradient", "measured"]

#: Tensors that are taken where no number is asked for.
FIRST = 10


@dataclass(frozen=True, eq=False)
class Together:
    """What the first k tensors of a ranking cost together, for every k.

    Attributes
    ----------
    mode
        "only": these quantized and the rest float; "except": these float and the rest quantized.
    metric
        Name of the score.
    tensors
        The first ones of the ranking.
    alone, together
        float64 (K, N): per-sample scores with the k-th tensor quantized (or spared) alone, and with the first k.
    exact, whole
        float64 (N,): scores of float and of the whole plan.
    units
        How scores and losses are shown.
    """

    mode: Mode
    metric: str
    tensors: tuple[str, ...]
    alone: np.ndarray
    together: np.ndarray
    exact: np.ndarray
    whole: np.ndarray
    units: Units = PLAIN

    @property
    def loss(self) -> Interval:
        """What the whole plan loses; paired interval."""
        return paired_interval(self.exact, self.whole)

    def _effects(self, scores: np.ndarray) -> np.ndarray:
        return np.asarray(self.exact - scores if self.mode == "only" else scores - self.whole)

    def effect(self, k: int) -> Interval:
        """What the first k tensors lose together ("only"), or what sparing them recovers ("except"); paired interval."""
        first, second = (self.exact, self.together[k - 1]) if self.mode == "only" else (self.together[k - 1], self.whole)
        return paired_interval(first, second)

    def interaction(self, k: int) -> Interval:
        """The effect of the first k together less the sum of their effects alone; paired interval.

        Below zero where they cost the same decisions, above where it takes several to change one.
        """
        effects = self._effects(self.together[k - 1])
        return paired_interval(effects, effects if k == 1 else self._effects(self.alone[:k]).sum(0))

    def rest(self, k: int) -> Interval:
        """What of the whole plan's loss the first k do not explain; paired interval."""
        return paired_interval(self.exact - self.whole, self._effects(self.together[k - 1]))

    def table(self) -> pd.DataFrame:
        """A row per tensor, in the order of the ranking.

        Columns: ``alone``, what it loses (or recovers) by itself; ``together`` with all above it, with a 95 % interval, and as a
        ``share`` of the whole plan's loss; ``sum`` of what they lose alone; ``interaction``, the difference of the two, with
        its interval; ``rest``, what of the whole loss is left.
        """
        loss, total, rows = self.loss.value, 0.0, {}
        for at, tensor in enumerate(self.tensors):
            alone = float(self._effects(self.alone[at]).mean())
            total += alone
            effect, apart = self.effect(at + 1), self.interaction(at + 1)
            rows[tensor] = {
                "alone": alone, "together": effect.value, "together low": effect.low, "together high": effect.high,
                "share": effect.value / loss if loss else float("nan"), "sum": total, "interaction": apart.value,
                "interaction low": apart.low, "interaction high": apart.high, "rest": self.rest(at + 1).value,
            }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("tensor")

    def plot(self) -> Picture:
        """What the first k lose together beside the sum of what they lose alone, as a picture."""
        from qkit.figures import curves
        from qkit.figures.drawing import picture

        words = f"what the first {len(self.tensors)} tensors lose together"
        return picture(curves.together, self, words=words, height=4.2)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, tensors in the order of the ranking."""
        return {
            "mode": self.mode,
            "metric": self.metric,
            "float": mean_interval(self.exact).to_dict(),
            "loss": self.loss.to_dict(),
            "tensors": [
                {
                    "tensor": tensor,
                    "alone": float(self._effects(self.alone[at]).mean()),
                    "together": self.effect(at + 1).to_dict(),
                    "interaction": self.interaction(at + 1).to_dict(),
                    "rest": self.rest(at + 1).to_dict(),
                }
                for at, tensor in enumerate(self.tensors)
            ],
        }

    def __repr__(self) -> str:
        count = len(self.tensors)
        said = "lose" if self.mode == "only" else "recover when spared"
        whole, part = self.loss, self.effect(count)
        show = self.units.loss
        return f"Together(the first {count} tensors {said} {show(part.value)} of {show(whole.value)} {self.units.points})"

    def _repr_html_(self) -> str:
        return str(self.table().to_html(float_format="{:.4f}".format))


def explained(
    evaluator: Evaluator,
    plan: Plan,
    *,
    first: int = FIRST,
    ranking: Ranking | Sequence[str] = "gradient",
    mode: Mode = "only",
    batches: int | None = None,
    memory_budget: int = MEMORY_BUDGET,
    progress: bool = True,
) -> Together:
    """What the first tensors of a ranking lose together, measured with the first 1, 2, … of them.

    Parameters
    ----------
    first
        Tensors to take; as many as there are where there are fewer.
    ranking
        "gradient" for `rank_by_gradient`; "measured" scores every tensor alone, which takes about half as many passes as there
        are tensors; or names of tensors in an order of your own.
    mode
        "only": the first k are quantized and the rest float; "except": they are float and the rest is quantized.
    batches
        Batches to take; None for all.
    memory_budget
        See `Evaluator.samples`.

    Raises
    ------
    QkitError
        For another mode or ranking, no tensor, one named twice, or one without a grid.
    DataError
        If the data are empty or do not fit.
    """
    if mode not in ("only", "except"):
        raise QkitError(f"mode is 'only' (the first tensors quantized) or 'except' (the first tensors spared), not {mode!r}.")
    if isinstance(first, bool) or not isinstance(first, int) or first < 1:
        raise QkitError(f"first= is how many tensors are taken, at least 1, not {first!r}.")
    if not plan.grids:
        raise QkitError("the plan quantizes nothing, so that there is no loss to explain: pass a plan with grids.")
    part: Callable[[Sequence[str]], Plan] = plan.only if mode == "only" else plan.without
    base = FLOAT if mode == "only" else plan

    def scores(what: str, lanes: dict[str, Plan]) -> dict[str, np.ndarray]:
        return evaluator.scores(lanes, base=base, batches=batches, memory_budget=memory_budget, what=what, progress=progress)

    order: list[str]
    if isinstance(ranking, str):
        if ranking == "gradient":
            order = rank_by_gradient(
                evaluator.graph, evaluator.data, plan, evaluator.metric, limit=batches, progress=progress
            ).order
        elif ranking == "measured":
            found = scores("every tensor alone", {tensor: part([tensor]) for tensor in plan.grids})
            worst = {tensor: float(found[tensor].mean()) for tensor in found}
            order = sorted(worst, key=worst.__getitem__, reverse=mode == "except")
        else:
            raise QkitError(f"ranking is 'gradient', 'measured' or names of tensors in their order, not {ranking!r}.")
    else:
        order = list(ranking)
        missing = [name for name in order if name not in plan.grids]
        if missing or not order or len(set(order)) < len(order):
            which = f"has no grid for {', '.join(map(repr, missing))}" if missing else "is asked for none, or for one twice"
            raise QkitError(f"the plan {which}: ranking= names tensors of plan.grids, each once.")
    chosen = order[:first]
    alone = {f"alone {tensor}": part([tensor]) for tensor in chosen}
    joint = {f"first {k}": part(chosen[:k]) for k in range(1, len(chosen) + 1)}
    measured = scores(f"the first {len(chosen)} tensors", {"float": FLOAT, "whole": plan, **alone, **joint})
    return Together(
        mode, evaluator.metric_name, tuple(chosen), np.stack([measured[name] for name in alone]),
        np.stack([measured[name] for name in joint]), measured["float"], measured["whole"], evaluator.metric.units,
    )  # fmt: skip
