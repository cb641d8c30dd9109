"""Numbers that are none: where NaN and infinity first arise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qkit.diagnosis.candidates import Cause
from qkit.diagnosis.remedies import Remedy
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.loading import batches
from qkit.graph.operation import Operation

if TYPE_CHECKING:
    from qkit.study import Study


def non_finite(study: Study, limit: int | None) -> list[Cause]:
    """`non-finite`: the first parameter or buffer, else the first value of the float pass, that is NaN or infinite.

    Nothing else can be asked of such a network: ranges, scores and rounding errors have no meaning there.
    """
    return _in_the_model(study) or _on_the_way(study, limit)


def _in_the_model(study: Study) -> list[Cause]:
    for name, tensor in study.model.state_dict().items():
        if isinstance(tensor, Tensor) and (found := _count(tensor)):
            layer = name.rpartition(".")[0]
            cure = f"Load a sound checkpoint, or train again from before {name} broke."
            return [_cause(layer, name, f"{found} of {tensor.numel()} elements of {name} are NaN or infinite.", cure)]
    graph = study.graph
    for name, tensor in (*graph.weights.items(), *graph.biases.items()):
        if found := _count(tensor):
            layer = name.rpartition(".")[0]
            evidence = f"{found} of {tensor.numel()} elements of {name} are NaN or infinite once the batch norm is folded in."
            return [_cause(layer, name, evidence, "Look at that batch norm's running variance: it is negative, or too large.")]
    return []


class _FoundError(Exception):
    """Ends the pass at the first such value: its operation, and how many there are."""


def _on_the_way(study: Study, limit: int | None) -> list[Cause]:
    for which, loader in (("calibration", study.calibration), ("evaluation", study.evaluation)):
        for batch in batches(loader, limit):
            try:
                run_lanes(study.graph, [Lane("float")], batch.inputs, observe=_look)
            except _FoundError as found:
                op, evidence = found.args
                place = op.layer or op.name
                cure = f"Look at {place}: a division by nothing, a logarithm or root of it, or sums beyond float32."
                if op.kind == "input":
                    cure = "Look at what the loader makes of its images: an empty one divided by its deviation, a broken file."
                return [_cause(place, op.name, f"{evidence} in float, on {which} data.", cure)]
        if study.evaluation is study.calibration:
            break
    return []


def _look(op: Operation, values: Mapping[str, Tensor]) -> None:
    value = values["float"]
    if count := _count(value):
        raise _FoundError(op, f"{count} of {value.numel()} values of {op.name} are NaN or infinite")


def _count(tensor: Tensor) -> int:
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float64))):
        return 0
    return int((~torch.isfinite(tensor)).sum())


def _cause(layer: str, tensor: str, evidence: str, cure: str) -> Cause:
    return Cause("non-finite", layer, tensor, evidence, Remedy("fix-input", layer, cure))
