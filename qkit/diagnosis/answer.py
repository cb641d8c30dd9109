"""The diagnosis: verdict, causes, what to do, and what it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from qkit.card import Bar, bars, card
from qkit.diagnosis.candidates import Cause
from qkit.diagnosis.meanings import VERDICTS
from qkit.diagnosis.remedies import Remedy
from qkit.diagnosis.survival import Survival
from qkit.diagnosis.verdict import Verdict, amount
from qkit.errors import QkitError
from qkit.execution.statistics import Interval
from qkit.quant.plan import Plan
from qkit.style import Units

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture


@dataclass(frozen=True)
class Decomposition:
    """What the parts of quantization lose against float, each with the paired interval.

    Attributes
    ----------
    weights, activations
        Only weights, only activations quantized.
    clipping
        All ranges as they are, at 16 bits: what is lost to the ranges' ends and not to the steps.
    """

    weights: Interval
    activations: Interval
    clipping: Interval

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"weights": self.weights.to_dict(), "activations": self.activations.to_dict(), "clipping": self.clipping.to_dict()}


@dataclass(frozen=True)
class Diagnosis:
    """The answer of :meth:`qkit.Study.diagnose`.

    Attributes
    ----------
    verdict
        With its reason and the losses of the 16- and 8-bit lanes.
    causes
        Confirmed by intervention, the greatest gain first; causes outside quantization come before all others.
    findings
        What the gate saw that has no measured effect.
    harmless
        Layers that look bad (lowest signal to noise ratio) and cost nothing, with that ratio in dB.
    parts
        Where the loss comes from; None if nothing is lost or the budget did not reach so far.
    interaction
        The whole loss less the sum of the tensors' own losses, paired; away from zero, tensors act together. None if not all
        tensors were tried.
    remedies
        Combined, cheapest first, in the order of application.
    best
        The plan with all remedies applied, and `best_loss` what it still loses against float.
    qat
        The plain answer on quantization-aware training.
    remarks
        What was not done and why: an exhausted budget, an interrupt.
    samples, evaluations
        Evaluation samples, and evaluations of them that were spent.
    metric
        Name of the score.
    complete
        False where a budget or an interrupt ended it early; the remarks say which.
    exported
        What became of the offered plans in an exported file, where an engine is installed.
    """

    verdict: Verdict
    causes: tuple[Cause, ...]
    findings: tuple[Cause, ...]
    harmless: tuple[tuple[str, float], ...]
    parts: Decomposition | None
    interaction: Interval | None
    remedies: tuple[Remedy, ...]
    best: Plan | None
    best_loss: Interval | None
    qat: str
    remarks: tuple[str, ...]
    samples: int
    evaluations: int
    metric: str
    complete: bool = True
    exported: tuple[Survival, ...] = ()

    @property
    def units(self) -> Units:
        """How scores and losses are shown."""
        return self.verdict.units

    def table(self) -> pd.DataFrame:
        """A row per cause: layer, remedy, gain with interval, loss alone."""
        rows = [
            {
                "cause": c.kind,
                "layer": c.layer,
                "remedy": c.remedy.kind,
                "gain": None if c.gain is None else c.gain.value,
                "gain low": None if c.gain is None else c.gain.low,
                "gain high": None if c.gain is None else c.gain.high,
                "loss alone": None if c.alone is None else c.alone.value,
            }
            for c in self.causes
        ]
        columns = ["cause", "layer", "remedy", "gain", "gain low", "gain high", "loss alone"]
        return pd.DataFrame(rows, columns=columns)

    def plot(self) -> Picture:
        """What the lanes, the parts of quantization and the confirmed causes lose, and what is left, as a picture.

        Raises
        ------
        QkitError
            If nothing could be scored.
        """
        from qkit.figures.drawing import picture
        from qkit.figures.plots import bar_height, intervals

        found = {"16 bits": self.verdict.wide, "8 bits": self.verdict.narrow}
        if self.parts is not None:
            found |= {"weights alone": self.parts.weights, "activations alone": self.parts.activations}
            found |= {"ranges alone, 16-bit steps": self.parts.clipping}
        found |= {f"{c.layer} alone": c.alone for c in self.causes[:6]}
        found["with all remedies"] = self.best_loss
        rows = {name: loss for name, loss in found.items() if loss is not None}
        if not rows:
            raise QkitError(f"there is no loss to draw: {self.verdict.reason}")
        points = f", {self.units.points}" if self.units.points else ""
        return picture(
            intervals, rows, units=self.units, what=f"loss against float{points}; shaded: within the tolerance",
            tolerance=self.verdict.tolerance, words=f"losses of the diagnosis: {self.verdict.name}", height=bar_height(len(rows)),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            **self.verdict.to_dict(),
            "causes": [c.to_dict() for c in self.causes],
            "findings": [c.to_dict() for c in self.findings],
            "harmless": [{"tap": tap, "sqnr": sqnr} for tap, sqnr in self.harmless],
            "parts": None if self.parts is None else self.parts.to_dict(),
            "interaction": None if self.interaction is None else self.interaction.to_dict(),
            "remedies": [r.to_dict() for r in self.remedies],
            "best_loss": None if self.best_loss is None else self.best_loss.to_dict(),
            "qat": self.qat,
            "remarks": list(self.remarks),
            "samples": self.samples,
            "evaluations": self.evaluations,
            "complete": self.complete,
            "exported": [one.to_dict() for one in self.exported],
        }

    def lines(self) -> list[str]:
        """The whole answer as sentences."""
        found = [str(self.verdict)] if self.complete else ["This diagnosis ended early.", str(self.verdict)]
        units = self.units
        if self.parts is not None:
            p = self.parts
            found.append(
                f"Weights alone lose {amount(p.weights, units)}, activations alone {amount(p.activations, units)}, the same "
                f"ranges with 16-bit steps {amount(p.clipping, units)}."
            )
        if self.interaction is not None and (
            together := interaction_words(self.interaction, units, self.verdict.tolerance or 0.0)
        ):
            found.append(together)
        for number, cause in enumerate(self.causes, 1):
            gain = "" if cause.gain is None else f" It gains {amount(cause.gain, units)}"
            if cause.alone is not None and cause.alone_gain is not None:
                alone = f"{amount(cause.alone_gain, units)} of {amount(cause.alone, units)} that it loses quantized alone"
                gain += f" in the whole network, and {alone}"
            where = f" at {cause.layer}" if cause.layer else ""
            found.append(f"{number}. {cause.kind}{where}: {cause.evidence} {cause.remedy.text}{gain and gain + '.'}")
        if self.verdict.name in ("quantization", "both", "not-quantization") and not self.causes:
            found.append("No single cause was confirmed.")
        found += [f"Said, not measured: {c.kind}{f' at {c.layer}' if c.layer else ''}: {c.evidence}" for c in self.findings[:5]]
        if self.harmless:
            listed = ", ".join(f"{tap} ({sqnr:.0f} dB)" for tap, sqnr in self.harmless)
            found.append(f"Looks bad and is harmless, quantized alone: {listed}.")
        if self.remedies:
            steps = "; ".join(f"{r.kind}" + (f" at {r.layer}" if r.layer else " everywhere") for r in self.remedies)
            found.append(f"What to do, in this order: {steps}.")
        return [*found, *(one.said(units) for one in self.exported), self.qat, *self.remarks]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        named = ", ".join(f"{c.kind} at {c.layer}" for c in self.causes[:3]) or "no cause"
        ended = "" if self.complete else ", ended early"
        return f"Diagnosis({self.verdict.name}: {named}; {self.samples} samples, {self.evaluations} evaluations{ended})"

    def _repr_html_(self) -> str:
        return str(self.as_card())

    def as_card(self, *, details: bool = True) -> Markup:
        """The answer first: verdict, the scores as bars, cause, what to do; with `details` the rest folds away below. HTML."""
        verdict, first = self.verdict, self.causes[0] if self.causes else None
        answers = {"Why": verdict.reason}
        if first is not None:
            more = "" if len(self.causes) == 1 else f" {len(self.causes) - 1} more below."
            answers["Cause"] = f"{first.kind}{f' at {first.layer}' if first.layer else ''}: {first.evidence}{more}"
        if self.remedies:
            answers["What to do"] = " ".join(remedy.text for remedy in self.remedies)
        if self.exported:
            failed = [one for one in self.exported if not one.survives]
            answers["Export"] = " ".join(one.said(self.units) for one in failed or self.exported[:1])
        answers["Training?"] = _upper(self.qat.removeprefix("Quantization-aware training: "))
        if not self.complete:
            answers["Ended early"] = " ".join(self.remarks)
        drawn = bars(self._bars(), self.units)
        below = [Markup("<p>{}</p>").format(line) for line in self.lines()[1:]] if details else []
        return card(verdict.name, VERDICTS[verdict.name].headline, drawn, answers, below)

    def _bars(self) -> list[Bar]:
        """Float's score, the score as it is, and the score with the remedies, as far as they were measured."""
        base, lost = (
            self.verdict.base,
            {"as it is": self.verdict.narrow, "with the remedy": self.best_loss if self.remedies else None},
        )
        if base is None:
            return []
        shown = [Bar("float", "float", base.value, base.low, base.high)]
        for (label, loss), role in zip(lost.items(), ("before", "after"), strict=True):
            if loss is not None:
                ends = base.value - loss.high, base.value - loss.low
                shown.append(Bar(label, role, base.value - loss.value, *ends, loss.value))  # type: ignore[arg-type]
        return shown


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def interaction_words(interaction: Interval, units: Units, tolerance: float) -> str:
    """Tensors whose errors do not add up, in a sentence; "" where it is chance or less than the tolerance."""
    if abs(interaction.value) <= tolerance or interaction.low <= 0.0 <= interaction.high:
        return ""
    how = "their errors meet, and do more than" if interaction.value > 0 else "their errors overlap, and do less than"
    return (
        f"What all tensors lose together and the sum of what each loses alone are {amount(interaction, units)} apart: {how} add "
        "up. Gains of single remedies do not add up either."
    )
