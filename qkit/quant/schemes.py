"""Schemes: which grid rule a network's weights, activations and biases get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from qkit.errors import PlanError
from qkit.quant.arithmetic import FLOAT_INSIDE, FULL_INTEGER, Arithmetic
from qkit.quant.grids import QuantSpec


@dataclass(frozen=True)
class Scheme:
    """Grid rules of a whole network.

    Attributes
    ----------
    name
        Shown in tables and reports.
    weight, activation
        The rule for every weight and for every activation tap; None leaves them in float.
    bias_bits
        Width of the bias on the accumulator's grid (scale of the input times scale of the weight); None leaves it in float.
    overrides
        Rules by tap or weight name (``features.0.0``, ``features.0.0.weight``) which win over the two general ones;
        None there leaves that tensor in float.
    accumulator_bits
        Width of the accumulators of convolutions and linear layers, which wrap around (two's complement); None for ones that
        never overflow. Engines with 8-bit products mostly have 32.
    arithmetic
        How operations without weights compute inside; in float by default.
    """

    name: str
    weight: QuantSpec | None
    activation: QuantSpec | None
    bias_bits: int | None = 32
    overrides: Mapping[str, QuantSpec | None] = field(default_factory=dict)
    accumulator_bits: int | None = None
    arithmetic: Arithmetic = FLOAT_INSIDE

    def __post_init__(self) -> None:
        if self.accumulator_bits is not None and not 8 <= self.accumulator_bits <= 64:
            raise PlanError(f"accumulator_bits={self.accumulator_bits}: give 8 to 64, or None for one that never overflows.")

    def spec(self, tensor: str, *, weight: bool) -> QuantSpec | None:
        """The rule for the tensor of that name."""
        if tensor in self.overrides:
            return self.overrides[tensor]
        return self.weight if weight else self.activation

    def at_bits(self, bits: int, name: str | None = None) -> Scheme:
        """The same rules with weights and activations at another width.

        The bias keeps pace (64 bits above 8), and so does an accumulator: it grows by as many bits as the products do, so that
        it overflows at another width where it does at this one. At a smaller width it stays as wide as the engine has it.
        """

        def wide(spec: QuantSpec | None) -> QuantSpec | None:
            return None if spec is None else replace(spec, bits=bits)

        return replace(
            self,
            name=name or f"{self.name}@{bits}",
            weight=wide(self.weight),
            activation=wide(self.activation),
            bias_bits=None if self.bias_bits is None else (32 if bits <= 8 else 64),
            overrides={key: wide(spec) for key, spec in self.overrides.items()},
            accumulator_bits=self._accumulator_at(bits),
            arithmetic=self.arithmetic.at_bits(bits),
        )

    def _accumulator_at(self, bits: int) -> int | None:
        if self.accumulator_bits is None:
            return None
        growth = sum(bits - spec.bits for spec in (self.weight, self.activation) if spec is not None)
        return min(self.accumulator_bits + max(growth, 0), 64)

    def __repr__(self) -> str:
        return f"Scheme({self.name!r})"


_WEIGHT = QuantSpec(bits=8, symmetric=True, signed=True, per_channel=True, narrow=True)
_PER_TENSOR = replace(_WEIGHT, per_channel=False)
_AFFINE = QuantSpec(bits=8, symmetric=False)
_SYMMETRIC = QuantSpec(bits=8, symmetric=True)
_POWER = replace(_SYMMETRIC, power_of_two=True)

#: The presets by name. Int16 is 16 bits on weights and activations both; its bias is 64 bits wide, since a 32-bit bias
#: at the product of two 16-bit scales saturates on ordinary networks.
PRESETS: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8", _WEIGHT, _AFFINE),
        Scheme("int8-per-tensor", _PER_TENSOR, _AFFINE),
        Scheme("int8-symmetric", _WEIGHT, _SYMMETRIC),
        Scheme("int8-power-of-two", replace(_PER_TENSOR, power_of_two=True), _POWER),
        Scheme("int8-per-channel-power-of-two", replace(_WEIGHT, power_of_two=True), _POWER),
        Scheme("int16", replace(_WEIGHT, bits=16), replace(_AFFINE, bits=16), bias_bits=64),
        Scheme("int8-weights-int16-activations", _WEIGHT, replace(_AFFINE, bits=16), bias_bits=64),
        Scheme("int4-weights", replace(_WEIGHT, bits=4), _AFFINE),
        Scheme("int8-full-integer", _WEIGHT, _AFFINE, arithmetic=FULL_INTEGER),
    )
}


def scheme_of(scheme: str | Scheme) -> Scheme:
    """The scheme itself, or the preset of that name."""
    if isinstance(scheme, Scheme):
        return scheme
    if scheme not in PRESETS:
        raise PlanError(f"there is no scheme {scheme!r}; the presets are {', '.join(PRESETS)}. For another, pass a qkit.Scheme.")
    return PRESETS[scheme]
