"""Sets of 16-bit layers put to the test: scores and output errors on given data, each set once, together in lanes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from qkit.calibration import check_weights
from qkit.errors import DataError
from qkit.lanes import Lane, run_lanes
from qkit.loading import batches
from qkit.metrics import MetricFunction, score_batch
from qkit.mixed.layers import Network
from qkit.plan import FLOAT, Plan
from qkit.progress import Bar
from qkit.rescore import first_difference
from qkit.sensitivity import MEMORY_BUDGET, run_from_base
from qkit.steps import tensors_in

Chosen = frozenset[int]

#: Float outputs are kept between runs up to this many bytes.
KEPT = 1 << 29


class OutOfBudgetError(Exception):
    """No further set may be tried."""


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
    """Tries sets on one loader and remembers them.

    Attributes
    ----------
    network, loader, limit, metric
        What runs, on which data, batches at most, and the score.
    budget
        Most sets to try; None for no bound.
    known
        What has been tried.
    """

    network: Network
    loader: Iterable[Any]
    limit: int | None
    metric: str | MetricFunction
    budget: int | None = None
    progress: bool = True
    known: dict[Chosen, Trial] = field(default_factory=dict)
    exact: np.ndarray | None = None
    _outputs: dict[int, Any] = field(default_factory=dict)
    _kept: int = 0

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
            exact, found = self._score(list(plans.values()), self.network.plan(near), what)
            self.exact = exact
            self.known.update(zip(plans, found, strict=True))
        if room < len(todo):
            raise OutOfBudgetError

    def plan(self, plan: Plan, what: str) -> Trial:
        """A plan that is no set of layers; not remembered."""
        return self._score([plan], plan, what)[1][0]

    def _score(self, plans: Sequence[Plan], base: Plan, what: str) -> tuple[np.ndarray, list[Trial]]:
        graph = self.network.graph
        check_weights(graph)

        def start(plan: Plan) -> int:
            first = first_difference(graph, base, plan)
            return len(graph.steps) - 1 if first is None else first

        lanes = sorted(((start(plan), Lane(str(i), plan)) for i, plan in enumerate(plans)), key=lambda pair: pair[0])
        rows: list[list[np.ndarray]] = [[] for _ in plans]
        errors: list[list[np.ndarray]] = [[] for _ in plans]
        exact = []
        source = batches(self.loader, self.limit)
        with Bar(what, source.__length_hint__() * len(lanes) or None, unit="set", show=self.progress) as bar:
            for at, batch in enumerate(source):
                reference = self._reference(at, batch.inputs)
                exact.append(score_batch(self.metric, reference, batch.targets, reference, batch.size))
                outputs = run_from_base(graph, batch, base, lanes, MEMORY_BUDGET, bar)
                for i in range(len(plans)):
                    y = outputs[str(i)]
                    rows[i].append(score_batch(self.metric, y, batch.targets, reference, batch.size))
                    errors[i].append(relative_errors(y, reference, batch.size))
        if not exact:
            raise DataError("the loader gave no batch: pass at least one.")
        found = [Trial(np.concatenate(row), float(np.concatenate(error).mean())) for row, error in zip(rows, errors, strict=True)]
        return np.concatenate(exact), found

    def _reference(self, at: int, inputs: tuple[Any, ...]) -> Any:
        if at in self._outputs:
            return self._outputs[at]
        output = run_lanes(self.network.graph, [Lane("float", FLOAT)], inputs)["float"]
        size = sum(t.nbytes for t in tensors_in(output))
        if self._kept + size <= KEPT:
            self._outputs[at], self._kept = output, self._kept + size
        return output


def relative_errors(output: Any, reference: Any, samples: int) -> np.ndarray:
    """Squared error over the reference's energy, a sample each, float64 (N,); the mean over all where outputs are no samples."""
    pairs = list(zip(tensors_in(output), tensors_in(reference), strict=True))
    with torch.no_grad():
        if all(b.ndim and b.shape[0] == samples for _, b in pairs):
            noise = sum((a.double() - b.double()).square().reshape(samples, -1).sum(1) for a, b in pairs)
            energy = sum(b.double().square().reshape(samples, -1).sum(1) for _, b in pairs)
        else:
            noise = sum((a.double() - b.double()).square().sum() for a, b in pairs)
            energy = sum(b.double().square().sum() for _, b in pairs)
        ratio = torch.as_tensor(noise) / torch.as_tensor(energy).clamp_min(1e-30)
    return np.broadcast_to(np.atleast_1d(ratio.cpu().numpy()), (samples,)).copy()
