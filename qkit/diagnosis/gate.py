"""The gate: what is wrong before any quantization, each check with its evidence and its cure.

A check that can be put to an experiment is: the suspected fault is put right, and only a significant gain makes it a cause.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qkit.diagnosis.candidates import Cause, CauseKind
from qkit.diagnosis.inputs import inputs_differ
from qkit.diagnosis.remedies import Remedy
from qkit.diagnosis.reproduction import graph_differs, module_samples, nondeterminism, run_model
from qkit.execution.loading import batches
from qkit.execution.statistics import Interval, gain

if TYPE_CHECKING:
    from qkit.study import Study


def gate(study: Study, *, limit: int | None, tolerance: float) -> list[Cause]:
    """All checks, in the order in which they would mislead later ones."""
    found = nondeterminism(study)
    if found:
        # no experiment tells anything where the same pass gives two results
        return [*found, *training_mode(study, limit, tolerance), *unquantized(study)]
    found = [*graph_differs(study, limit), *training_mode(study, limit, tolerance)]
    wrong = inputs_differ(study, limit, tolerance)
    if not any(cause.kind == "preprocessing" for cause in wrong):
        # statistics estimated anew on wrong images fit these, which is no cure
        found += batchnorm_statistics(study, limit, tolerance)
    return [*found, *wrong, *unquantized(study)]


def _cause(kind: CauseKind, layer: str, evidence: str, cure: str, gain: Interval | None = None) -> Cause:
    return Cause(kind, layer, layer, evidence, Remedy("fix-input", layer, cure), gain)


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
    as_given, right = (module_samples(net, study, limit) for net in (copy.deepcopy(model), fresh))
    more = gain(right, as_given, right)
    if not more.above(tolerance):
        return []
    evidence = f"the model was handed over in training mode, where it scores {study.metric.units.loss(more.value)} less."
    return [_cause("train-mode", "", evidence, "Call model.eval() before anything is measured or exported.", more)]


def batchnorm_statistics(study: Study, limit: int | None, tolerance: float) -> list[Cause]:
    """Batch norms whose running statistics are not those of the calibration data; confirmed if taking those helps float."""
    fresh = copy.deepcopy(study.model).eval()
    norms = {
        name: m
        for name, m in fresh.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    }
    if not norms or study.metric.against == "float":
        return []
    before = module_samples(fresh, study, limit)
    old = {name: (m.running_mean.clone(), m.running_var.clone()) for name, m in norms.items()}  # type: ignore[union-attr]
    for m in norms.values():
        m.reset_running_stats()
        m.momentum = None
        m.train()
    with torch.no_grad():
        for batch in batches(study.calibration):
            run_model(fresh, batch)
    fresh.eval()
    after = module_samples(fresh, study, limit)
    more = gain(after, before, after)
    if not more.above(tolerance):
        return []
    distance = {name: _distance(old[name], m) for name, m in norms.items()}
    worst = max(distance, key=distance.__getitem__)
    evidence = (
        f"the running statistics of {worst} are {distance[worst]:.1f} standard deviations from those of the calibration data; "
        "with statistics estimated anew float scores more."
    )
    cure = "Estimate the batch norms' statistics anew on training data, or load the right checkpoint."
    return [_cause("batchnorm-statistics", worst, evidence, cure, more)]


def _distance(old: tuple[Tensor, Tensor], norm: nn.modules.batchnorm._BatchNorm) -> float:
    """Greatest shift of a channel's mean, in deviations, or of the logarithm of its variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = old
    deviation = norm.running_var.clamp(min=1e-12).sqrt()
    shift = ((mean - norm.running_mean).abs() / deviation).median()
    scale = (variance.clamp(min=1e-12).log() - norm.running_var.clamp(min=1e-12).log()).abs().median()
    return float(torch.maximum(shift, scale))


def _calls(names: list[str]) -> str:
    return f"{names[0]} runs" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more calls of the kind run"


def unquantized(study: Study) -> list[Cause]:
    """Operations that stay float in every lane, and tensors without a grid in the study's plan: findings without a gain."""
    cure = "Check what the engine does there; no figure of the lanes tells."
    floats: dict[tuple[str, str], list[str]] = {}
    for op in study.graph.operations:
        if op.kind == "float" and op.elements:
            floats.setdefault((op.layer, op.note or "no grid."), []).append(op.name)
    found = [
        _cause("unquantized-layer", layer, f"{_calls(names)} in float in every lane: {note}", cure)
        for (layer, note), names in floats.items()
    ]
    plan, graph = study.plan, study.graph
    cure = "Give it a grid if the engine does: look at the scheme's overrides, and at the plan if it was edited."
    for what, tensors in (("weights", list(graph.weights)), ("activations", list(graph.taps))):
        bare = [tensor for tensor in tensors if tensor not in plan.grids]
        if len(bare) == len(tensors) > 0:
            found.append(_cause("unquantized-layer", "", f"the plan leaves all {what} in float.", cure))
        else:
            evidence = "has no grid in the plan and stays float."
            found += [_cause("unquantized-layer", graph.operation(t).layer, f"{t} {evidence}", cure) for t in bare]
    return found
