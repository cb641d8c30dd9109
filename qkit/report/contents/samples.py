"""Which data a report was measured on: how many samples, of what shape, and whether another report saw the very same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qkit.errors import QkitError
from qkit.execution.loading import batches as batches_of
from qkit.progress import track

if TYPE_CHECKING:
    from qkit.study import Study

#: Scores of single samples are kept up to so many samples.
MOST_SAMPLES = 100_000


def describe(study: Study, limit: int | None, *, progress: bool) -> tuple[dict[str, Any], list[int]]:
    """Samples, shapes and, of the evaluation data, the fingerprint; and the sizes of its batches. One pass, no network.

    The fingerprint is a hash of all inputs and targets in their order: equal ones mean the same images.
    """
    hashed = hashlib.blake2b(digest_size=16)
    sizes: list[int] = []
    shapes: list[list[int]] = []
    targets = False
    for batch in track(batches_of(study.evaluation, limit), "reading the data", unit="batch", show=progress):
        for tensor in (*_tensors(batch.inputs), *_tensors(batch.targets)):
            _add(hashed, tensor)
        shapes = shapes or [list(x.shape[1:]) for x in _tensors(batch.inputs)]
        targets = targets or batch.targets is not None
        sizes.append(batch.size)
    described = {
        "calibration": {"samples": _calibration_samples(study)},
        "evaluation": {
            "samples": sum(sizes),
            "batches": len(sizes),
            "batch_size": max(sizes, default=0),
            "shapes": shapes,
            "targets": targets,
            "fingerprint": hashed.hexdigest() if sizes else None,
        },
        "same": study.evaluation is study.calibration,
    }
    return described, sizes


def _tensors(value: Any) -> list[Tensor]:
    """All tensors, arrays and numbers of a structure, as tensors; what is none of these identifies no image."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (np.ndarray, np.generic, int, float)):
        return [torch.as_tensor(value)]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in _tensors(v)]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (tuple, list)) else []


def _add(hashed: Any, tensor: Tensor) -> None:
    array = tensor.detach().cpu().contiguous()
    hashed.update(f"{array.dtype} {tuple(array.shape[1:])} ".encode())
    # bfloat16 has no numpy form; float32 holds all of it
    hashed.update(np.ascontiguousarray((array.float() if array.is_floating_point() else array).numpy()).tobytes())


def _calibration_samples(study: Study) -> int | None:
    """How many samples the ranges were observed on; None where the network's input has no grid."""
    seen = study.observe(progress=False)
    for op in study.graph.operations:
        if op.argument is not None and op.name in seen:
            return round(seen[op.name].histogram.total / max(int(np.prod(op.shape[1:])), 1))
    return None


def batches_holding(sizes: Sequence[int], count: int) -> int | None:
    """How many batches of these sizes hold so many samples; None if none of their sums does."""
    sums = np.cumsum(sizes, dtype=np.int64).tolist()
    return sums.index(count) + 1 if count in sums else None


def encode(lanes: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Scores by lane as JSON has them: a string of digits where all are 0 or 1, else numbers."""
    encoded: dict[str, Any] = {}
    for lane, scores in lanes.items():
        if np.isin(scores, (0.0, 1.0)).all():
            encoded[lane] = "".join("1" if score else "0" for score in scores)
        else:
            encoded[lane] = [float(score) for score in scores]
    return encoded


def decode(lanes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Inverse of `encode`."""
    found = {}
    for lane, scores in lanes.items():
        if isinstance(scores, str):
            found[lane] = np.frombuffer(scores.encode("ascii"), np.uint8).astype(np.float64) - ord("0")
        else:
            found[lane] = np.array(scores, dtype=np.float64)
    if len({len(scores) for scores in found.values()}) > 1:
        raise QkitError("the lanes have scores of different numbers of samples.")
    return found
