"""A trained network together with the data that calibrate and judge it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from qkit.errors import DataError
from qkit.execution.loading import batches

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture


@dataclass(frozen=True)
class Case:
    """What a study needs, in one object.

    Attributes
    ----------
    name
        Of the checkpoint or architecture.
    model
        In float and in evaluation mode; or the path of an ``.onnx`` or ``.pt2`` file, which a study takes as well.
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
    remarks
        What was done to read the weights, a sentence each; a study says it too, after ``study.with_remarks(case.remarks)``.
    """

    name: str
    model: nn.Module | Path
    calibration: Iterable[Any]
    evaluation: Iterable[Any]
    expected: float | None
    classes: tuple[str, ...]
    description: str
    remarks: tuple[str, ...] = ()

    def plot(self, images: int = 8) -> Picture:
        """The first evaluation images as the network is given them, with their classes and the range of their values."""
        import matplotlib.style
        from matplotlib.figure import Figure

        from qkit.figures.drawing import DPI, WIDTH, Picture
        from qkit.style import STYLE, short
        from qkit.zoo.picture import draw

        batch = next(iter(batches(self.evaluation)), None)
        if batch is None or images < 1:
            raise DataError("there is no evaluation image to show.")
        inputs, targets = batch.inputs[0][:images], batch.targets[:images]
        names = [short(self.classes[int(target)], 16) for target in targets]
        with matplotlib.style.context(["default", STYLE]):
            figure = Figure(figsize=(WIDTH, WIDTH / len(inputs) + 0.38), layout="constrained", facecolor="white", dpi=DPI)
            draw(inputs, names, figure=figure)
        return Picture(figure, f"{len(inputs)} evaluation images: {', '.join(names)}")

    def __repr__(self) -> str:
        score = "unknown" if self.expected is None else f"{self.expected:.2%}"
        model = self.model.name if isinstance(self.model, Path) else type(self.model).__name__
        count = len(self.classes)
        return f"Case({self.name!r}, {model}, {count} classes, expected top-1 {score})"
