"""What is true of a case: the vocabulary, and what counts as a right answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NO_DEGRADATION, QUANTIZATION, NOT_QUANTIZATION, BOTH, INCONCLUSIVE = VERDICTS = (
    "no-degradation",
    "quantization",
    "not-quantization",
    "both",
    "inconclusive",
)

#: Causes that are planted and count as quantization.
QUANTIZATION_KINDS = (
    "weight-channel-imbalance",
    "weight-outlier",
    "activation-outlier",
    "activation-channel-imbalance",
    "range-too-narrow",
    "range-too-wide",
    "bias-shift",
    "signed-grid-on-one-sided-tensor",
    "power-of-two-scale",
    "mismatched-join",
    "bias-width",
    "insufficient-bits",
)
#: Causes that are planted and do not.
OTHER_KINDS = (
    "calibration-mismatch",
    "preprocessing",
    "train-mode",
    "batchnorm-statistics",
    "non-finite",
    "nondeterminism",
    "graph-transform",
    "accumulator-overflow",
    "unquantized-layer",
)
KINDS = (*QUANTIZATION_KINDS, *OTHER_KINDS)
#: In the vocabulary, and not planted: they need lanes of a real engine.
NOT_COVERED = ("engine-mismatch", "trace-alignment")

#: A fault has an effect if some lane's score differs from its sound twin's by more than this.
EFFECT = 0.01
#: Float may move by this much at most where a fault must not touch the float function.
FLOAT_KEPT = 0.005


@dataclass(frozen=True)
class Fault:
    """One planted fault and what counts as naming it.

    Attributes
    ----------
    kind
        Of the vocabulary.
    synonyms
        Other kinds that name the same physics; each is justified beside its plant.
    layers
        Module paths and tensor names that count as its place; empty where no layer is scored.
    verdicts
        Accepted where the fault changes the score and is alone.
    site, factor
        Where and how strong, as planted; for the reader.
    """

    kind: str
    synonyms: tuple[str, ...] = ()
    layers: frozenset[str] = frozenset()
    verdicts: tuple[str, ...] = (QUANTIZATION,)
    site: str = ""
    factor: float = 0.0

    @property
    def accepted(self) -> frozenset[str]:
        """Kinds that count as right."""
        return frozenset((self.kind, *self.synonyms))

    @property
    def is_quantization(self) -> bool:
        """Whether its kind is one of quantization."""
        return self.kind in QUANTIZATION_KINDS

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings."""
        return {
            "kind": self.kind,
            "synonyms": list(self.synonyms),
            "layers": sorted(self.layers),
            "verdicts": list(self.verdicts),
            "site": self.site,
            "factor": self.factor,
        }


@dataclass(frozen=True)
class Mark:
    """What a plant reports of one attempt.

    Attributes
    ----------
    layers
        See `Fault`.
    verdicts, synonyms
        In place of the plant's own, where the form decides; None keeps those.
    holds
        Further conditions on the faulted study that make the label true, checked by score; True where there are none.
    """

    layers: frozenset[str] = frozenset()
    verdicts: tuple[str, ...] | None = None
    synonyms: tuple[str, ...] | None = None
    holds: Callable[[Any], bool] = field(default=lambda study: True)


class NoSite(Exception):  # noqa: N818  # not an error: the next site is tried
    """The plant cannot be made at this site."""
