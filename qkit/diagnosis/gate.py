"""The gate: what is wrong before any quantization, each check with its evidence and its cure.

A check that can be put to an experiment is: the suspected fault is put right, and only a significant gain makes it a cause.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from qkit.calibration import make_plan, observe
from qkit.diagnosis.candidates import Cause, CauseKind
from qkit.diagnosis.remedies import Remedy
from qkit.lanes import Lane, run_lanes
from qkit.loading import Batch, batches
from qkit.metrics import Interval, paired_interval, score_batch
from qkit.steps import Step

if TYPE_CHECKING:
    from qkit.study import Study

#: Difference of two image sets' channel means, in standard deviations between images, that is no chance and no other subject.
_SHIFT = 0.75
#: Ratio of their channels' standard deviations, likewise.
_CONTRAST = 1.3
#: Relative difference of two float outputs that rounding in another order explains.
_SAME = 1e-4


@dataclass(frozen=True)
class Statistics:
    """Of a set of images, by channel, each float64 (C,): mean and deviation of the pixels, deviation of the images' means."""

    mean: np.ndarray
    deviation: np.ndarray
    between: np.ndarray
    count: int


def gate(study: Study, *, limit: int | None, tolerance: float) -> list[Cause]:
    """All checks, in the order in which they would mislead later ones."""
    found = nondeterminism(study, limit, tolerance)
    if not found:
        # two passes that differ differ from the model too
        found += graph_differs(study, limit, tolerance)
    for check in (training_mode, batchnorm_statistics, inputs_differ, unquantized):
        found += check(study, limit, tolerance)
    return found


def _cause(kind: CauseKind, layer: str, evidence: str, cure: str, gain: Interval | None = None) -> Cause:
    return Cause(kind, layer, layer, evidence, Remedy("fix-input", layer, cure), gain)


def nondeterminism(study: Study, limit: int | None, tolerance: float) -> list[Cause]:
    """Two float passes of one batch differ; names the first tap that does."""
    batch = next(iter(batches(study.evaluation)))
    passes: list[dict[str, float]] = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            sums: dict[str, float] = {}

            def look(step: Step, values: Any, sums: dict[str, float] = sums) -> None:
                sums[step.name] = float(values["float"].double().square().sum())

            output = run_lanes(study.graph, [Lane("float")], batch.inputs, observe=look)["float"]
            if isinstance(output, Tensor):
                sums["output"] = float(output.double().square().sum())
            passes.append(sums)
    first, second = passes
    for name, value in first.items():
        if abs(value - second[name]) > _SAME * max(abs(value), 1e-30):
            step = next((s for s in study.graph.steps if s.name == name), None)
            layer = "" if step is None else step.layer
            evidence = f"two float passes of the same batch differ from {name} on."
            dropping = [s for s in study.graph.steps if s.kind == "float" and "dropout" in s.name.lower()]
            if dropping:
                layer = dropping[0].layer
                cure = "Let dropout follow the mode of its module: training=self.training, and call model.eval()."
                return [_cause("train-mode", layer, f"{evidence} {dropping[0].name} drops in evaluation mode.", cure)]
            cure = f"Make the forward pass of {layer or name} repeatable in evaluation mode: no dropout, no noise."
            return [_cause("nondeterminism", layer, evidence, cure)]
    return []


def training_mode(study: Study, limit: int | None, tolerance: float) -> list[Cause]:
    """Modules that normalize by the batch, or drop, although in evaluation; or a model handed over in training mode."""
    model = study.model
    fresh = copy.deepcopy(model).eval()
    stuck = [
        name
        for name, module in fresh.named_modules()
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd))
        and (module.training or (isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None))
    ]
    if stuck:
        evidence = f"{', '.join(stuck[:3])} stay in training behaviour after model.eval()."
        return [_cause("train-mode", stuck[0], evidence, "Let eval() reach every layer, and track running statistics.")]
    if not model.training:
        return []
    as_given = _module_scores(copy.deepcopy(model), study, limit)
    gain = paired_interval(_module_scores(fresh, study, limit), as_given)
    if gain.low <= 0.0 or gain.value <= tolerance:
        return []
    evidence = f"the model was handed over in training mode, where it scores {gain.value:.4g} less."
    return [_cause("train-mode", "", evidence, "Call model.eval() before anything is measured or exported.", gain)]


def graph_differs(study: Study, limit: int | None, tolerance: float) -> list[Cause]:
    """The traced and folded graph and the model disagree."""
    worst = study.graph.deviation
    if worst <= _SAME:
        return []
    evidence = f"the folded graph's output differs from the model's by {worst:.1e} relative."
    return [_cause("graph-transform", "", evidence, "Look for forward code that depends on the data or on its mode.")]


def batchnorm_statistics(study: Study, limit: int | None, tolerance: float) -> list[Cause]:
    """Batch norms whose running statistics are not those of the calibration data; confirmed if taking those helps float."""
    fresh = copy.deepcopy(study.model).eval()
    norms = {
        name: m
        for name, m in fresh.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    }
    if not norms or (isinstance(study.metric, str) and study.metric == "agreement"):
        return []
    before = _module_scores(fresh, study, limit)
    old = {name: (m.running_mean.clone(), m.running_var.clone()) for name, m in norms.items()}  # type: ignore[union-attr]
    for m in norms.values():
        m.reset_running_stats()
        m.momentum = None
        m.train()
    with torch.no_grad():
        for batch in batches(study.calibration):
            fresh(*_on(study, batch))
    fresh.eval()
    gain = paired_interval(_module_scores(fresh, study, limit), before)
    if gain.low <= 0.0 or gain.value <= tolerance:
        return []
    distance = {name: _distance(old[name], m) for name, m in norms.items()}
    worst = max(distance, key=distance.__getitem__)
    evidence = (
        f"the running statistics of {worst} are {distance[worst]:.1f} standard deviations from those of the calibration data; "
        "with statistics estimated anew float scores more."
    )
    cure = "Estimate the batch norms' statistics anew on training data, or load the right checkpoint."
    return [_cause("batchnorm-statistics", worst, evidence, cure, gain)]


def _distance(old: tuple[Tensor, Tensor], norm: nn.modules.batchnorm._BatchNorm) -> float:
    """Greatest shift of a channel's mean, in deviations, or of the logarithm of its variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = old
    deviation = norm.running_var.clamp(min=1e-12).sqrt()
    shift = ((mean - norm.running_mean).abs() / deviation).median()
    scale = (variance.clamp(min=1e-12).log() - norm.running_var.clamp(min=1e-12).log()).abs().median()
    return float(torch.maximum(shift, scale))


def inputs_differ(study: Study, limit: int | None, tolerance: float) -> list[Cause]:
    """Calibration and evaluation images of another normalization or channel order, or both wrong alike."""
    here, there = _statistics(study.evaluation, limit), _statistics(study.calibration, None)
    if here is None or there is None or here.mean.shape != there.mean.shape:
        return []
    shift = float(np.max(np.abs(here.mean - there.mean) / np.maximum(np.minimum(here.between, there.between), 1e-6)))
    contrast = float(np.max(np.maximum(here.deviation / there.deviation, there.deviation / here.deviation)))
    if shift > _SHIFT or contrast > _CONTRAST:
        figures = (
            f"channel means of the evaluation inputs are {_brief(here.mean)}, of the calibration inputs {_brief(there.mean)}; "
            f"deviations {_brief(here.deviation)} and {_brief(there.deviation)}."
        )
        gain = _gain_of_inputs(study, limit, lambda x: _match(x, here, there))
        if gain.low > 0.0 and gain.value > tolerance:
            cure = "Prepare the evaluation inputs as the calibration inputs (and the training's) were."
            return [_cause("preprocessing", "input", figures, cure, gain)]
        seen = observe(study.graph, study.evaluation, limit=limit, progress=False)
        again = make_plan(study.graph, seen, study.scheme, **study.methods)
        scores = study.evaluate({"now": study.plan, "then": again}, batches=limit, progress=False)
        recovered = scores.loss("now", against="then")
        if recovered.low > 0.0:
            cure = "Calibrate on inputs that are prepared as those of the evaluation."
            remedy = Remedy("recalibrate", "", cure, dict(again.grids))
            return [Cause("calibration-mismatch", "input", "input", figures, remedy, recovered)]
        return []
    return _same_mistake(study, limit, tolerance)


def _same_mistake(study: Study, limit: int | None, tolerance: float) -> list[Cause]:
    """Both sets prepared alike and wrongly: the usual mistakes are undone one by one, and float says which it was."""
    if study.expected is None:
        return []
    base = study.evaluate(("float",), batches=limit, progress=False)["float"]
    if base.high + tolerance >= study.expected:
        return []
    usual: dict[str, Callable[[Tensor], Tensor]] = {
        "channels in the other order": lambda x: x.flip(1),
        "values in 0 to 255 where 0 to 1 is meant": lambda x: x / 255.0,
        "values in 0 to 1 where 0 to 255 is meant": lambda x: x * 255.0,
        "values in 0 to 1 where -1 to 1 is meant": lambda x: 2.0 * x - 1.0,
        "values in -1 to 1 where 0 to 1 is meant": lambda x: (x + 1.0) / 2.0,
        "normalized twice": lambda x: x * 0.226 + 0.449,
        "not normalized": lambda x: (x - 0.449) / 0.226,
    }
    gains = {name: _gain_of_inputs(study, limit, change) for name, change in usual.items()}
    best = max(gains, key=lambda name: gains[name].value)
    if gains[best].low <= 0.0 or gains[best].value <= tolerance:
        return []
    evidence = f"undoing one usual mistake ({best}) raises the float score."
    return [_cause("preprocessing", "input", evidence, f"Look at the loader: {best}.", gains[best])]


def unquantized(study: Study, limit: int | None, tolerance: float) -> list[Cause]:
    """Operations that stay float in every lane, and tensors without a grid in the study's plan: findings without a gain."""
    cure = "Check what the engine does there; no figure of the lanes tells."
    found = [
        _cause("unquantized-layer", step.layer, f"{step.name} runs in float in every lane: {step.note or 'no grid.'}", cure)
        for step in study.graph.steps
        if step.kind == "float" and step.shape
    ]
    plan, graph = study.plan, study.graph
    cure = "Give it a grid if the engine does: look at the scheme's overrides, and at the plan if it was edited."
    for what, tensors in (("weights", list(graph.weights)), ("activations", list(graph.taps))):
        bare = [tensor for tensor in tensors if tensor not in plan.grids]
        if len(bare) == len(tensors) > 0:
            found.append(_cause("unquantized-layer", "", f"the plan leaves all {what} in float.", cure))
        else:
            evidence = "has no grid in the plan and stays float."
            found += [_cause("unquantized-layer", graph.step(t).layer, f"{t} {evidence}", cure) for t in bare]
    return found


def _on(study: Study, batch: Batch) -> tuple[Any, ...]:
    device = next(study.model.parameters(), torch.zeros(0)).device
    return tuple(x.to(device) if isinstance(x, Tensor) else x for x in batch.inputs)


def _module_scores(model: nn.Module, study: Study, limit: int | None) -> np.ndarray:
    """Per-sample scores of a module itself, not of a lane."""
    rows = []
    with torch.no_grad(), torch.random.fork_rng():
        for batch in batches(study.evaluation, limit):
            output = model(*_on(study, batch))
            rows.append(score_batch(study.metric, output, batch.targets, output, batch.size))
    return np.concatenate(rows)


def _gain_of_inputs(study: Study, limit: int | None, change: Callable[[Tensor], Tensor]) -> Interval:
    """What float scores more if the images are changed so."""
    before, after = [], []
    for batch in batches(study.evaluation, limit):
        images = tuple(change(x) if isinstance(x, Tensor) and x.ndim == 4 else x for x in batch.inputs)
        as_it_is = run_lanes(study.graph, [Lane("float")], batch.inputs)["float"]
        changed = run_lanes(study.graph, [Lane("float")], images)["float"]
        before.append(score_batch(study.metric, as_it_is, batch.targets, as_it_is, batch.size))
        after.append(score_batch(study.metric, changed, batch.targets, as_it_is, batch.size))
    return paired_interval(np.concatenate(after), np.concatenate(before))


def _images(loader: Iterable[Any], limit: int | None) -> Iterator[Tensor]:
    for batch in batches(loader, limit):
        x = batch.inputs[0]
        if isinstance(x, Tensor) and x.ndim == 4:
            yield x.double()


def _statistics(loader: Iterable[Any], limit: int | None) -> Statistics | None:
    means, squares = [], []
    for x in _images(loader, limit):
        means.append(x.mean((2, 3)))
        squares.append(x.square().mean((2, 3)))
    if not means:
        return None
    mean, square = torch.cat(means), torch.cat(squares)
    centre = mean.mean(0)
    deviation = (square.mean(0) - centre.square()).clamp(min=1e-12).sqrt()
    between = mean.std(0, unbiased=False)
    return Statistics(centre.cpu().numpy(), deviation.cpu().numpy(), between.cpu().numpy(), len(mean))


def _match(x: Tensor, here: Statistics, there: Statistics) -> Tensor:
    """Images with the statistics `here` given those of `there`: in another channel order if that alone does it, else affinely."""
    channels = len(here.mean)
    if channels == 3 and np.allclose(here.mean[::-1], there.mean, atol=0.25 * float(there.deviation.min())):
        return x.flip(1)
    scale = torch.from_numpy(there.deviation / here.deviation).to(x)[:, None, None]
    start, goal = (torch.from_numpy(s.mean).to(x)[:, None, None] for s in (here, there))
    return (x - start) * scale + goal


def _brief(values: np.ndarray) -> str:
    return ", ".join(f"{v:.3g}" for v in values[:4])
