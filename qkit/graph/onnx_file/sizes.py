"""Sizes that are numbers but for the batch: every one is ``per_image * batch + fixed``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

PROBES = (7, 11, 13)
"""Batches at which a file with an open batch is tried out: what depends on the batch shows in three of them."""


@dataclass(frozen=True)
class Size:
    """A whole number that grows with the batch: ``per_image * batch + fixed``."""

    per_image: int
    fixed: int = 0

    def at(self, batch: int) -> int:
        """The number at that batch; `batch` may be a symbolic integer of `torch.export`."""
        scaled = batch if self.per_image == 1 else self.per_image * batch
        return scaled + self.fixed if self.fixed else scaled


Dimension = int | Size


def fit(numbers: Sequence[int], batches: Sequence[int]) -> Dimension | None:
    """The `Dimension` that is ``numbers[i]`` at ``batches[i]``; None if there is none."""
    first = numbers[0]
    if all(number == first for number in numbers):
        return int(first)
    per_image = Fraction(int(numbers[1]) - int(first), batches[1] - batches[0])
    fixed = first - per_image * batches[0]
    if per_image.denominator != 1 or any(per_image * b + fixed != n for n, b in zip(numbers, batches, strict=True)):
        return None
    return Size(int(per_image), int(fixed))


def fit_tensors(values: Sequence[Tensor], batches: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """``(per_image, fixed)`` with ``values[i] == per_image * batches[i] + fixed`` in every element; None if there are none."""
    first = values[0]
    same = all(value.shape == first.shape and value.dtype == first.dtype for value in values)
    if not same or first.dtype == torch.bool or first.is_complex() or first.numel() > 4096:
        return None
    whole = not first.is_floating_point()
    wide = [value.to(torch.int64 if whole else torch.float64) for value in values]
    rise = wide[1] - wide[0]
    run = batches[1] - batches[0]
    if whole and bool((rise % run != 0).any()):
        return None
    per_image = rise // run if whole else rise / run
    fixed = wide[0] - per_image * batches[0]
    for value, batch in zip(wide, batches, strict=True):
        made = per_image * batch + fixed
        if not (torch.equal(made, value) if whole else torch.allclose(made, value, rtol=1e-6, atol=1e-9)):
            return None
    return per_image, fixed


def depends_on_batch(setting: Any) -> bool:
    """Whether a setting holds a `Size`."""
    if isinstance(setting, (tuple, list)):
        return any(depends_on_batch(part) for part in setting)
    return isinstance(setting, Size)


def at_batch(setting: Any, batch: int) -> Any:
    """The setting with every `Size` in it as a number."""
    if isinstance(setting, Size):
        return setting.at(batch)
    if isinstance(setting, (tuple, list)):
        return type(setting)(at_batch(part, batch) for part in setting)
    return setting
