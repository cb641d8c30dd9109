"""The search: a ranking by experiment, the shortest prefix that reaches the target, then everything out that is not needed.

1. One layer in 16 bits and all others narrow, and one layer narrow and all others in 16 bits, for every layer: two rankings
   by what a layer gains per multiply-accumulate, or per microsecond that it takes longer. The score of a few hundred samples
   is coarse, and in a network that 8 bits ruin no single layer moves it, so that ties are broken by the output's error
   against float.
2. The shortest prefix of each ranking that reaches the target, by bisection, and a ladder of prefixes for the front.
3. Layers leave the cheaper of the two, as many at once as the target allows, those first that matter least.
4. A layer is exchanged for a cheaper one outside, if that does; what is faster in 16 bits comes in; and 3 again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qkit.errors import QkitError
from qkit.execution.loading import batches as loader_batches
from qkit.execution.metrics import Metric, unlabelled
from qkit.execution.statistics import mean_interval, paired_interval
from qkit.mixed.costs import Costs
from qkit.mixed.settings import Mixed, Network, Setting, network

if TYPE_CHECKING:
    from qkit.study import Study


from collections.abc import Iterable

from qkit.execution.evaluator import Budget, Evaluator, OutOfBudgetError
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
        How many sets may be tried.
    known
        What has been tried.
    exact
        The float lane's scores per sample, float64 (N,), once something has been tried.
    """

    network: Network
    evaluator: Evaluator
    limit: int | None
    budget: Budget = field(default_factory=Budget)
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
        left = self.budget.left
        room = len(todo) if left is None else left
        if todo[:room]:
            plans = {chosen: self.network.plan(chosen) for chosen in todo[:room]}
            self.budget.take(plans.values(), what)
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


logger = logging.getLogger(__name__)

#: Loss against float that is accepted where no target is given: half a point of a share.
TOLERANCE = 0.005
#: Standard errors that a score has to exceed the target by.
CAUTION = 1.0
#: Prefixes tried at a time, which share what they have in common.
_AT_ONCE = 8
#: Layers outside that are tried in place of one inside.
_SUBSTITUTES = 6
#: Points of the front that are scored on the evaluation data.
_FRONT = 16
#: Sets are alike whose errors' natural logarithms differ by no more.
_ALIKE = 0.2
_EPSILON = 1e-12


@dataclass(eq=False)
class _Search:
    """One search; `best` is the cheapest set so far that reaches the target, at all times."""

    network: Network
    trials: Trials
    target: float
    caution: float
    best: Chosen | None = None
    ranking: list[int] = field(default_factory=list)

    def reaches(self, chosen: Chosen) -> bool:
        """Whether a set that was tried reaches the target."""
        return self.trials[chosen].score >= self.target - _EPSILON

    def try_all(self, sets: Sequence[Chosen], near: Chosen, what: str) -> None:
        """Try the sets and choose the best anew."""
        try:
            self.trials.run(sets, near, what)
        finally:
            if self.network.choices in self.trials.known:
                self._choose()

    def credits(self) -> dict[Chosen, float]:
        """What is to be believed of every set's score.

        Of hundreds of sets scored on the same few samples the cheapest that reaches the target is a lucky one. Sets with about
        the same output error should do about as well: no set gets more credit than they score on average, nor more than its own
        score less as many standard errors of its difference from float as `caution` says.
        """
        if not self.caution:
            return {s: trial.score for s, trial in self.trials.known.items()}
        order = sorted(self.trials.known, key=lambda s: (self.trials[s].error, sorted(s)))
        errors = np.log(np.array([self.trials[s].error for s in order]) + 1e-30)
        sums = np.concatenate([[0.0], np.cumsum([self.trials[s].score for s in order])])
        first, last = np.searchsorted(errors, errors - _ALIKE, "left"), np.searchsorted(errors, errors + _ALIKE, "right")
        means = (sums[last] - sums[first]) / (last - first)
        off = {s: self.caution * _standard_error(self.trials[s].scores, self.trials.exact) for s in order}
        return {s: min(self.trials[s].score - off[s], float(mean)) for s, mean in zip(order, means, strict=True)}

    def _choose(self) -> None:
        reaching = [s for s, credit in self.credits().items() if credit >= self.target - _EPSILON]
        # with nothing and everything in 16 bits there was no choice, and so no luck
        reaching += [s for s in (Chosen(), self.network.choices) if self.reaches(s)]
        self.best = min(reaching, key=self._order, default=None)

    def _order(self, chosen: Chosen) -> tuple[float, float, float, list[int]]:
        return self.network.cost(chosen), -self.trials[chosen].score, self.trials[chosen].error, sorted(chosen)

    def run(self) -> None:
        """All stages."""
        rankings = self._rankings()
        for ranking in rankings:
            self._prefix(ranking)
        assert self.best is not None
        # the one whose prefix did better leads from here on
        self.ranking = max(rankings, key=self._overlap)
        while True:
            before = self.best
            self._eliminate()
            self._exchange()
            self._hasten()
            if self.best == before:
                return

    def _overlap(self, ranking: Sequence[int]) -> int:
        assert self.best is not None
        return len(self.best.intersection(ranking[: len(self.best)]))

    def _rankings(self) -> list[list[int]]:
        everything = self.network.choices
        layers = sorted(everything)
        alone = {i: frozenset([i]) for i in layers}
        spared = {i: everything - {i} for i in layers}
        self.try_all(list(alone.values()), frozenset(), "one layer in 16 bits")
        self.try_all(list(spared.values()), everything, "one layer narrow")
        none, everywhere = self.trials[frozenset()], self.trials[everything]

        def by(gain: Callable[[int], tuple[float, float]]) -> list[int]:
            # what costs nothing, or less, comes before all else if it gains anything, and last if it harms
            least = 1e-6 * max(abs(self.network.layers[i].cost) for i in layers)
            per = {i: tuple(g / max(self.network.layers[i].cost, least) for g in gain(i)) for i in layers}
            return sorted(layers, key=lambda i: per[i], reverse=True)

        def first(i: int) -> tuple[float, float]:
            trial = self.trials[alone[i]]
            return _clear(trial.scores, none.scores), none.error - trial.error

        def last(i: int) -> tuple[float, float]:
            trial = self.trials[spared[i]]
            return _clear(everywhere.scores, trial.scores), trial.error - everywhere.error

        return [by(last), by(first)]

    def _prefix(self, ranking: Sequence[int]) -> None:
        """The shortest prefix that reaches the target, several tried at a time; the score is taken to grow with it."""
        low, high = 0, len(ranking)
        while high - low > 1:
            inner = np.unique(np.linspace(low, high, _AT_ONCE + 2).round().astype(int))
            sizes = [int(n) for n in inner if low < n < high]
            sets = {n: frozenset(ranking[:n]) for n in sizes}
            self.try_all(list(sets.values()), frozenset(ranking), "layers by rank")
            credit = self.credits()
            high = min((n for n in sizes if credit[sets[n]] >= self.target - _EPSILON), default=high)
            low = max((n for n in sizes if n < high), default=low)

    def _eliminate(self) -> None:
        """Take out what is not needed and not free: each layer alone first, then as many together as may go, those first that
        matter least.
        """
        current = None
        while self.best and self.best != current:
            current = self.best
            without = {i: current - {i} for i in current if self.network.layers[i].cost > 0.0}
            self.try_all(list(without.values()), current, "without one of them")
            free = [i for i in without if self.reaches(without[i])]
            harm = {i: self.trials[without[i]].error - self.trials[current].error for i in free}
            free.sort(key=lambda i: (harm[i] / self.network.layers[i].cost, -self.network.layers[i].cost, i))
            together = [current.difference(free[:n]) for n in range(2, len(free) + 1)]
            for start in range(0, len(together), _AT_ONCE):
                part = together[start : start + _AT_ONCE]
                self.try_all(part, current, "without several of them")
                if not any(map(self.reaches, part)):
                    break

    def _exchange(self) -> None:
        """Exchange one layer for a cheaper one outside, or for two."""
        assert self.best is not None
        current = self.best
        for i in sorted(current, key=lambda i: -self.network.layers[i].cost):
            room = self.network.layers[i].cost
            outside = [j for j in self.ranking if j not in current and self.network.layers[j].cost < room][:_SUBSTITUTES]
            sets = [current - {i} | {j} for j in outside]
            sets += [current - {i} | set(two) for two in pairwise(outside) if self.network.cost(two) < room]
            self.try_all(sets, current, "one for another")
            if self.best != current:
                return

    def _hasten(self) -> None:
        """Take in what is faster in 16 bits than it is: all of it, or one layer."""
        assert self.best is not None
        current = self.best
        outside = [i for i in sorted(self.network.choices - current) if self.network.layers[i].cost < 0.0]
        if outside:
            sets = [current.union(outside), *(current | {i} for i in outside)]
            self.try_all(sets, current, "faster in 16 bits")


def _standard_error(scores: np.ndarray, exact: np.ndarray | None) -> float:
    """Of the mean difference from float."""
    if exact is None or len(scores) < 2:
        return 0.0
    return float((exact - scores).std(ddof=1) / math.sqrt(len(scores)))


def _clear(better: np.ndarray, worse: np.ndarray) -> float:
    """A difference of scores where it is more than chance, else 0: a tie, which the error decides."""
    gain = paired_interval(better, worse)
    return gain.value if gain.low > 0.0 or gain.high < 0.0 else 0.0


def search(
    study: Study,
    *,
    target: float | None = None,
    tolerance: float = TOLERANCE,
    caution: float = CAUTION,
    costs: Costs | None = None,
    batches: int | None = None,
    select: Literal["calibration", "evaluation"] = "calibration",
    budget: int | None = None,
    executor: Executor | None = None,
    progress: bool = True,
) -> Mixed:
    """Find the 16-bit layers that reach a score at the least cost: microseconds on a device, or multiply-accumulates.

    What is searched is a heuristic's answer, not a proven minimum. It is chosen on one part of the data and scored on another,
    so that the score of the answer is not flattered by the search.

    Parameters
    ----------
    study
        Its plan is the narrow one; its scheme at 16 bits, calibrated by the same methods, the wide one.
    target
        The score to reach; by default the float lane's on the same data, less `tolerance`.
    tolerance
        Loss against float that is accepted.
    caution
        Standard errors by which the score has to exceed the target in the search, since the best of many sets is flattered by
        the samples that it was chosen on; 0 takes scores as they are.
    costs
        What layers take at either width. The sum over all layers is the network's time: what an engine does to layers together
        is not in it. By default a layer costs its multiply-accumulates.
    batches
        Batches to take of the selection data and of the evaluation data; all by default.
    select
        Data that the search scores on: "calibration", or "evaluation", which the result says, since its score then is flattered.
        Where the calibration data have no targets, the score to search by is agreement with the float lane.
    budget
        Most sets of layers to score in the search; by default ten for every layer, and 100.
    executor
        Whose workers score, see `Study.with_executor`.

    Returns
    -------
    Mixed
        With the plan, the front of cost against score, and baselines.

    Raises
    ------
    QkitError
        If nothing is narrower than 16 bits, an argument is none of those above, or `costs` do not fit the network.
    """
    if select not in ("calibration", "evaluation"):
        raise QkitError(f"select is 'calibration' or 'evaluation', not {select!r}.")
    if not tolerance >= 0.0:
        raise QkitError(f"tolerance={tolerance}: give a loss of 0 or more that is accepted against float.")
    if not 0.0 <= caution <= 5.0:
        raise QkitError(f"caution={caution}: give a number of standard errors, 0 to 5.")
    if budget is not None and budget < 2:
        raise QkitError(f"budget={budget}: at least 2 sets have to be scored, none and all of the layers in 16 bits.")
    study = study if executor is None else study.with_executor(executor)
    net = network(study.graph, study.plan, study.lane("int16"), costs)
    loader = study.calibration if select == "calibration" else study.evaluation
    metric, remarks = _selection_metric(study, loader, select)
    remarks += net.remarks
    count = len(net.choices)
    budget = 10 * count + 100 if budget is None else budget
    trials = Trials(net, study.evaluator.on(loader, metric), batches, Budget(budget), progress)
    logger.info(
        "mixed precision: about %d sets of %d layers will be scored on the %s data, %d at most; then up to %d baselines and the "
        "front on the evaluation data.", min(5 * count + 30, budget), count, select, budget, 3 * count + 5,
    )  # fmt: skip
    everything, nothing = net.choices, Chosen()
    trials.run([nothing, everything], nothing, "all and none in 16 bits")
    goal = trials.float_score - tolerance if target is None else target
    finder = _Search(net, trials, goal, caution)
    finder.try_all([nothing, everything], nothing, "all and none in 16 bits")
    remarks += _widths(net, trials, finder)
    ended = ""
    if finder.best is not None and (finder.best != nothing or any(layer.cost < 0.0 for layer in net.layers)):
        try:
            finder.run()
        except OutOfBudgetError:
            ended = f"The budget of {budget} sets was used up: the best set so far is given."
    remarks += [ended] if ended else []
    return _result(study, finder, target, tolerance, batches, select, remarks, progress=progress)


def _selection_metric(study: Study, loader: Any, select: str) -> tuple[Metric, list[str]]:
    remarks = []
    if loader is study.evaluation:
        remarks.append("The layers were chosen on the evaluation data: their score on it is flattered by the choice.")
    first = next(iter(loader_batches(loader)))
    metric = study.metric if first.targets is not None else unlabelled(study.metric)
    if metric != study.metric:
        remarks.append(f"The {select} data have no targets: the layers were chosen by {metric} with the float lane.")
    return metric, remarks


def _widths(net: Network, trials: Trials, finder: _Search) -> list[str]:
    """What the biases' and accumulators' widths do by themselves, which come with the first 16-bit layer."""
    wide = net.widened(net.base)
    if wide == net.base or finder.best == Chosen():
        return []
    trial = trials.plan(wide, "wider biases")
    if paired_interval(trial.scores, trials[Chosen()].scores).low <= 0.0:
        return []
    return [
        f"Wider biases and accumulators alone, which come with any 16-bit layer, bring {trial.score:.4g} instead of "
        f"{trials[Chosen()].score:.4g}: look at bias_bits and accumulator_bits first."
    ]


def _result(
    study: Study, finder: _Search, target: float | None, tolerance: float, limit: int | None, select: str,
    remarks: list[str], *, progress: bool,
) -> Mixed:  # fmt: skip
    """Baselines, the front, and everything of it on the evaluation data."""
    net, trials = finder.network, finder.trials
    everything = net.choices
    chosen = everything if finder.best is None else finder.best
    if finder.best is None:
        remarks.append(
            f"All layers in 16 bits score {trials[everything].score:.4g} on the {select} data and miss the target of "
            f"{finder.target:.4g}: it is not the width of the layers; study.diagnose() says what it is."
        )
    scored = trials.spent
    trials.budget = Budget()
    sets = _baselines(finder)
    # a search that its budget ended early is no worse than the rules of thumb that it is compared with
    if finder.best is not None:
        cheaper = [layers for layers in sets.values() if finder.reaches(layers) and net.cost(layers) < net.cost(chosen)]
        if cheaper:
            chosen = finder.best = min(cheaper, key=net.cost)
            rule = next(name for name, layers in sets.items() if layers == chosen)
            remarks.append(
                f"What is found is the baseline {rule!r}: the search had found nothing cheaper before its budget ended."
            )
    front = _front(finder)
    judge = Trials(net, study.evaluator, limit, progress=progress)
    judge.run([Chosen(), everything, chosen, *sets.values(), *front], chosen, "on the evaluation data")
    assert judge.exact is not None
    goal = judge.float_score - tolerance if target is None else target

    def setting(name: str, layers: Chosen) -> Setting:
        scores = judge[layers].scores
        return Setting(
            name,
            tuple(net.layers[i].name for i in sorted(layers)),
            net.total(layers),
            net.share(layers),
            trials[layers].score,
            mean_interval(scores),
            paired_interval(judge.exact, scores),  # type: ignore[arg-type]
            bool(scores.mean() >= goal - _EPSILON),
        )

    found = setting("found", chosen)
    if finder.best is not None and not found.reached:
        remarks.append(
            f"The set reaches the target on the {select} data ({len(trials[chosen].scores)} samples) and misses it on the "
            f"evaluation data: {found.evaluation.value:.4g} of {goal:.4g}. More images to select on, a smaller tolerance, or a "
            "dearer set of the front help."
        )
    for remark in remarks:
        logger.warning("%s", remark)
    return Mixed(
        plan=net.plan(chosen),
        found=found,
        front=tuple(setting(f"front {n}", layers) for n, layers in enumerate(front, 1)),
        baselines=tuple(setting(name, layers) for name, layers in sets.items()),
        float_score=mean_interval(judge.exact),
        float_selection=trials.float_score,
        target=goal,
        selection_target=finder.target,
        metric=study.metric_name,
        selection_metric=trials.evaluator.metric_name,
        units=study.metric.units,
        select=select,
        unit=net.unit,
        costs={layer.name: layer.cost for layer in net.layers},
        scored=scored,
        remarks=tuple(remarks),
    )


def _baselines(finder: _Search) -> dict[str, Chosen]:
    """None, all, the ends, and the ends growing until the target is reached; what lies between two layers goes along."""
    net, everything = finder.network, finder.network.choices
    marks = [i for i, layer in enumerate(net.layers) if layer.weighted] or list(range(len(net.layers)))
    count = len(marks)

    def head(k: int) -> Chosen:
        return frozenset(range(marks[k - 1] + 1)) & everything if k else Chosen()

    def tail(k: int) -> Chosen:
        return frozenset(range(marks[count - k], len(net.layers))) & everything if k else Chosen()

    def ends(k: int) -> Chosen:
        return head(k) | tail(k)

    sets = {"none": Chosen(), "all": everything, "first": head(1), "last": tail(1), "first and last": ends(1)}
    finder.trials.run(sets.values(), Chosen(), "baselines")
    for name, grow, near in (("first {}", head, everything), ("last {}", tail, Chosen()), ("first and last {}", ends, Chosen())):
        grown = {k: grow(k) for k in range(1, count + 1)}
        for start in range(1, count + 1, _AT_ONCE):
            part = {k: grown[k] for k in range(start, min(start + _AT_ONCE, count + 1))}
            finder.trials.run(part.values(), near, "baselines")
            reached = next((k for k, layers in part.items() if finder.reaches(layers)), None)
            if reached is not None:
                sets[name.format(reached)] = part[reached]
                break
    return sets


def _front(finder: _Search) -> list[Chosen]:
    """Sets that none other beats in both cost and score, the cheapest first."""
    known, credit = finder.trials.known, finder.credits()
    order = sorted(known, key=lambda s: (finder.network.cost(s), -credit[s], known[s].error, sorted(s)))
    front: list[Chosen] = []
    for chosen in order:
        if not front or credit[chosen] > credit[front[-1]] + _EPSILON:
            front.append(chosen)
    if len(front) > _FRONT:
        kept = {int(n) for n in np.linspace(0, len(front) - 1, _FRONT).round()}
        front = [s for n, s in enumerate(front) if n in kept or s == finder.best]
    return front
