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
    from qkit.execution.scores import Scores
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

    def plot(self, images: int = 8, *, scores: Scores | None = None) -> Picture:
        """The first evaluation images as the network is given them, with their classes and the range of their values.

        Parameters
        ----------
        scores
            Of lanes on the evaluation images (``study.evaluate()``): the class that each lane chose stands below each image,
            and a wrong one is marked.

        Raises
        ------
        DataError
            If there is no image, or the scores are of other images or of a metric that does not decide between classes.
        """
        import matplotlib.style
        from matplotlib.figure import Figure

        from qkit.figures.drawing import DPI, WIDTH, Picture
        from qkit.style import STYLE
        from qkit.zoo.picture import draw

        batch = next(iter(batches(self.evaluation)), None)
        if batch is None or images < 1:
            raise DataError("there is no evaluation image to show.")
        inputs, targets = batch.inputs[0][:images], batch.targets[:images]
        labels = [int(target) for target in targets]
        answers = {} if scores is None else _answers(scores, labels)
        names = [self._named(label) for label in labels]
        said = {lane: [(self._named(each), each == label) for each, label in zip(chosen, labels, strict=True)]
                for lane, chosen in answers.items()}  # fmt: skip
        with matplotlib.style.context(["default", STYLE]):
            height = WIDTH / len(inputs) + 0.38 + 0.19 * len(said)
            figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white", dpi=DPI)
            draw(inputs, names, figure=figure, answers=said)
        lanes = "".join(f"; {lane} says {', '.join(name for name, _ in each)}" for lane, each in said.items())
        return Picture(figure, f"{len(inputs)} evaluation images: {', '.join(names)}{lanes}")

    def _named(self, number: int) -> str:
        from qkit.style import short

        return short(self.classes[number], 16) if 0 <= number < len(self.classes) else str(number)

    def __repr__(self) -> str:
        score = "unknown" if self.expected is None else f"{self.expected:.2%}"
        model = self.model.name if isinstance(self.model, Path) else type(self.model).__name__
        count = len(self.classes)
        return f"Case({self.name!r}, {model}, {count} classes, expected top-1 {score})"


def _answers(scores: Scores, labels: list[int]) -> dict[str, list[int]]:
    """By lane, the classes that it chose for the first samples."""
    chosen = {}
    for lane, found in scores.samples.items():
        if found.classes is None or found.labels is None:
            raise DataError(f"{scores.metric} does not decide between classes, so no lane has an answer: use the metric top1.")
        if found.labels[: len(labels)].tolist() != labels:
            raise DataError("the scores are of other images: their labels differ. Give scores of this case's evaluation images.")
        chosen[lane] = [int(each) for each in found.classes[: len(labels)]]
    return chosen
