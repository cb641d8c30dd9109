"""Every preset is what the design says, seen on the grids it gives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from qkit.errors import PlanError
from qkit.quant.grids import QuantSpec
from qkit.quant.schemes import PRESETS, Scheme, scheme_of

#: name: (weight bits, per channel, power of two), (activation bits, affine, power of two), bias bits
EXPECTED = {
    "int8": ((8, True, False), (8, True, False), 32),
    "int8-per-tensor": ((8, False, False), (8, True, False), 32),
    "int8-symmetric": ((8, True, False), (8, False, False), 32),
    "int8-power-of-two": ((8, False, True), (8, False, True), 32),
    "int8-per-channel-power-of-two": ((8, True, True), (8, False, True), 32),
    "int16": ((16, True, False), (16, True, False), 64),
    "int8-weights-int16-activations": ((8, True, False), (16, True, False), 64),
    "int4-weights": ((4, True, False), (8, True, False), 32),
    "int8-full-integer": ((8, True, False), (8, True, False), 32),
}


def test_the_presets_are_the_designs() -> None:
    assert sorted(PRESETS) == sorted(EXPECTED)
    assert all(scheme.name == name for name, scheme in PRESETS.items())


@pytest.mark.parametrize("name", EXPECTED)
def test_a_presets_weights(name: str) -> None:
    (bits, per_channel, power_of_two), _, _ = EXPECTED[name]
    spec = PRESETS[name].spec("layer.weight", weight=True)
    assert spec is not None
    assert spec.per_channel == per_channel
    for low, high in ((-0.3, 0.7), (0.0, 0.7), (-0.7, 0.0)):  # signed and symmetric whatever the weights' signs
        params = spec.params(low, high)
        top = 2 ** (bits - 1) - 1
        assert (params.qmin, params.qmax, int(params.zero_point)) == (-top, top, 0)
        exact = max(-low, high) / top
        assert float(params.scale) == pytest.approx(2.0 ** math.ceil(math.log2(exact)) if power_of_two else exact)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_presets_activations(name: str) -> None:
    _, (bits, affine, power_of_two), _ = EXPECTED[name]
    spec = PRESETS[name].spec("layer", weight=False)
    assert spec is not None
    assert not spec.per_channel
    levels = 2**bits
    for low, high in ((-1.0, 3.0), (0.0, 3.0)):
        params = spec.params(low, high)
        assert params.qmax - params.qmin == levels - 1
        if affine:
            exact = (high - low) / (levels - 1)
            assert float(params.lo) == pytest.approx(low, abs=exact)
        else:
            assert int(params.zero_point) == 0
            assert params.qmin == (0 if low == 0 else -levels // 2)
            exact = high / params.qmax
        assert float(params.scale) == pytest.approx(2.0 ** math.ceil(math.log2(exact)) if power_of_two else exact)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_presets_bias(name: str) -> None:
    assert PRESETS[name].bias_bits == EXPECTED[name][2]


def test_int16_is_the_rules_of_int8_at_16_bits() -> None:
    wide, made = PRESETS["int16"], PRESETS["int8"].at_bits(16, "int16")
    assert (wide.weight, wide.activation, wide.bias_bits) == (made.weight, made.activation, made.bias_bits)
    assert made.name == "int16"


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("bits", [2, 5, 8, 9, 16])
def test_at_bits_changes_widths_alone(name: str, bits: int) -> None:
    scheme = PRESETS[name]
    other = scheme.at_bits(bits)
    assert other.name == f"{name}@{bits}"
    for before, after in ((scheme.weight, other.weight), (scheme.activation, other.activation)):
        assert after.bits == bits
        for rule in ("symmetric", "signed", "per_channel", "power_of_two", "narrow"):
            assert getattr(after, rule) == getattr(before, rule)
    assert other.bias_bits == (32 if bits <= 8 else 64)
    assert scheme == PRESETS[name]


def test_at_bits_leaves_what_is_float_in_float() -> None:
    own = QuantSpec(8, per_channel=True)
    scheme = Scheme("mine", None, QuantSpec(8), bias_bits=None, overrides={"a": None, "b": own})
    wide = scheme.at_bits(16)
    assert wide.weight is None
    assert wide.bias_bits is None
    assert wide.overrides == {"a": None, "b": QuantSpec(16, per_channel=True)}
    assert scheme.overrides == {"a": None, "b": own}
    with pytest.raises(PlanError, match=r"bits=17\b.*\b2\b.*\b16\b"):
        scheme.at_bits(17)


def test_overrides_win() -> None:
    wide = QuantSpec(16)
    scheme = Scheme("mine", QuantSpec(8), QuantSpec(4), overrides={"head": wide, "head.weight": None})
    assert scheme.spec("head", weight=False) is wide
    assert scheme.spec("head.weight", weight=True) is None
    assert scheme.spec("body", weight=False) == QuantSpec(4)
    assert scheme.spec("body.weight", weight=True) == QuantSpec(8)


def test_by_name_or_as_it_is() -> None:
    own = Scheme("mine", None, None)
    assert scheme_of(own) is own
    assert scheme_of("int8") is PRESETS["int8"]
    assert repr(own) == "Scheme('mine')"
    for wrong in ("int9", "", "INT8", None, 8):
        with pytest.raises(PlanError, match=rf"{wrong!r}.*{', '.join(PRESETS)}.*qkit\.Scheme"):
            scheme_of(wrong)


def test_power_of_two_scales_are_exact_powers_per_channel_too() -> None:
    peaks = torch.rand(50).double() + 1e-3
    params = PRESETS["int8-per-channel-power-of-two"].weight.params(-peaks, peaks, axis=0)
    mantissa, exponent = torch.frexp(params.scale)
    assert bool((mantissa == 0.5).all())
    assert len(exponent.unique()) > 2
    assert bool((params.hi >= peaks).all())
    assert bool((params.hi < 2 * peaks * 1.0001).all())


def test_an_accumulator_keeps_its_headroom_at_another_width() -> None:
    scheme = replace(PRESETS["int8"], accumulator_bits=20)
    assert scheme.at_bits(16).accumulator_bits == 36
    assert scheme.at_bits(8).accumulator_bits == 20
    assert replace(PRESETS["int16"], accumulator_bits=40).at_bits(8).accumulator_bits == 40, "the engine's own"
    assert PRESETS["int8"].at_bits(16).accumulator_bits is None
    assert replace(PRESETS["int4-weights"], accumulator_bits=20).at_bits(16).accumulator_bits == 40
    with pytest.raises(PlanError, match=r"accumulator_bits=4\b.*\b8\b.*\b64\b"):
        replace(scheme, accumulator_bits=4)
