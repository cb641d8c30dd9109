"""Samples whose class a lane changed, with their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qkit.execution.evaluator import Evaluator
from qkit.execution.pictures import class_names, images_of, look_of
from qkit.execution.scores import Scores
from qkit.quant.plan import Plan
from qkit.style import frame_dict

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture

__all__ = ["Flips", "flipped"]


@dataclass(frozen=True, eq=False)
class Flips:
    """What `Scores.flips` lists, with pictures of the first samples.

    Attributes
    ----------
    lane, against
        The lane that chose another class, and the one whose class it was.
    samples
        Number of samples looked at.
    frame
        A row per flipped sample, see `Scores.flips`.
    images
        By sample number, uint8 (H, W, 3), of as many as were asked for.
    classes
        Names of the classes; empty where they are not known.
    """

    lane: str
    against: str
    samples: int
    frame: pd.DataFrame
    images: Mapping[int, np.ndarray] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame)

    def name(self, label: int) -> str:
        """A class's name, or its number."""
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)

    def table(self) -> pd.DataFrame:
        """A row per flipped sample: ``label``, ``from``, ``to``, by name where names are known, and ``change``."""
        frame = self.frame.copy()
        if self.classes:
            for column in ("label", "from", "to"):
                frame[column] = [self.name(int(label)) for label in frame[column]]
        return frame

    def captions(self) -> dict[int, str]:
        """By sample with a picture, its number and what became of it."""
        found, rows = {}, self.frame.to_dict("index")
        for number in self.images:
            row = rows[number]
            label, old, new = (self.name(int(row[column])) for column in ("label", "from", "to"))
            found[number] = f"{number}: {old} → {new}" + ("" if row["change"] == "lost" else f" ({row['change']}, label {label})")
        return found

    def plot(self) -> Picture:
        """The pictures with their classes before and after."""
        from qkit.figures.thumbnails import sheet

        return sheet(
            self.images, self.captions(), f"{len(self.images)} of {len(self)} samples that {self.lane} decides otherwise"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the pictures."""
        return {
            "lane": self.lane, "against": self.against, "samples": self.samples, "classes": list(self.classes),
            "flips": frame_dict(self.frame),
        }  # fmt: skip

    def __repr__(self) -> str:
        counts = self.frame["change"].value_counts()
        said = ", ".join(f"{count} {change}" for change, count in counts.items()) or "none"
        return f"Flips({len(self)} of {self.samples} samples from {self.against} to {self.lane}: {said})"

    def _repr_html_(self) -> str:
        from qkit.figures.thumbnails import html

        return html(self.images, self.captions()) + str(self.table().head(50).to_html())


def flipped(
    evaluator: Evaluator,
    plans: Mapping[str, Plan],
    lane: str,
    against: str,
    *,
    images: int = 24,
    classes: Sequence[str] | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    batches: int | None = None,
    progress: bool = True,
) -> Flips:
    """Evaluation samples of which one lane of `plans` chose another class than another one, with their pictures.

    Parameters
    ----------
    images
        Most pictures, of the first that flipped; they are looked up in the evaluation data, which are never all held.
    classes
        Names of the classes; by default the data set's own ``classes``.
    mean, std
        How the images were normalized; by default as the data set's transform says, else every picture is stretched from its
        least to its greatest value.
    batches
        Evaluation batches to take; None for all.

    Raises
    ------
    QkitError
        If the metric does not decide between classes.
    """
    look = look_of(evaluator.data, mean, std)
    scores = Scores.of(evaluator.metric, evaluator.samples(plans, batches=batches, progress=progress))
    frame = scores.flips(lane, against)
    shown = images_of(evaluator.data, frame.index[: max(images, 0)], look, limit=batches, progress=progress)
    return Flips(lane, against, scores.n, frame, shown, class_names(evaluator.data, classes))
