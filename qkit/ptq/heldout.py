"""Calibration samples in two parts: those that a step is fitted to, and those that tell whether it helped."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from torch import Tensor

from qkit.execution.loading import Batch
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
