"""What a cause looks like before and after its experiment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from qkit.diagnosis.remedies import Remedy
from qkit.execution.statistics import Interval

CauseKind = Literal[
    "weight-channel-imbalance", "weight-outlier", "activation-outlier", "activation-channel-imbalance", "range-too-narrow",
    "range-too-wide", "bias-shift", "signed-grid-on-one-sided-tensor", "power-of-two-scale", "mismatched-join", "bias-width",
    "insufficient-bits", "calibration-mismatch", "train-mode", "batchnorm-statistics", "preprocessing", "non-finite",
    "nondeterminism", "graph-transform", "engine-mismatch", "trace-alignment", "accumulator-overflow", "unquantized-layer",
    "integer-form",
]  # fmt: skip

#: Kinds of causes that lie outside quantization.
OUTSIDE: frozenset[CauseKind] = frozenset((
    "calibration-mismatch", "train-mode", "batchnorm-statistics", "preprocessing", "non-finite", "nondeterminism",
    "graph-transform", "engine-mismatch", "trace-alignment", "accumulator-overflow", "unquantized-layer",
    "integer-form",
))  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A suspicion that statistics raise, with the intervention that would confirm it.

    Attributes
    ----------
    kind
        A word of the vocabulary.
    layer
        The module's path.
    tensor
        Tap or weight that it is about.
    evidence
        The statistic, in a sentence with its figures.
    remedy
        The intervention.
    """

    kind: CauseKind
    layer: str
    tensor: str
    evidence: str
    remedy: Remedy


@dataclass(frozen=True)
class Cause:
    """A cause that an intervention confirmed.

    Attributes
    ----------
    kind, layer, tensor, evidence, remedy
        As in `Candidate`.
    gain
        Score that the remedy alone recovers in the whole quantized network, paired over the evaluation samples. For a
        cause outside quantization: what putting it right gains, None where that is the user's to do.
    alone
        Score that the tensor loses quantized alone, and `alone_gain` what the remedy recovers of it; None outside quantization.
    places
        All tensors that the cause was found at, where there are several; `tensor` is the one that costs most.
    """

    kind: CauseKind
    layer: str
    tensor: str
    evidence: str
    remedy: Remedy
    gain: Interval | None = None
    alone: Interval | None = None
    alone_gain: Interval | None = None
    places: tuple[str, ...] = ()

    @property
    def interval(self) -> tuple[float, float] | None:
        """Ends of the gain's 95 % interval."""
        return None if self.gain is None else (self.gain.low, self.gain.high)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        figures = {"gain": self.gain, "alone": self.alone, "alone_gain": self.alone_gain}
        return {
            "kind": self.kind,
            "layer": self.layer,
            "tensor": self.tensor,
            "evidence": self.evidence,
            "remedy": self.remedy.to_dict(),
            "places": list(self.places),
            **{name: None if figure is None else figure.to_dict() for name, figure in figures.items()},
        }
