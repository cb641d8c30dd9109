"""A trained network together with the data that calibrate and judge it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Case:
    """What a study needs, in one object.

    Attributes
    ----------
    name
        Of the checkpoint or architecture.
    model
        In float and in evaluation mode.
    calibration, evaluation
        Loaders of ``(inputs, targets)``: float32 (N, 3, H, W) and int64 (N,). They give the same batches in
        every pass and share no image.
    expected
        Top-1 of the float model on `evaluation`, as a fraction, as recorded when it was trained; ``None`` if
        not known.
    classes
        Their names, in the order of the model's outputs.
    description
        What the case is about, in a few sentences.
    """

    name: str
    model: nn.Module
    calibration: Iterable[Any]
    evaluation: Iterable[Any]
    expected: float | None
    classes: tuple[str, ...]
    description: str

    def __repr__(self) -> str:
        score = "unknown" if self.expected is None else f"{self.expected:.2%}"
        model, count = type(self.model).__name__, len(self.classes)
        return f"Case({self.name!r}, {model}, {count} classes, expected top-1 {score})"
