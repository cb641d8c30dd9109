"""Remedies: what to change, as data that can be applied, compared and saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from qkit.quant.arithmetic import Arithmetic
from qkit.quant.plan import Grid, Plan

RemedyKind = Literal[
    "per-channel-weights", "cross-layer-equalization", "clip-weights", "clip-activation", "widen-range", "affine-activation",
    "free-scale", "bias-correction", "wider-bias", "split-join", "sixteen-bit-layer", "recalibrate", "qat", "fix-input",
    "coarser-weight-scale", "wider-accumulator", "fix-engine", "smooth-scales", "finer-form",
]  # fmt: skip

#: What a remedy costs at run time, cheapest first: nothing, other arithmetic in one place, wider arithmetic.
COST: Mapping[str, int] = {
    "recalibrate": 0, "widen-range": 0, "clip-activation": 0, "clip-weights": 0, "bias-correction": 0,
    "cross-layer-equalization": 0, "smooth-scales": 0, "coarser-weight-scale": 0, "wider-bias": 1, "wider-accumulator": 2,
    "affine-activation": 1, "free-scale": 1, "per-channel-weights": 1, "split-join": 2, "finer-form": 2, "sixteen-bit-layer": 3,
}  # fmt: skip

#: What a remedy does where it is applied to all tensors that it fits, in a phrase.
EVERYWHERE: Mapping[str, str] = {
    "recalibrate": "Calibrate the ranges anew of all tensors whose range does not fit",
    "widen-range": "Widen the range of all tensors that are cut off",
    "clip-activation": "Clip the activations that have outliers",
    "clip-weights": "Clip the weights that have outliers",
    "bias-correction": "Correct the biases of all layers whose mean output shifts",
    "affine-activation": "Give all one-sided activations an unsigned or affine grid",
    "free-scale": "Let all tensors have scales that are not powers of two",
    "per-channel-weights": "Give all weights with uneven channels one scale per output channel",
    "smooth-scales": "Fold scales between all norms with uneven channels and the linear layers behind them",
    "split-join": "Join at 16 bits, or scale the inputs apart, wherever they differ much",
    "sixteen-bit-layer": "Keep all tensors in 16 bits",
}  # fmt: skip


@dataclass(frozen=True)
class Remedy:
    """One change of a plan, or for "fix-input" a text.

    Attributes
    ----------
    kind
        A word of the vocabulary.
    layer
        Path of the module that it acts on, "" for all.
    text
        What to do, in a sentence.
    grids
        The grids it sets, by tensor.
    bias_bits
        The width of the biases that it sets, None for no change.
    corrections
        What it adds to the biases, by tap.
    accumulator_bits
        The width of the accumulators that it sets, None for no change.
    factors
        By norm, the scales that it folds between that and the linear layers behind it, one a channel; `grids` are of the network
        after that.
    arithmetic
        How operations without weights are to compute, None for no change.
    """

    kind: RemedyKind
    layer: str
    text: str
    grids: Mapping[str, Grid] = field(default_factory=dict)
    bias_bits: int | None = None
    corrections: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    accumulator_bits: int | None = None
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    arithmetic: Arithmetic | None = None

    @property
    def changes(self) -> bool:
        """Whether it changes a plan at all."""
        others = (self.bias_bits, self.accumulator_bits, self.arithmetic)
        return bool(self.grids or self.corrections) or any(other is not None for other in others)

    @property
    def places(self) -> int:
        """Tensors and biases that it changes."""
        return len(self.grids) + len(self.corrections)

    @property
    def cost(self) -> int:
        """Rank among remedies: the cheaper comes first."""
        return COST.get(self.kind, 9)

    def plan(self, base: Plan) -> Plan:
        """The base plan with this change."""
        known = {name: grid for name, grid in self.grids.items() if name in base.grids}
        bits = base.bias_bits if self.bias_bits is None else self.bias_bits
        sums = base.accumulator_bits if self.accumulator_bits is None else self.accumulator_bits
        corrections = {**base.corrections, **self.corrections}
        grids = {**base.grids, **known}
        factors = {**base.factors, **self.factors}
        return replace(
            base, grids=grids, bias_bits=bits, corrections=corrections, accumulator_bits=sums, factors=factors,
            arithmetic=base.arithmetic if self.arithmetic is None else self.arithmetic,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            "kind": self.kind,
            "layer": self.layer,
            "text": self.text,
            "bias_bits": self.bias_bits,
            "accumulator_bits": self.accumulator_bits,
            "corrections": {name: list(values) for name, values in self.corrections.items()},
            "grids": {name: grid.to_dict() for name, grid in self.grids.items()},
            **({} if self.arithmetic is None else {"arithmetic": self.arithmetic.to_dict()}),
            **({"factors": {name: list(values) for name, values in self.factors.items()}} if self.factors else {}),
        }
