"""What comes out of a loader, as inputs and targets."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qkit.errors import DataError


@dataclass(frozen=True)
class Batch:
    """One batch: the model's positional inputs, and targets if the loader gives any."""

    inputs: tuple[Any, ...]
    targets: Any = None

    @property
    def size(self) -> int:
        """Number of samples: the first tensor's first dimension."""
        return next((int(x.shape[0]) for x in self.inputs if isinstance(x, Tensor) and x.ndim), 1)


class Batches:
    """Batches of a loader, at most `limit`; has a length where the loader has one, for progress bars."""

    def __init__(self, loader: Iterable[Any], limit: int | None = None) -> None:
        if not hasattr(loader, "__iter__"):
            raise DataError(f"a loader is an iterable of batches, not a {type(loader).__name__}; wrap a single batch in a list.")
        if isinstance(loader, Tensor):
            raise DataError("a loader is an iterable of batches; this is one tensor. Wrap it in a list: [tensor].")
        self.loader = loader
        self.limit = limit

    def __iter__(self) -> Iterator[Batch]:
        for item in itertools.islice(self.loader, self.limit):
            yield as_batch(item)

    def __len__(self) -> int:
        length = len(self.loader)  # type: ignore[arg-type]
        return length if self.limit is None else min(length, self.limit)

    def __length_hint__(self) -> int:
        try:
            return len(self)
        except TypeError:
            return 0


def batches(loader: Iterable[Any], limit: int | None = None) -> Batches:
    """The loader's batches; at most `limit`."""
    return Batches(loader, limit)


def as_batch(item: Any) -> Batch:
    """``inputs``, ``(inputs, targets)`` or ``{"input"/"image"/"pixel_values": …, "target"/"label"/"labels": …}`` as a `Batch`.

    Inputs may be a tensor or a tuple of the model's positional inputs.

    Raises
    ------
    DataError
        For anything else.
    """
    if isinstance(item, Tensor):
        return Batch((item,))
    if isinstance(item, Mapping):
        inputs = [item[k] for k in ("input", "inputs", "image", "images", "pixel_values", "x") if k in item]
        targets = [item[k] for k in ("target", "targets", "label", "labels", "y") if k in item]
        pair = (inputs[0], targets[0] if targets else None) if len(inputs) == 1 else None
    else:
        pair = item
    if isinstance(pair, (tuple, list)) and 1 <= len(pair) <= 2:
        inputs, targets = pair[0], pair[1] if len(pair) == 2 else None
        if isinstance(inputs, Tensor):
            return Batch((inputs,), targets)
        if isinstance(inputs, (tuple, list)) and inputs and isinstance(inputs[0], Tensor):
            return Batch(tuple(inputs), targets)
    what = f"{type(item).__name__} of {len(item)}" if isinstance(item, (tuple, list, Mapping)) else type(item).__name__
    raise DataError(
        f"a batch is a tensor of inputs or a pair (inputs, targets), not a {what}: pass a loader that collates its samples to that."
    )


def targets_tensor(targets: Any, size: int) -> Tensor:
    """Class indices as an int64 tensor of shape (N,).

    Raises
    ------
    DataError
        If they are no integers or not one for each sample.
    """
    try:
        tensor = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"top-1 and top-5 need one class index for each of {size} samples, not {type(targets).__name__}: {error}") from error
    if tensor.is_floating_point() or tensor.is_complex() or tensor.shape != (size,):
        raise DataError(f"top-1 and top-5 need one class index for each of {size} samples, not targets of {tensor.dtype} {tuple(tensor.shape)}.")
    return tensor.long()
