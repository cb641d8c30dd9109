"""What post-training calibration did: every step, whether it stayed and why, and what it did to the score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from qkit.execution.scores import Scores
from qkit.execution.statistics import Interval
from qkit.quant.sqnr import sqnr

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture


@dataclass(frozen=True)
class Effect:
    """What one step did.

    Attributes
    ----------
    step
        One of `STEPS`.
    kept
        Whether it stayed.
    why
        In words: why it stayed or went.
    error
        Output error on the held-out calibration samples with the step, relative to the float output's energy; `before` without.
    held_out
        Change of the score there, paired; None where no score can be had there.
    score, gain
        On the evaluation samples: the score with the step, and its paired change by the step.
    seconds
        What it took.
    """

    step: str
    kept: bool
    why: str
    before: float
    error: float
    held_out: Interval | None
    score: Interval
    gain: Interval
    seconds: float


@dataclass(frozen=True, eq=False)
class Treatment:
    """What post-training calibration did to a study, step by step.

    Attributes
    ----------
    effects
        In the order of the steps.
    scores
        Of the evaluation samples: lanes "float" (the model as it was), "before" and "after".
    fitted, held_out
        Calibration samples that steps were fitted to, and that decided.
    remarks
        What a reader has to know.
    """

    effects: tuple[Effect, ...]
    scores: Scores
    fitted: int
    held_out: int
    remarks: tuple[str, ...] = ()

    @property
    def loss(self) -> Interval:
        """What is still lost against float, paired on the evaluation samples."""
        return self.scores.loss("after")

    def table(self) -> pd.DataFrame:
        """A row per step: whether it stayed, output SQNR in dB on held-out samples, score and gain on evaluation samples."""
        rows = {
            e.step: {
                "kept": e.kept,
                "sqnr before": decibels_of(e.before),
                "sqnr": decibels_of(e.error),
                "score": e.score.value,
                "gain": e.gain.value,
                "gain low": e.gain.low,
                "gain high": e.gain.high,
                "seconds": e.seconds,
                "why": e.why,
            }
            for e in self.effects
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("step")

    def plot(self) -> Picture:
        """The score on the evaluation samples after each step, as a picture; of steps that were undone, what they gave."""
        from qkit.figures.drawing import picture
        from qkit.figures.plots import bar_height, intervals

        rows = {"float": self.scores["float"], "before": self.scores["before"]}
        rows |= {e.step if e.kept else f"{e.step} (undone)": e.score for e in self.effects}
        what = f"{self.scores.metric} on {self.scores.n} samples{self.scores.units.after}"
        words = f"{self.scores.metric} after each step"
        return picture(
            intervals, rows, units=self.scores.units, what=what, words=words, scores=True, height=bar_height(len(rows))
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            "metric": self.scores.metric,
            "float": self.scores["float"].to_dict(),
            "before": self.scores["before"].to_dict(),
            "after": self.scores["after"].to_dict(),
            "loss": self.loss.to_dict(),
            "fitted": self.fitted,
            "held_out": self.held_out,
            "remarks": list(self.remarks),
            "steps": [
                {
                    "step": e.step,
                    "kept": e.kept,
                    "why": e.why,
                    "error_before": e.before,
                    "error": e.error,
                    "held_out": None if e.held_out is None else e.held_out.to_dict(),
                    "score": e.score.to_dict(),
                    "gain": e.gain.to_dict(),
                    "seconds": e.seconds,
                }
                for e in self.effects
            ],
        }

    def __repr__(self) -> str:
        lines = [
            f"{self.scores.metric} {self.scores['before'].value:.4f} -> {self.scores['after'].value:.4f}, float "
            f"{self.scores['float'].value:.4f}, on {self.scores.n} evaluation samples; still lost {self.loss}",
            f"fitted to {self.fitted} calibration samples, decided on {self.held_out} others",
        ]
        lines += [
            f"  {'kept  ' if e.kept else 'undone'} {e.step}: {e.score.value:.4f} ({e.gain.value:+.4f}); {e.why}"
            for e in self.effects
        ]
        return "\n".join([*lines, *(f"  {remark}" for remark in self.remarks)])

    def _repr_html_(self) -> str:
        head = "<br>".join(repr(self).splitlines()[:2])
        return f"<p>{head}</p>{self.table().to_html(float_format='{:.4g}'.format, border=0)}"


def decibels_of(error: float) -> float:
    """Signal to noise ratio in dB of an error relative to its signal; at most 300."""
    return float(sqnr(1.0, max(error, 1e-30)))
