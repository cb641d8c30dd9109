"""Post-training calibration as a sequence of steps, each measured and undone where it does not help.

A step is fitted to three quarters of the calibration samples. Whether it stays is decided on the other quarter: it goes if it
loses score there beyond chance, or if, its effect on the score being within chance, it leaves the output no nearer to the
float model's. The evaluation samples decide nothing; on them every step's effect is measured and shown.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from qkit.errors import DataError, GraphError, QkitError
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.loading import Batch, batches
from qkit.execution.metrics import score_batch, unlabelled
from qkit.execution.observing import observe
from qkit.execution.scores import Scores
from qkit.execution.statistics import Interval, Samples, mean_interval, paired_interval
from qkit.graph.structures import float_tensors
from qkit.progress import uninterrupted
from qkit.ptq.absorption import absorb
from qkit.ptq.corrections import correct_biases, reestimate_norms
from qkit.ptq.equalization import equalize
from qkit.ptq.rounding import adapt_rounding
from qkit.ptq.smoothing import smooth
from qkit.ptq.treatment import Effect, Treatment, decibels_of
from qkit.quant.plan import FLOAT, Plan

if TYPE_CHECKING:
    from qkit.study import Study


from operator import itemgetter

from qkit.graph.structures import flatten, map_tensors

#: Every so many samples one is held out, or batches where they are too small or cannot be cut.
SHARE = 4


def split(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Batches to fit to, and batches held out: the last quarter of each, or every fourth where a batch cannot be cut.

    With fewer than four samples nothing can be held out: then the second list is empty.
    """
    cut = [_cut(batch) for batch in batches]
    if all(pair is not None for pair in cut):
        pairs = [pair for pair in cut if pair is not None]
        return [fit for fit, _ in pairs], [held for _, held in pairs]
    if len(batches) < SHARE:
        return list(batches), []
    held = {i for i in range(len(batches)) if i % SHARE == SHARE - 1}
    return [b for i, b in enumerate(batches) if i not in held], [b for i, b in enumerate(batches) if i in held]


def _cut(batch: Batch) -> tuple[Batch, Batch] | None:
    size = batch.size
    held = size // SHARE
    parts = slice(0, size - held), slice(size - held, size)
    if held == 0 or not all(_has(x, size) for _, x in flatten(batch.inputs)[0] if isinstance(x, Tensor)):
        return None
    if batch.targets is not None and not _has(batch.targets, size):
        return None
    first, second = (
        Batch(
            map_tensors(batch.inputs, itemgetter(part)),
            None if batch.targets is None else batch.targets[part],
        )
        for part in parts
    )
    return first, second


def _has(value: Any, size: int) -> bool:
    """Whether the value holds one entry for each sample."""
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, dict) and len(value) == size


logger = logging.getLogger(__name__)

#: The steps in the order in which they run: what changes the float model first, then ranges, then codes and biases.
STEPS = (
    "smoothing",
    "equalization",
    "absorption",
    "ranges",
    "weight-clipping",
    "adaptive-rounding",
    "batch-norm",
    "bias-correction",
)
#: Estimators of activation ranges that are compared.
ESTIMATORS = ("mse", "minmax", "percentile", "moving-average")


def calibrate(
    study: Study,
    steps: Sequence[str] = STEPS,
    *,
    methods: Mapping[str, str] | None = None,
    estimators: Sequence[str] = ESTIMATORS,
    limit: int | None = None,
    evaluation_limit: int | None = None,
    progress: bool = True,
) -> Study:
    """A new study after the steps, with what each did in ``study.treatment``; see `Study.ptc`.

    After an interrupt the same call goes on with the first step that was not finished.
    """
    if isinstance(steps, str):
        raise QkitError(f"steps is a sequence of names: ({steps!r},).")
    if unknown := [step for step in steps if step not in STEPS]:
        raise QkitError(f"there is no step {', '.join(map(repr, unknown))}; give some of {', '.join(STEPS)}.")
    settings = tuple(sorted((methods or {}).items())), tuple(estimators), limit, evaluation_limit
    key = id(study), study.plan, tuple(steps), settings
    run: _Run = study.evaluator.resumed(
        "ptc", key, lambda: _Run(study, methods, tuple(estimators), limit, evaluation_limit, progress)
    )
    for step in STEPS:
        if step in steps and step not in run.done:
            run.take(step)
    found = run.result()
    study.evaluator.finished("ptc")
    return found


@dataclass(frozen=True, eq=False)
class _Checked:
    """A study on the held-out samples."""

    error: float
    scores: np.ndarray | None


class _Run:
    """The steps so far: the study as it stands, and what every step did."""

    def __init__(
        self, study: Study, methods: Mapping[str, str] | None, estimators: tuple[str, ...],
        limit: int | None, evaluation_limit: int | None, progress: bool,
    ) -> None:  # fmt: skip
        self.original = self.study = study
        self.methods, self.estimators = methods, estimators
        self.evaluation_limit, self.progress = evaluation_limit, progress
        self.effects: list[Effect] = []
        self.done: set[str] = set()
        self.remarks: list[str] = []
        given = list(batches(study.calibration, limit))
        if not given:
            raise DataError("the calibration loader gave no batch: pass at least one (about 100 images are usual).")
        self.fit, self.held = split(given)
        if not self.held:
            self.remark(
                "There are too few calibration samples to hold any out: what is kept was decided on those it was fitted to."
            )
        self.check = self.held or self.fit
        study.plan  # noqa: B018  # calibrates
        self.references = [run_lanes(study.graph, [Lane("float")], b.inputs)["float"] for b in self.check]
        self.now = self.checked(study)

    def remark(self, text: str) -> None:
        self.remarks.append(text)
        logger.warning("%s", text)

    def items(self) -> list[tuple[Any, Any]]:
        """The fitted samples as a loader."""
        return [(batch.inputs, batch.targets) for batch in self.fit]

    def checked(self, study: Study, plan: Plan | None = None) -> _Checked:
        """Output error and scores on the held-out samples, against the float model as it was."""
        noise = signal = 0.0
        rows = []
        lane = Lane("lane", study.plan if plan is None else plan)
        for batch, reference in zip(self.check, self.references, strict=True):
            output = run_lanes(study.graph, [lane], batch.inputs)["lane"]
            for a, b in zip(float_tensors(output), float_tensors(reference), strict=True):
                noise += float((a.double() - b.double()).square().sum())
                signal += float(b.double().square().sum())
            rows.append(self._score(output, reference, batch))
        known = [row for row in rows if row is not None]
        scores = Samples.joined(known).values if known and len(known) == len(rows) else None
        return _Checked(noise / max(signal, 1e-30), scores)

    def _score(self, output: Any, reference: Tensor, batch: Batch) -> Samples | None:
        """What a batch scores; agreement with float where calibration samples have no targets; None where neither can be had."""
        metric = self.original.metric if batch.targets is not None else unlabelled(self.original.metric)
        try:
            return score_batch(metric, output, batch.targets, reference, batch.size)
        except QkitError:
            return None

    def take(self, name: str) -> None:
        """One step: do it, measure it, keep or undo it."""
        start = time.perf_counter()
        actions: dict[str, Callable[[], tuple[Study, str]]] = {
            "equalization": self.equalize,
            "absorption": self.absorb,
            "smoothing": self.smooth,
            "ranges": self.choose_ranges,
            "weight-clipping": self.clip_weights,
            "batch-norm": partial(self.on_plan, reestimate_norms),
            "adaptive-rounding": self.adapt,
            "bias-correction": partial(self.on_plan, correct_biases),
        }
        try:
            trial, detail = actions[name]()
            if trial.graph is self.study.graph and trial.plan == self.study.plan:
                raise _NothingToDo(f"it changes nothing ({detail})." if detail else "it changes nothing.")
        except _NothingToDo as nothing:
            with uninterrupted():
                if str(nothing):
                    self.remark(f"{name}: {nothing}")
                self.done.add(name)
            return
        checked = self.checked(trial)
        kept, why, change = decide(self.now, checked)
        score, gain = self._evaluated(trial)
        seconds = time.perf_counter() - start
        why = f"{why}; {detail}" if detail else why
        effect = Effect(name, kept, why, self.now.error, checked.error, change, score, gain, seconds)
        with uninterrupted():
            self.effects.append(effect)
            self.done.add(name)
            if kept:
                self.study, self.now = trial, checked
        if not kept:
            logger.warning("%s is undone: %s.", name, why)

    def _evaluated(self, trial: Study) -> tuple[Interval, Interval]:
        after, before = (self._scores(study) for study in (trial, self.study))
        return mean_interval(after), paired_interval(after, before)

    def _scores(self, study: Study) -> np.ndarray:
        lanes = {"lane": study.plan}
        return study.evaluate(lanes, batches=self.evaluation_limit, progress=self.progress).lanes["lane"]

    def equalize(self) -> tuple[Study, str]:
        """Cross-layer equalization of the model."""
        try:
            found = equalize(self.study.model, self.study.graph, example=self.fit[0].inputs)
        except GraphError as error:
            raise _NothingToDo(str(error)) from error
        if not found.factors:
            raise _NothingToDo("no two layers can be equalized (the reasons are in qkit.ptq.equalization.equalize(...).skipped).")
        return self._with_model(found.model), f"{len(found.factors)} pairs of layers, {len(found.skipped)} left out"

    def absorb(self) -> tuple[Study, str]:
        """High biases move into the next layer."""
        study = self.study
        found = absorb(study.model, study.graph, self.fit[0].inputs, observations=study.observe())
        if not found.amounts:
            raise _NothingToDo("there is no high bias that could be absorbed.")
        return self._with_model(found.model), f"{len(found.amounts)} layers"

    def smooth(self) -> tuple[Study, str]:
        """Scales between norms and the linear layers behind them."""
        study = self.study
        if not any(op.kind == "norm" for op in study.graph.operations):
            raise _NothingToDo  # nobody who has a convolutional network expects to hear of norms
        try:
            found = smooth(study.model, study.graph, study.observe(progress=self.progress), example=self.fit[0].inputs)
        except GraphError as error:
            raise _NothingToDo(str(error)) from error
        if not found.factors:
            raise _NothingToDo("there is no norm in front of linear layers that scales could be folded into.")
        return self._with_model(found.model), f"{len(found.factors)} norms, {len(found.skipped)} left out"

    def _with_model(self, model: Any) -> Study:
        other = self.study.with_model(model)
        return other.with_calibration(observed=observe(other.graph, self.items(), progress=self.progress))

    def choose_ranges(self) -> tuple[Study, str]:
        """The estimator of activation ranges whose output is nearest to float's on the held-out samples."""
        seen = observe(self.study.graph, self.items(), progress=self.progress)
        methods = {**(self.study.methods.get("methods") or {}), **(self.methods or {})} or None
        trials = {
            name: self.study.with_calibration(observed=seen, method=name, methods=methods)
            for name in dict.fromkeys(self.estimators)
        }
        if not trials:
            raise _NothingToDo("no estimators were named.")
        errors = {name: self.checked(trial).error for name, trial in trials.items()}
        best = min(errors, key=errors.__getitem__)
        listed = ", ".join(f"{name} {decibels_of(error):.1f}" for name, error in errors.items())
        return trials[best], f"activations by {best} (output SQNR in dB: {listed})"

    def clip_weights(self) -> tuple[Study, str]:
        """Weight ranges by least squared error."""
        return self.study.with_calibration(weight_method="mse"), "weight ranges by mse"

    def on_plan(self, change: Callable[..., Plan]) -> tuple[Study, str]:
        """A step that changes the plan."""
        plan = change(self.study.graph, self.study.plan, self.fit, progress=self.progress)
        return self.study.with_plan(plan), ""

    def adapt(self) -> tuple[Study, str]:
        """Adaptive rounding."""
        graph, plan = self.study.graph, self.study.plan
        plan, layers = adapt_rounding(graph, plan, self.fit, progress=self.progress)
        moved = [layer for layer in layers if layer.moved > 0]
        if not moved:
            raise _NothingToDo("rounding to nearest is best everywhere, or no weight has 8 bits or fewer.")
        ratio = float(np.median([layer.adaptive / layer.nearest for layer in moved]))
        return self.study.with_plan(plan), f"{len(moved)} of {len(layers)} layers, output error × {ratio:.2f} in the median"

    def result(self) -> Study:
        """The study as it stands, with its treatment."""
        limit = self.evaluation_limit
        before = self.original.evaluate({"float": FLOAT, "before": self.original.plan}, batches=limit, progress=self.progress)
        scores = Scores(before.metric, {**before.lanes, "after": self._scores(self.study)})
        fitted, held = (sum(batch.size for batch in part) for part in (self.fit, self.held))
        treatment = Treatment(tuple(self.effects), scores, fitted, held, tuple(self.remarks))
        return self.study.with_treatment(treatment)


class _NothingToDo(Exception):  # noqa: N818  # no error: the step has nothing to change
    """A step does not apply."""


def decide(before: _Checked, after: _Checked) -> tuple[bool, str, Interval | None]:
    """Whether a step stays, why, and its paired gain on the held-out samples."""
    gain = None if before.scores is None or after.scores is None else paired_interval(after.scores, before.scores)
    if gain is not None and gain.high < 0.0:
        return False, f"it loses {-gain.value:.4f} of the score on held-out samples", gain
    if gain is not None and gain.low > 0.0:
        return True, f"it gains {gain.value:.4f} of the score on held-out samples", gain
    nearer = f"output SQNR {decibels_of(before.error):.1f} to {decibels_of(after.error):.1f} dB on held-out samples"
    return after.error < before.error, nearer, gain
