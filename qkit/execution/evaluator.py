"""What plans score: the one place where they are run over evaluation data, with all that has been found so far.

Everything is kept batch by batch, and a batch counts once it is whole. So an interrupt loses no finished batch and leaves none
that is half done: the same call goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch

from qkit.errors import DataError, QkitError, WorkersError
from qkit.execution.capture import MEMORY_BUDGET as KEEPING
from qkit.execution.capture import Capture, Capturing
from qkit.execution.lanes import Frontier, Lane, run_lanes, run_to
from qkit.execution.loading import Batch, Batches, batches, fingerprint, refuse_non_finite
from qkit.execution.metrics import AnyMetric, Metric, metric_of, score_batch
from qkit.execution.observing import Observations
from qkit.execution.parallel import Workers, chosen, dask_client, parts, shares
from qkit.execution.prefix import Effect, Prefix, agree, first_difference, prefix
from qkit.execution.replay import Replayed, can_be_recorded, copied, recording
from qkit.execution.statistics import Samples
from qkit.execution.worker import Asked, Found, Task
from qkit.graph import Graph
from qkit.graph.smoothing import smoothed
from qkit.graph.structures import float_tensors
from qkit.progress import Bar, uninterrupted
from qkit.quant.calibration import check_weights
from qkit.quant.estimators import Observation
from qkit.quant.plan import FLOAT, Plan

__all__ = ["Budget", "Evaluator", "OutOfBudgetError"]

#: Lanes run together while their live tensors fit in about this many bytes.
MEMORY_BUDGET = 2 << 30
#: The float lane's outputs are kept for later passes up to this many bytes.
OUTPUTS_BUDGET = 1 << 28
#: Name of the lane that the others start from; no layer has an empty one.
_BASE = ""


class OutOfBudgetError(Exception):
    """The next evaluations would exceed the budget; what was found so far stands."""


@dataclass(eq=False)
class Budget:
    """How many plans may be scored; each counts once, also where its scores were known before.

    Attributes
    ----------
    limit
        Most plans; None for no bound.
    counted
        Those so far.
    """

    limit: int | None = None
    counted: set[Plan] = field(default_factory=set)

    @property
    def spent(self) -> int:
        """Plans scored so far."""
        return len(self.counted)

    @property
    def left(self) -> int | None:
        """Plans that may still be scored; None for no bound."""
        return None if self.limit is None else max(self.limit - self.spent, 0)

    def take(self, plans: Iterable[Plan], what: str) -> None:
        """Count these plans.

        Raises
        ------
        OutOfBudgetError
            If they are too many; none is counted then.
        """
        new = {plan for plan in plans if plan not in self.counted}
        if self.left is not None and len(new) > self.left:
            raise OutOfBudgetError(f"{what}: {len(new)} more evaluations, {self.left} left")
        self.counted |= new


@dataclass(eq=False)
class _Passes:
    """What passes over the data found for every metric: how many batches there are, and the float lane's outputs by batch."""

    length: int | None = None
    kept: dict[int, Any] = field(default_factory=dict)
    seen: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    nbytes: int = 0

    def end(self, taken: int, limit: int | None) -> None:
        """A pass over at most `limit` batches took so many."""
        if limit is None or taken < limit:
            self.length = taken

    def check(self, at: int, batch: Batch) -> None:
        """The batch is finite, and the one that stood there in earlier passes.

        Raises
        ------
        DataError
            If it is not: lanes that see other samples cannot be compared.
        """
        if at not in self.seen:
            refuse_non_finite(batch, at)
        self.note(at, fingerprint(batch))

    def note(self, at: int, mark: tuple[Any, ...]) -> None:
        """The batch with this fingerprint, which is finite, is the one that stood there in earlier passes.

        Raises
        ------
        DataError
            If it is not.
        """
        if self.seen.setdefault(at, mark) != mark:
            raise DataError(
                f"the evaluation loader gave another batch {at} than in the pass before, so that lanes would be compared on "
                "different samples: turn off shuffling and random augmentation, or give the sampler a generator with a seed. On "
                "other machines the data have to be the same files, read by the same versions."
            )

    def keep(self, at: int, output: Any) -> None:
        """Keep a batch's output, if there is room."""
        size = sum(t.nbytes for t in float_tensors(output))
        if self.nbytes + size <= OUTPUTS_BUDGET:
            self.kept[at], self.nbytes = output, self.nbytes + size


class Evaluator:
    """Scores plans of one graph on fixed data by one metric, and remembers them.

    What it is made of never changes; other data or another metric make another evaluator.

    Parameters
    ----------
    graph
        The network.
    data
        Iterable of batches to score on; can be iterated repeatedly.
    metric
        See `Study`.
    calibration
        Iterable of batches to observe ranges on; `data` by default.
    executor
        Whose workers score; None for this process. See `qkit.execution.parallel`.
    """

    def __init__(
        self,
        graph: Graph,
        data: Iterable[Any],
        metric: AnyMetric,
        *,
        calibration: Iterable[Any] | None = None,
        executor: Executor | None = None,
    ) -> None:
        self._graph, self._data, self._metric = graph, data, metric_of(metric)
        self._calibration = data if calibration is None else calibration
        self._executor = executor
        self._scores: dict[Plan, dict[int, Samples]] = {}
        self._errors: dict[Plan, dict[int, np.ndarray]] = {}
        self._passes = _Passes()
        self._prefix: tuple[Prefix, int | None] | None = None
        self._observing: dict[int | None, Observations] = {}
        self._others: dict[Hashable, Evaluator] = {}
        self._unfinished: dict[str, tuple[Hashable, Any]] = {}
        self._played: tuple[Asked, Sequence[int], Replayed[dict[str, Any]]] | None = None
        self._workers: WeakKeyDictionary[Executor, Workers] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        # what has been found stays here, and so does the executor
        return Evaluator, (self._graph, self._data, self._metric)

    @property
    def graph(self) -> Graph:
        """The network."""
        return self._graph

    @property
    def data(self) -> Iterable[Any]:
        """The batches that plans are scored on."""
        return self._data

    @property
    def calibration(self) -> Iterable[Any]:
        """The batches that ranges are observed on."""
        return self._calibration

    @property
    def metric(self) -> Metric:
        """The score."""
        return self._metric

    @property
    def metric_name(self) -> str:
        """Name of the score."""
        return self._metric.name

    @property
    def executor(self) -> Executor | None:
        """Whose workers score, where no other is in use (`qkit.execution.parallel.using`); None for this process."""
        return self._executor

    def over(self, executor: Executor | None) -> Evaluator:
        """The same on an executor's workers, or in this process (None); they share all that has been found and will be."""
        if executor is self._executor:
            return self
        other = object.__new__(Evaluator)
        other.__dict__.update(self.__dict__, _executor=executor)
        return other

    def on(
        self,
        data: Iterable[Any] | None = None,
        metric: AnyMetric | None = None,
        *,
        calibration: Iterable[Any] | None = None,
    ) -> Evaluator:
        """An evaluator of the same graph on other data or by another metric: the same for the same, this if nothing differs."""
        data = self._data if data is None else data
        metric = self._metric if metric is None else metric_of(metric)
        calibration = self._calibration if calibration is None else calibration
        if data is self._data and metric == self._metric and calibration is self._calibration:
            return self
        key = id(data), metric, id(calibration)  # each evaluator holds its data, whose id no other can have
        if key not in self._others:
            other = self._others[key] = Evaluator(self._graph, data, metric, calibration=calibration, executor=self._executor)
            if calibration is self._calibration:
                other._observing = self._observing
            if data is self._data:
                other._passes = self._passes
        return self._others[key].over(self._executor)

    # ---------------------------------------------------------------- ranges

    def observe(self, *, batches: int | None = None, progress: bool = True) -> Mapping[str, Observation]:
        """Histograms of every tap on the calibration data, by tap: one float pass over so many batches (all by default), kept.

        Raises
        ------
        DataError
            If the data are empty or do not fit, or a weight or a tap is not finite.
        """
        if batches not in self._observing:
            check_weights(self._graph)
            self._observing[batches] = Observations()
        return self._observing[batches].run(self._graph, self._calibration, limit=batches, progress=progress)

    def observed(self, *, batches: int | None = None) -> Mapping[str, Observation]:
        """What `observe` has found already, by tap; nothing where it has made no pass."""
        seen = self._observing.get(batches)
        return seen.all() if seen is not None and seen.whole else {}

    # ---------------------------------------------------------------- scores

    def known(self, plan: Plan, batches: int | None = None) -> np.ndarray | None:
        """Per-sample scores of a plan that has been scored on so many batches (all by default); None otherwise."""
        rows, count = self._scores.get(plan, {}), self._count(batches)
        return _samples(rows, count).values if count is not None and _all_of(rows, count) else None

    def scores(
        self,
        plans: Mapping[str, Plan],
        *,
        base: Plan = FLOAT,
        batches: int | None = None,
        budget: Budget | None = None,
        errors: bool = False,
        memory_budget: int = MEMORY_BUDGET,
        what: str = "evaluating",
        progress: bool = True,
    ) -> dict[str, np.ndarray]:
        """Per-sample scores, float64 (N,), by name; see `samples`."""
        found = self.samples(
            plans, base=base, batches=batches, budget=budget, errors=errors, memory_budget=memory_budget, what=what,
            progress=progress,
        )  # fmt: skip
        return {name: samples.values for name, samples in found.items()}

    def samples(
        self,
        plans: Mapping[str, Plan],
        *,
        base: Plan = FLOAT,
        batches: int | None = None,
        budget: Budget | None = None,
        errors: bool = False,
        enough: Callable[[Mapping[str, Samples]], bool] | None = None,
        memory_budget: int = MEMORY_BUDGET,
        what: str = "evaluating",
        progress: bool = True,
    ) -> dict[str, Samples]:
        """What plans scored, by name; all plans that are new in one pass, in lockstep.

        Parameters
        ----------
        plans
            By name.
        base
            The plan that most of them share a front part with: each starts where it parts from that.
        batches
            Batches of the data to take; None for all.
        budget
            What the plans are counted against.
        errors
            Find how far each output is from float's too, for `error`.
        enough
            Asked after every batch with the samples so far; the pass ends where it says so, and these are returned.
        memory_budget
            Bytes of live tensors; lanes beyond it run in a further group from where they part from the base, not from the input.
        what
            Said beside the progress bar.

        Raises
        ------
        OutOfBudgetError
            If the budget does not allow it; nothing was run then.
        DataError
            If the data are empty, not finite or do not fit, come in another order than before, or a weight is not finite.
        """
        wanted = list(dict.fromkeys(plans.values()))
        if budget is not None:
            budget.take(wanted, what)
        if any(plan.factors for plan in wanted):
            return self._by_factors(
                plans, base=base, batches=batches, errors=errors, memory_budget=memory_budget, what=what, progress=progress
            )

        def so_far(count: int) -> dict[str, Samples]:
            found = {plan: _samples(self._scores[plan], count) for plan in wanted}
            return {name: found[plan] for name, plan in plans.items()}

        todo = [plan for plan in wanted if not self._whole(plan, batches, errors)]
        if todo:
            check_weights(self._graph)
            stop = None if enough is None else lambda taken: enough(so_far(taken))
            ended = self._run(todo, base, batches, errors, memory_budget, what, progress, stop)
            if ended is not None:
                return so_far(ended)
        count = self._count(batches)
        assert count is not None
        return so_far(count)

    def _by_factors(self, plans: Mapping[str, Plan], *, base: Plan, **settings: Any) -> dict[str, Samples]:
        """What plans scored of which some have factors: those of each other network by an evaluator of that network."""
        found: dict[str, Samples] = {}
        for factors in {frozenset(plan.factors.items()): plan.factors for plan in plans.values()}.values():
            part = {name: replace(plan, factors={}) for name, plan in plans.items() if plan.factors == factors}
            start = replace(base, factors={}) if base.factors == factors else FLOAT
            found |= self._with_factors(factors).samples(part, base=start, **settings)
        return {name: found[name] for name in plans}

    def _with_factors(self, factors: Mapping[str, tuple[float, ...]]) -> Evaluator:
        """The same data and metric on the network with these factors."""
        if not factors:
            return self
        key = "factors", frozenset(factors.items())
        if key not in self._others:
            graph = smoothed(self._graph, factors)
            other = Evaluator(graph, self._data, self._metric, calibration=self._calibration, executor=self._executor)
            other._passes = self._passes  # float is the same, and so are the data
            self._others[key] = other
        return self._others[key].over(self._executor)

    def error(self, plan: Plan, batches: int | None = None) -> float:
        """The output's squared error relative to float's energy, the mean over samples of a plan that was scored with errors."""
        count = self._count(batches)
        assert count is not None
        return float(_joined(self._errors[plan], count).mean())

    def _count(self, limit: int | None) -> int | None:
        """Batches that so many are, None where the data's length is not known yet and matters."""
        length = self._passes.length
        if length is None:
            return limit
        return length if limit is None else min(limit, length)

    def _whole(self, plan: Plan, limit: int | None, errors: bool) -> bool:
        count = self._count(limit)
        if count is None or not _all_of(self._scores.get(plan, {}), count):
            return False
        return not errors or _all_of(self._errors.get(plan, {}), count)

    def _run(
        self,
        todo: Sequence[Plan],
        base: Plan,
        limit: int | None,
        errors: bool,
        memory_budget: int,
        what: str,
        progress: bool,
        enough: Callable[[int], bool] | None,
    ) -> int | None:
        """Score the plans batch by batch; the number of batches where `enough` ended it, else None."""
        graph = self._graph
        last = len(graph.operations) - 1

        def start(plan: Plan) -> int:
            first = first_difference(graph, base, plan)
            return last if first is None else first

        lanes = sorted(((start(plan), plan) for plan in todo), key=itemgetter(0))
        asked = Asked(base, tuple(plan for _, plan in lanes), tuple(first for first, _ in lanes), errors, memory_budget)
        source = batches(self._data, limit)
        try:
            with Bar(what, source.__length_hint__() * len(todo) or None, unit="lane", show=progress) as bar:
                run = _Run(self, asked, bar)
                executor = self._executor if chosen() is None else chosen()
                found = self._here(run, source, enough) if executor is None else self._there(executor, run, source, enough)
        finally:
            self._played = None
        taken, ended = found
        if ended:
            return taken
        if not taken:
            raise DataError("the evaluation loader gave no batch: pass at least one.")
        self._passes.end(taken, limit)
        return None

    def _here(self, run: _Run, source: Batches, enough: Callable[[int], bool] | None) -> tuple[int, bool]:
        """Batches that were taken, and whether `enough` ended it; computed in this process."""
        taken = 0
        for at, batch in enumerate(source):
            self._passes.check(at, batch)
            missing = run.missing(at)
            run.bar.update(len(run.rows) - len(missing))
            taken += 1
            if missing:
                rows, apart, untold = self.part(run.asked, at, batch, missing, run.bar)
                run.keep(at, missing, rows, apart)
                run.bar.update(untold)
            if enough is not None and enough(taken):
                return taken, True
        return taken, False

    def _there(
        self, executor: Executor, run: _Run, source: Batches, enough: Callable[[int], bool] | None
    ) -> tuple[int, bool]:  # fmt: skip
        """The same on the executor's workers; batches come back in any order, and are put to `enough` in theirs."""
        key = dask_client(executor) or executor  # a cluster is sent the study once, however many executors it hands out
        if key not in self._workers:
            first = next(iter(batches(self._data, 1)), None)
            if first is None:
                return 0, False
            self._workers[key] = Workers(executor, self, self.checked(0, first))
        workers = self._workers[key]
        most = source.__length_hint__() or source.limit
        taken, done = 0, list[int]()

        def tasks() -> Iterator[Task]:
            many = parts(executor, None if most is None else sum(bool(run.missing(at)) for at in range(most)))
            at = 0
            while most is None or at < most:
                missing = run.missing(at)
                run.bar.update(len(run.rows) - len(missing))
                yield from ((at, share) for share in shares(run.asked.starts, missing, many))
                at += 1

        def keep(task: Task, found: Found) -> None:
            nonlocal most
            at, which = task
            if found.mark is None:
                most = at if most is None else min(most, at)
            else:
                self._passes.note(at, found.mark)
                run.keep(at, which, found.samples(self._metric), found.apart)
                done.append(len(which))

        def look() -> bool:
            nonlocal taken
            while done:
                run.bar.update(done.pop())
            run.bar.update(0)
            while (most is None or taken < most) and not run.missing(taken):
                taken += 1
                if enough is not None and enough(taken):
                    return True
            return False

        try:
            ended = look() or workers.run(executor, run.asked, tasks(), keep, look)
        except WorkersError as error:
            kept = sum(not run.missing(at) for at in self._passes.seen)
            raise WorkersError(f"{error} {kept} batches are scored and kept: the same call goes on from there.") from error
        return taken, ended

    def checked(self, at: int, batch: Batch) -> tuple[Any, ...]:
        """The batch's fingerprint, after the checks of `_Passes.check`."""
        self._passes.check(at, batch)
        return self._passes.seen[at]

    def part(
        self, asked: Asked, at: int, batch: Batch, which: Sequence[int], bar: Bar | None
    ) -> tuple[list[Samples], list[np.ndarray], int]:
        """What some of the plans score on one batch, how far their outputs are from float's if that is asked for too, and how
        many of them the bar has not been told of.
        """
        before = 0 if bar is None else bar.done
        outputs = self._outputs(asked, which, bar, batch.inputs)
        untold = len(which) - (0 if bar is None else bar.done - before)
        exact = next((outputs[str(i)] for i in which if asked.plans[i] == FLOAT), None)
        by_float = asked.errors or self._metric.needs_float(batch.targets)
        reference = self._reference(at, batch.inputs, exact) if by_float else None
        rows = [score_batch(self._metric, outputs[str(i)], batch.targets, reference, batch.size) for i in which]
        apart = [relative_errors(outputs[str(i)], reference, batch.size) for i in which] if asked.errors else []
        return rows, apart, untold

    def _outputs(self, asked: Asked, which: Sequence[int], bar: Bar | None, inputs: tuple[Any, ...]) -> dict[str, Any]:
        """Outputs of some of the plans by their number; a GPU plays again what it did for the same plans on the batch before."""
        played = self._played  # another thread may put its own there
        if played is None or played[0] is not asked or played[1] != which:
            lanes = [(asked.starts[i], Lane(str(i), asked.plans[i])) for i in which]
            work = partial(run_from_base, self._graph, asked.base, lanes, asked.memory_budget, bar)
            possible = can_be_recorded(asked.plans[i] for i in which)
            played = self._played = asked, which, Replayed(work, self._graph.device, possible=possible)
        return copied(played[2](inputs), self._graph.device)

    def _reference(self, at: int, inputs: tuple[Any, ...], output: Any = None) -> Any:
        """The float lane's output on batch number `at`, which is `output` where that was run anyway."""
        if at in self._passes.kept:
            return self._passes.kept[at]
        if output is None:
            output = run_lanes(self._graph, [Lane("float")], inputs)["float"]
        self._passes.keep(at, output)
        return output

    # ---------------------------------------------------------------- edits

    def score_near(self, plan: Plan, base: Plan, *, batches: int | None = None) -> np.ndarray:
        """Per-sample scores of a plan near the base, float64 (N,), computed from the first changed operation on.

        The base's values at that operation are kept: further plans that change it, as a range being tuned does, cost only what
        lies behind it, and one that changes a later operation starts there.
        """
        found = self.known(plan, batches)
        if found is not None:
            return found
        if plan.factors:
            return self.scores({"plan": plan}, batches=batches, progress=False)["plan"]
        first = first_difference(self._graph, base, plan)
        if first is None:
            return self.scores({"plan": plan}, batches=batches, progress=False)["plan"]
        return self._record(plan, self._prefix_at(first, plan, base, batches).scores_by_batch(plan), batches)

    def effect(self, tensor: str, plan: Plan, base: Plan, *, batches: int | None = None) -> Effect:
        """What the plan makes of a tap (or of the tap behind a weight), of the output and of the score; computed from there on.

        A further plan that differs from this one at that tensor alone, as while its range is being tuned, costs only what lies
        behind it.
        """
        op = self._graph.operation(tensor)
        if not op.quantized:
            raise QkitError(f"{tensor} has no grid of its own: it shares that of {op.tap}, or stays in float.")
        found = self._prefix_at(op.index, plan, base, batches, errors=True).effect(plan)
        self._record(plan, found.parts, batches)
        return found

    def _record(self, plan: Plan, parts: Sequence[Samples], limit: int | None) -> np.ndarray:
        self._scores.setdefault(plan, {}).update(enumerate(parts))
        self._passes.end(len(parts), limit)
        return Samples.joined(parts).values

    def _prefix_at(self, index: int, plan: Plan, base: Plan, batches: int | None, *, errors: bool = False) -> Prefix:
        """The kept prefix, advanced to that operation, where the plan can start from it; else a new one."""
        kept, limit = self._prefix or (None, None)
        if (
            kept is None
            or kept.index > index
            or limit != batches
            or (errors and not kept.has_errors)
            or not agree(self._graph, kept.plan, plan, index)
        ):
            check_weights(self._graph)
            start = base if agree(self._graph, base, plan, index) else plan
            kept = prefix(self._graph, self._data, start, index, self._metric, limit=batches, errors=errors)
        elif kept.index < index:
            kept = kept.advanced(index)
        self._prefix = kept, batches
        return kept

    # ---------------------------------------------------------------- tensors

    def capture(
        self,
        plans: Mapping[str, Plan],
        *,
        batches: int | None = 1,
        data: Literal["evaluation", "calibration"] = "evaluation",
        keep: Sequence[str] | Literal["all"] = (),
        folder: str | Path | None = None,
        memory_budget: int = KEEPING,
        progress: bool = True,
    ) -> Capture:
        """Every tap in the lanes: error table, and tensors with their codes. See :func:`qkit.execution.capture.capture`."""
        loader = {"evaluation": self._data, "calibration": self._calibration}.get(data)
        if loader is None:
            raise QkitError(f"data is 'evaluation' or 'calibration', not {data!r}.")
        key = tuple(plans.items()), batches, data, keep if keep == "all" else tuple(keep), folder, memory_budget
        work: Capturing = self.resumed(
            "capture", key, lambda: Capturing(self._graph, plans, keep=keep, folder=folder, memory_budget=memory_budget)
        )
        captured = work.run(loader, limit=batches, progress=progress)
        self.finished("capture")
        return captured

    def resumed(self, kind: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """The last work of a kind that was left unfinished, if it had that key; else new work. `finished` forgets it."""
        if kind not in self._unfinished or self._unfinished[kind][0] != key:
            self._unfinished[kind] = key, make()
        return self._unfinished[kind][1]

    def finished(self, kind: str) -> None:
        """The work of that kind is done: its next call starts anew."""
        self._unfinished.pop(kind, None)


class _Run:
    """One run over the data: what is known of it, by the positions of the plans that are asked for, and its bar."""

    def __init__(self, evaluator: Evaluator, asked: Asked, bar: Bar) -> None:
        self.asked, self.bar = asked, bar
        self.rows = [evaluator._scores.setdefault(plan, {}) for plan in asked.plans]
        self.far = [evaluator._errors.setdefault(plan, {}) for plan in asked.plans] if asked.errors else []

    def missing(self, at: int) -> list[int]:
        """The plans whose scores on the batch are not known."""
        return [i for i, rows in enumerate(self.rows) if at not in rows or (self.far and at not in self.far[i])]

    def keep(self, at: int, which: Sequence[int], rows: Sequence[Samples], apart: Sequence[np.ndarray]) -> None:
        """These scores of the batch, all of them or none."""
        with uninterrupted():
            for place, i in enumerate(which):
                self.rows[i][at] = rows[place]
                if self.far:
                    self.far[i][at] = apart[place]


def _all_of(rows: Mapping[int, Any], count: int) -> bool:
    """Whether the first so many batches are there; those that others scored come in any order."""
    return len(rows) >= count and all(at in rows for at in range(count))


def _samples(rows: Mapping[int, Samples], count: int) -> Samples:
    return Samples.joined([rows[at] for at in range(count)])


def _joined(rows: Mapping[int, np.ndarray], count: int) -> np.ndarray:
    return np.concatenate([rows[at] for at in range(count)])


def relative_errors(output: Any, reference: Any, samples: int) -> np.ndarray:
    """Squared error over the reference's energy, a sample each, float64 (N,); the mean over all where outputs are no samples."""
    pairs = list(zip(float_tensors(output), float_tensors(reference), strict=True))
    with torch.no_grad():
        if all(b.ndim and b.shape[0] == samples for _, b in pairs):
            noise = sum((a.double() - b.double()).square().reshape(samples, -1).sum(1) for a, b in pairs)
            energy = sum(b.double().square().reshape(samples, -1).sum(1) for _, b in pairs)
        else:
            noise = sum((a.double() - b.double()).square().sum() for a, b in pairs)
            energy = sum(b.double().square().sum() for _, b in pairs)
        ratio = torch.as_tensor(noise) / torch.as_tensor(energy).clamp_min(1e-30)
    return np.broadcast_to(np.atleast_1d(ratio.cpu().numpy()), (samples,)).copy()


def run_from_base(
    graph: Graph, base: Plan, lanes: Sequence[tuple[int, Lane]], budget: int, bar: Bar | None, inputs: tuple[Any, ...]
) -> dict[str, Any]:
    """Outputs of the lanes by name, in groups, each from the base's values where it starts.

    Parameters
    ----------
    lanes
        Pairs of the first operation at which a lane parts from the base, and the lane; sorted by that operation.
    budget
        Bytes of live tensors for a group.
    bar
        Progress bar, moved on by one for every lane but those of the last group, which count when the batch is kept; or None.
    """
    group = _group_size(graph, Batch(inputs).size, budget)
    outputs: dict[str, Any] = {}
    frontier: Frontier | None = None
    for at in range(0, len(lanes), group):
        members = [lane for _, lane in lanes[at : at + group]]
        # the inputs go along, since a model may read one of them behind the frontier
        frontier = run_to(graph, Lane(_BASE, base), inputs, lanes[at][0], start=frontier)
        outputs |= run_lanes(graph, members, inputs, start=frontier)
        if bar is not None and at + group < len(lanes) and not recording():
            bar.update(len(members))  # whoever listens may let other work in
    return outputs


def _group_size(graph: Graph, samples: int, budget: int) -> int:
    """Lanes whose live tensors fit the budget: a lane holds at most a few of the largest tensors at a time."""
    largest = max((int(np.prod(s.shape[1:])) for s in graph.operations if s.shape), default=1) * max(samples, 1) * 4
    return max(4, int(budget // (3 * largest)))
