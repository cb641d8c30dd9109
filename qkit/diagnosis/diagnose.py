"""The guided diagnosis: gate, 16 bits before 8, where, why, and what to do, each by experiment."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from qkit.diagnosis.answer import Decomposition, Diagnosis
from qkit.diagnosis.candidates import Candidate, Cause
from qkit.diagnosis.causes import Subject, candidates
from qkit.diagnosis.chance import explained, steady_gain
from qkit.diagnosis.combining import (
    ALMOST,
    HALF,
    combine,
    confirm_everywhere,
    everywhere,
    grouped,
    once,
    rank,
    union,
    without_covered,
)
from qkit.diagnosis.engine_parting import causes as mismatch
from qkit.diagnosis.engine_parting import causes_of_alignment, plan_at
from qkit.diagnosis.experiments import Bench
from qkit.diagnosis.finite import non_finite
from qkit.diagnosis.forms import integer_form
from qkit.diagnosis.gate import gate
from qkit.diagnosis.localize import Place, noise, places, subjects, suspects
from qkit.diagnosis.remedies import Remedy
from qkit.diagnosis.survival import check_exports
from qkit.diagnosis.verdict import Verdict, amount, judge
from qkit.diagnosis.widths import accumulator_overflow, bias_width
from qkit.engines.lane import EngineLane
from qkit.errors import QkitError
from qkit.execution.evaluator import Budget, OutOfBudgetError
from qkit.execution.gradient import rank_by_gradient
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.loading import batches as batches_of
from qkit.execution.scores import Scores
from qkit.execution.statistics import Interval, adjusted, paired_interval
from qkit.quant.plan import FLOAT, Plan

if TYPE_CHECKING:
    from qkit.study import Study

logger = logging.getLogger(__name__)

#: Part of the tolerance that a remedy gains at least: pairs on many samples make sure of gains that nobody could see.
_VISIBLE = 0.01
#: Causes whose own remedies are exported to be checked, the first ones.
_MOST_CHECKED = 3


@dataclass
class _Draft:
    """What is known so far: an exhausted budget or an interrupt leaves the rest as it is."""

    causes: list[Cause] = field(default_factory=list)
    harmless: list[tuple[str, float]] = field(default_factory=list)
    parts: Decomposition | None = None
    interaction: Interval | None = None
    remedies: list[Remedy] = field(default_factory=list)
    best: Plan | None = None
    remarks: list[str] = field(default_factory=list)
    complete: bool = True


@dataclass(frozen=True)
class Cost:
    """What a diagnosis is going to take: evaluations of the data (at most), and about how many seconds."""

    evaluations: int
    seconds: float

    def __str__(self) -> str:
        return f"at most {self.evaluations} evaluations, about {self.seconds:.0f} s"


def cost(study: Study, *, batches: int | None = None, budget: int | None = None) -> Cost:
    """Estimate from one timed batch of the float lane; nothing is calibrated for it.

    A quantized lane takes about one and a half of it, and lanes share front parts, hence half a pass an evaluation.
    """
    count = batches_of(study.evaluation, batches).__length_hint__() or 1
    batch = next(iter(batches_of(study.evaluation)))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        run_lanes(study.graph, [Lane("float")], batch.inputs)
        seconds.append(time.perf_counter() - start)
    evaluations = 2 * (len(study.graph.taps) + len(study.graph.weights)) + 120
    if budget is not None:
        evaluations = min(evaluations, budget)
    return Cost(evaluations, 0.9 * evaluations * count * min(seconds))


def diagnose(
    study: Study,
    *,
    tolerance: float | None = None,
    batches: int | None = None,
    budget: int | None = None,
    engine: EngineLane | Sequence[EngineLane] = (),
    check_export: bool = True,
    progress: bool = True,
) -> Diagnosis:
    """Is it quantization, where, why, and what is the cheapest thing that fixes it?

    Statistics only propose; a cause is named if its remedy, applied to that tensor alone, recovers score by more than chance
    (paired 95 % interval). All gains are measured on the same evaluation samples as the losses.

    Parameters
    ----------
    tolerance
        Loss that still counts as close, in the metric's unit; by default the metric's own (one point of a share).
    batches
        Evaluation batches to work on; None for all.
    budget
        Most evaluations of these to spend. The gate and the verdict come first; what the rest does not reach is said.
    engine
        Lanes of real engines to compare with the simulation at their width; where one leaves it is a cause by itself.
    check_export
        Whether to write what is offered as ONNX and run it in ONNX Runtime on some 64 samples, where that is installed.

    Raises
    ------
    DataError
        If the evaluation data are empty or do not fit.
    """
    with torch.random.fork_rng():
        # a model with randomness in its forward pass would move the user's generator
        lanes = tuple(engine) if isinstance(engine, Sequence) else (engine,)
        return _diagnose(study, tolerance, batches, budget, lanes, check_export, progress)


def _diagnose(
    study: Study, tolerance: float | None, batches: int | None, budget: int | None, engines: Sequence[EngineLane],
    check_export: bool, progress: bool,
) -> Diagnosis:  # fmt: skip
    logger.info("diagnosis: %s", cost(study, batches=batches, budget=budget))
    if broken := non_finite(study, batches):
        return _not_a_number(study, broken)
    plan = study.plan
    if tolerance is None:
        tolerance = study.evaluate(("float",), batches=batches, progress=progress).tolerance()
    gated = gate(study, limit=batches, tolerance=tolerance)
    narrow = _own(study)
    lanes = {"float": FLOAT, "int16": study.lane("int16"), narrow: plan}
    bench = Bench(study, batches, Budget(None if budget is None else max(budget, len(lanes))), progress, tolerance=tolerance)
    scores = Scores.of(study.metric, bench.scores(lanes, FLOAT, what="float, 16 and 8 bits"))
    findings = [cause for cause in gated if _is_finding(cause)]
    draft = _Draft(causes=[cause for cause in gated if not _is_finding(cause)])
    verdict = judge(scores, narrow=narrow, tolerance=tolerance, expected=study.expected, share=study.share)
    try:
        draft.causes += accumulator_overflow(bench, plan)
        draft.causes += integer_form(bench, _with_remedies(plan, [cause.remedy for cause in draft.causes]))
        base = _put_right(plan, draft)
        if draft.causes:
            verdict = _settle(bench, verdict, draft.causes, plan, base, tolerance)
        for engine in engines:
            verdict = _compare(study, engine, verdict, draft, findings, batches)
        clips = verdict.name == "not-quantization" and not draft.causes and scores.expected_loss(narrow).above(tolerance)
        undecided = verdict.name == "inconclusive" and verdict.differs
        if verdict.name in ("quantization", "both") or clips or undecided:
            _explain(bench, base, tolerance, draft)
    except OutOfBudgetError as stop:
        draft.complete = False
        draft.remarks.append(f"The budget of {budget} evaluations ended before {stop}: raise budget= for the rest.")
    except KeyboardInterrupt:
        draft.complete = False
        draft.remarks.append("Interrupted: this is what was found until then; diagnose() again goes on from there.")
    best = draft.best
    best_loss = bench.gain(FLOAT, best) if best is not None and best in bench.known else None
    qat = _qat(verdict, best_loss, tolerance)
    checked = check_exports(study, _offered(plan, draft), tolerance=tolerance) if check_export and draft.complete else []
    return Diagnosis(
        verdict, tuple(draft.causes), tuple(findings), tuple(draft.harmless), draft.parts, draft.interaction,
        tuple(draft.remedies), best, best_loss, qat, tuple(draft.remarks),
        bench.samples, bench.budget.spent, study.metric_name, draft.complete, tuple(checked),
    )  # fmt: skip


def _offered(plan: Plan, draft: _Draft) -> dict[str, Plan]:
    """The plans that are offered: with all remedies, and with each cause's own that is not among them."""
    plans = {}
    if draft.best is not None and draft.remedies:
        one = draft.remedies[0]
        plans["all remedies" if len(draft.remedies) > 1 else f"{one.kind}{f' at {one.layer}' if one.layer else ''}"] = draft.best
    for cause in draft.causes[:_MOST_CHECKED]:
        if cause.remedy.changes and cause.remedy not in draft.remedies:
            plans[f"{cause.remedy.kind} at {cause.layer}"] = cause.remedy.plan(plan)
    return plans


def _compare(
    study: Study, engine: EngineLane, verdict: Verdict, draft: _Draft, findings: list[Cause], limit: int | None
) -> Verdict:
    """The verdict in the light of an engine's lane: what it does otherwise than the simulation is no quantization."""
    alignment = getattr(engine, "alignment", None)
    if alignment is not None and not alignment.ok:
        # tensors that do not belong together tell nothing of the engine
        findings += causes_of_alignment(alignment)
        draft.remarks.append(f"{engine.name} was not compared: its trace does not belong to the network as it stands.")
        return verdict
    plan = plan_at(study, engine.bits)
    found, lost = mismatch(study, engine, plan, limit=limit)
    units = study.metric.units
    if lost is not None:
        draft.remarks.append(f"{engine.name} loses {amount(lost, units)} against its own simulation.")
    draft.remarks += engine.notes
    costly = [cause for cause in found if lost is None or lost.clear]
    findings += [cause for cause in found if cause not in costly]
    draft.remedies += [cause.remedy for cause in costly]
    draft.causes += costly
    if not costly:
        return verdict
    name = "both" if verdict.name in ("quantization", "both") else "not-quantization"
    reason = f"{engine.name} does not compute what its grids say (at {costly[0].layer}). In the simulation, {verdict.reason}"
    return replace(verdict, name=name, reason=reason)  # type: ignore[arg-type]


def _own(study: Study) -> str:
    """Name of the study's own lane: its width, or the scheme's name where that is 16 bits or more."""
    return study.narrow if study.lane(study.narrow) == study.plan else study.scheme.name


def _is_finding(cause: Cause) -> bool:
    """Whether it is said and not measured."""
    return cause.kind == "unquantized-layer" or (cause.kind == "calibration-mismatch" and cause.gain is None)


def _not_a_number(study: Study, causes: Sequence[Cause]) -> Diagnosis:
    """Where there are no numbers, there is nothing to measure."""
    first = causes[0]
    reason = f"the network does not compute numbers: {first.evidence} No lane was run."
    verdict = Verdict("not-quantization", reason, None, None, units=study.metric.units)
    qat = _qat(verdict, None, 0.0)
    remedies = tuple(cause.remedy for cause in causes)
    return Diagnosis(verdict, tuple(causes), (), (), None, None, remedies, None, None, qat, (), 0, 0, study.metric_name)


def _put_right(plan: Plan, draft: _Draft) -> Plan:
    """The plan with what the gate can put right by itself; what it cannot is the user's to do first."""
    draft.remedies += [cause.remedy for cause in draft.causes]
    if any(remedy.changes for remedy in draft.remedies):
        draft.best = _with_remedies(plan, draft.remedies)
        return draft.best
    return plan


def _with_remedies(plan: Plan, remedies: Iterable[Remedy]) -> Plan:
    for remedy in remedies:
        plan = remedy.plan(plan) if remedy.changes else plan
    return plan


def _settle(bench: Bench, verdict: Verdict, causes: Sequence[Cause], plan: Plan, base: Plan, tolerance: float) -> Verdict:
    """The verdict in the light of what the gate confirmed: whether quantization costs something beside that."""
    narrow = _own(bench.study)
    lanes = {"float": FLOAT, "int16": bench.study.lane("int16"), narrow: plan}
    if base != plan:
        lanes |= {"int16": at_sixteen_bits(base), narrow: base}
    scores = Scores.of(bench.study.metric, bench.scores(lanes, what="what the gate found, put right"))
    beside = judge(scores, narrow=narrow, tolerance=tolerance)
    named = ", ".join(cause.kind for cause in causes)
    right = "With that put right, " if base != plan else "Beside that, "
    name = "both" if beside.name in ("quantization", "both") else "not-quantization"
    reason = f"something is wrong before quantization ({named}). {right}{beside.reason}"
    return replace(verdict, name=name, reason=reason)  # type: ignore[arg-type]


def _explain(bench: Bench, plan: Plan, tolerance: float, draft: _Draft) -> None:
    """Where, why and what to do, into the draft as it becomes known."""
    before = list(draft.causes)
    at16 = at_sixteen_bits(plan)
    parts = {"weights": plan.weights_only(), "activations": plan.activations_only(), "clipping": at16}
    bench.scores({**parts, "float": FLOAT, "plan": plan}, what="weights, activations, clipping")
    draft.parts = Decomposition(**{name: bench.gain(FLOAT, part) for name, part in parts.items()})
    found = subjects(bench, plan)
    ratios = {tensor: noise(subject) for tensor, subject in found.items()}
    ranking = sorted(found, key=ratios.__getitem__)
    if bench.budget.left is not None:
        # the dearest first, with a third left for what is to be confirmed
        room = max(bench.budget.left // 3, 1)
        if room < len(ranking):
            ranking, how = _dearest(bench, plan, ranking)
            draft.remarks.append(f"The budget allowed {room} of {len(ranking)} tensors to be tried alone: {how}.")
            ranking = ranking[:room]
    where = places(bench, plan, ranking)
    if len(where) == len(found):
        draft.interaction = _interaction(bench, plan, [place.tensor for place in where])
    draft.harmless = _harmless(where, ratios, tolerance)
    why = {tensor: candidates(found[tensor]) for tensor in suspects(where, ratios)}
    draft.causes += bias_width(bench, plan)
    confirmed = _confirm(bench, plan, why, {place.tensor: place for place in where})
    believed = [_no_luck(bench, plan, found, options) for options in confirmed]
    draft.causes += grouped(bench, plan, _gaining(bench, plan, once([cause for cause in believed if cause is not None])))
    at_all = everywhere(found)
    draft.causes += confirm_everywhere(bench, plan, at_all, draft.causes[len(before) :])
    # what was found before quantization stays first and in its order: each would mislead what comes after it
    draft.causes = [*before, *sorted(draft.causes[len(before) :], key=rank)]
    named = [cause.remedy for cause in draft.causes]
    # what was confirmed at a tensor beside the believed cause may be the remedy that it takes in the end
    others = [cause.remedy for options in confirmed for _, cause in options if cause.remedy not in named]
    todo = [remedy for remedy in (*named, *others) if remedy not in draft.remedies]
    first = len([remedy for remedy in todo if remedy in named])
    for remedy, best in combine(bench, plan, todo, first, at_all, tolerance):
        draft.remedies, draft.best = without_covered([*draft.remedies, remedy]), best


def _dearest(bench: Bench, plan: Plan, noisiest: Sequence[str]) -> tuple[list[str], str]:
    """Tensors in the order of what gradients on the calibration images say they cost, and what that order is, in words."""
    study = bench.study
    try:
        found = rank_by_gradient(study.graph, study.calibration, plan, study.metric, progress=bench.progress)
    except QkitError:
        return list(noisiest), "the noisiest ones"
    rest = [tensor for tensor in noisiest if tensor not in found.costs]
    return [*found.order, *rest], "those that cost most by their gradients"


def _interaction(bench: Bench, plan: Plan, tensors: Sequence[str]) -> Interval:
    """The loss of all tensors together less the sum of each one's own, sample by sample."""
    exact = bench.expected(FLOAT)
    apart = sum((exact - bench.expected(plan.only([tensor])) for tensor in tensors), np.zeros_like(exact))
    return paired_interval(exact - bench.expected(plan), apart, ranks=bench.study.metric.whole is None)


def at_sixteen_bits(plan: Plan) -> Plan:
    """Every range as it is, with 16-bit steps: what is lost then is lost at the ranges' ends."""
    grids = {}
    for name, grid in plan.grids.items():
        spec = replace(grid.spec, bits=16, power_of_two=False)
        params = spec.params(grid.params.lo, grid.params.hi, axis=grid.params.axis)
        grids[name] = grid.at(params, spec=spec)
    sums = plan.accumulator_bits
    if sums is not None:
        # as many bits wider as the products are, at the narrowest of either kind
        narrowest = [
            min((g.spec.bits for g in plan.grids.values() if g.weight is weight), default=16) for weight in (True, False)
        ]
        sums = min(sums + sum(max(16 - bits, 0) for bits in narrowest), 64)
    bias_bits = None if plan.bias_bits is None else 64
    return replace(
        plan, grids=grids, bias_bits=bias_bits, name=f"{plan.name}, 16-bit steps", accumulator_bits=sums,
        arithmetic=plan.arithmetic.at_bits(16),
    )  # fmt: skip


def _harmless(where: Sequence[Place], ratios: Mapping[str, float], tolerance: float) -> list[tuple[str, float]]:
    """Among the five noisiest tensors, those that cost nothing."""
    noisiest = sorted(ratios, key=ratios.__getitem__)[:5]
    costless = {p.tensor for p in where if p.alone.value <= tolerance and not p.suspect}
    return [(tensor, ratios[tensor]) for tensor in noisiest if tensor in costless]


def _confirm(
    bench: Bench, plan: Plan, why: Mapping[str, list[Candidate]], where: Mapping[str, Place]
) -> list[list[tuple[float, Cause]]]:
    """Put every candidate to its intervention, alone and in the whole plan: a tensor's confirmed ones with their effect."""
    trials = {(tensor, i): c for tensor, listed in why.items() for i, c in enumerate(listed)}
    whole = {key: c.remedy.plan(plan) for key, c in trials.items()}
    alone = {key: c.remedy.plan(plan.only([key[0]])) for key, c in trials.items()}
    bench.scores({f"{t} {i}": p for (t, i), p in whole.items()}, plan, what="interventions")
    bench.scores({f"{t} {i}": p for (t, i), p in alone.items()}, FLOAT, what="interventions alone")
    gains = {key: bench.gain(whole[key], plan) for key in trials}
    own = {key: bench.gain(alone[key], plan.only([key[0]])) for key in trials}
    by_itself = {tensor: where[tensor].alone.sure(bench.tolerance) for tensor in why}
    effects = {key: own[key] if by_itself[key[0]] else gains[key] for key in trials}
    # of many trials some gain by chance: each is judged as one of so many
    chances = adjusted({key: 1.0 if effect.p is None else effect.p for key, effect in effects.items()})
    found = []
    for tensor in why:
        lost = where[tensor].alone
        options: list[tuple[float, Cause]] = []
        for key, c in trials.items():
            if key[0] != tensor:
                continue
            effect = replace(effects[key], p=chances[key])
            if effect.value < _VISIBLE * bench.tolerance:
                continue
            if bench.sure(effect) and (not by_itself[tensor] or own[key].value >= 0.5 * lost.value):
                cause = Cause(c.kind, c.layer, c.tensor, c.evidence, c.remedy, gains[key], lost, own[key])
                options.append((effect.value, cause))
        if options:
            found.append(options)
    return found


def _believed(options: Sequence[tuple[float, Cause]]) -> Cause:
    """The most specific cause that explains enough; more bits recover more than any rule, so they are asked for less."""
    specific = [value for value, cause in options if cause.kind != "insufficient-bits"]
    most = max(value for value, _ in options)
    bar = min(ALMOST * max(specific, default=most), most) if max(specific, default=0.0) >= HALF * most else ALMOST * most
    return next(cause for value, cause in options if value >= bar)


def _no_luck(bench: Bench, plan: Plan, found: Mapping[str, Subject], options: list[tuple[float, Cause]]) -> Cause | None:
    """The believed cause, if its remedy explains what it gains or gains on average over steps near its own; else the next one.

    Options that gain by luck are taken out.
    """
    while options:
        cause = _believed(options)
        # a cause at its origin is told by the tensor that hands it on
        subject = next((found[name] for name in (cause.tensor, *cause.remedy.grids) if name in found), None)
        if subject is None or explained(subject, cause.remedy):
            return cause
        steady = steady_gain(bench, plan, subject.tensor, cause.remedy)
        if bench.sure(steady) and cause.gain is not None and steady.value >= HALF * cause.gain.value:
            return replace(cause, gain=steady)
        options[:] = [(value, other) for value, other in options if other is not cause]
    return None


def _gaining(bench: Bench, plan: Plan, causes: Sequence[Cause]) -> list[Cause]:
    """The causes whose remedy gains in the whole network: as it is, or once the other causes are put right, which may hide it."""
    hidden = [cause for cause in causes if cause.gain is None or cause.gain.value <= 0.0]
    shown = [cause for cause in causes if cause not in hidden]
    if not hidden:
        return shown
    base = union(shown).plan(plan) if shown else plan
    plans = {str(i): cause.remedy.plan(base) for i, cause in enumerate(hidden)}
    bench.scores({**plans, "base": base}, plan, what="causes beside others")
    for i, cause in enumerate(hidden):
        gain = bench.gain(plans[str(i)], base)
        if bench.sure(gain):
            shown.append(
                replace(cause, gain=gain, evidence=f"{cause.evidence} It shows once the causes before it are put right.")
            )
    return shown


#: The plain answers on quantization-aware training, by a word each; `loss` is what the remedies leave.
QAT: Mapping[str, str] = {
    "nothing-lost": "Quantization-aware training: not needed, nothing is lost.",
    "too-few-samples": "Quantization-aware training: not to be decided before there are samples enough to tell a loss from none.",
    "not-quantization": "Quantization-aware training: not the answer, since quantization is not what costs the score.",
    "no-remedy": "Quantization-aware training: no remedy was found that helps by more than chance. Try study.ptc() first, which "
    "costs minutes; if that does not do, training is the next thing.",
    "remedies-do": "Quantization-aware training: not needed; with these remedies the loss is {loss}.",
    "remedies-fall-short": "Quantization-aware training: worth it if study.ptc() does not do; these remedies still lose {loss}.",
}


def _qat(verdict: Verdict, best_loss: Interval | None, tolerance: float) -> str:
    """The plain answer on quantization-aware training."""
    plain = {"no-degradation": "nothing-lost", "inconclusive": "too-few-samples", "not-quantization": "not-quantization"}
    if verdict.name in plain:
        return QAT[plain[verdict.name]]
    if best_loss is None:
        return QAT["no-remedy"]
    answer = QAT["remedies-do" if best_loss.value <= tolerance else "remedies-fall-short"]
    return answer.format(loss=amount(best_loss, verdict.units))
