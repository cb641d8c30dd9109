"""Grids of the wrong rule: signed where unsigned would do, powers of two, too few bits, narrow biases."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.faults.plants.plant import Bench, Plant, Probe, anywhere, names_of, override, step_of
from benchmarks.faults.setup import Setup
from benchmarks.faults.surgery import folded, norm_of, scale_channels, slope
from benchmarks.faults.truth import Mark
from qkit.quant.grids import QuantSpec
from qkit.quant.plan import FLOAT
from qkit.quant.schemes import PRESETS

#: A range lies this far above the power of two whose grid would just have held it.
ABOVE = 1.02
#: Share of its loss that any other rule of the same width must leave for a width to be called insufficient.
LEFT = 0.7


def _one_sided(setup: Setup, bench: Bench) -> list[str]:
    return [s.name for s in bench.graph.operations if s.quantized and s.act[0] == 0.0 and s.shape]


def _tap_rule(setup: Setup, bench: Bench, site: str, factor: float, **rule: Any) -> Mark:
    setup.scheme = override(setup.scheme, site, QuantSpec(bits=int(factor), **rule))
    return Mark(names_of(step_of(bench, site)))


def _weight_spec(bits: float, *, power_of_two: bool = False) -> QuantSpec:
    return QuantSpec(int(bits), symmetric=True, signed=True, per_channel=True, narrow=True, power_of_two=power_of_two)


def _relu_sites(setup: Setup, bench: Bench) -> list[str]:
    network = setup.network(bench.images.inputs[:8])
    return [u.conv for u in network.where(relu=True, readers=True)]


def _just_above(op: torch.Tensor) -> torch.Tensor:
    return torch.exp2(torch.ceil(torch.log2(op))) * ABOVE / op


def _power_tap(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """The layer is scaled until its range lies just above a power of two; its grid has to have a power of two as step."""
    network = setup.network(bench.images.inputs)
    unit = network.unit(site)
    (end,) = network.values([unit.end])
    by = float(_just_above(end.max() / (2.0 ** int(factor) - 1)))
    scale_channels(network, unit, range(len(slope(norm_of(network, unit)))), by)
    return _tap_rule(setup, bench, site, factor, power_of_two=True) if math.isfinite(by) else Mark()


def _power_weight(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """Every filter is scaled until its range lies just above a power of two."""
    network = setup.network(bench.images.inputs[:64])
    unit = network.unit(site)
    op = folded(network, unit).abs().amax((1, 2, 3)).clamp(min=1e-12) / (2.0 ** (int(factor) - 1) - 1)
    scale_channels(network, unit, range(len(op)), _just_above(op))
    setup.scheme = override(setup.scheme, f"{site}.weight", _weight_spec(factor, power_of_two=True))
    return Mark(unit.layers)


def _weight_width(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    path = site.removesuffix(".weight")
    setup.scheme = override(setup.scheme, f"{path}.weight", _weight_spec(factor))
    return Mark(frozenset((path, f"{path}.weight")))


def _awkward(setup: Setup, bench: Bench, bits: int) -> None:
    """Every filter ahead of a ReLU is scaled until its range lies just above a power of two, layer after layer."""
    network = setup.network(bench.images.inputs[:8])
    for unit in network.where(relu=True, readers=True):
        op = folded(network, unit).abs().amax((1, 2, 3)).clamp(min=1e-12) / (2.0 ** (bits - 1) - 1)
        scale_channels(network, unit, range(len(op)), _just_above(op))


def _network(setup: Setup, bench: Bench, site: str, factor: float, *, scheme: str) -> Mark:
    """A network of such filters under a scheme whose weights are `factor` bits wide."""
    _awkward(setup, bench, int(factor))
    preset = PRESETS[scheme]
    assert preset.weight is not None
    setup.scheme = replace(preset, name="low", weight=replace(preset.weight, bits=int(factor)))
    return Mark()


def _others_lose(study: Any, *, tensor: str, weight: bool) -> bool:
    """Whether every other rule of the same width loses about as much: then it is the width, not the rule."""
    bits = study.scheme.overrides[tensor].bits
    rules = [_weight_spec(bits)] if weight else [QuantSpec(bits, symmetric=False), QuantSpec(bits, symmetric=True)]
    plans = {"float": FLOAT, "now": study.plan}
    for rule in rules:
        for method in ("minmax", "mse") if weight else ("minmax", "mse", "percentile"):
            other = study.with_scheme(override(study.scheme, tensor, rule))
            other.calibrate(**{**study.methods, "methods": {tensor: method}, "percentile": 99.9}, progress=False)
            plans[f"{rule.symmetric} {method}"] = other.plan
    scores = study.evaluate(plans, progress=False)
    loss = {name: scores.loss(name).value for name in plans}
    return all(value >= LEFT * loss["now"] for name, value in loss.items() if name not in ("float", "now"))


def _few_bits_tap(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    mark = _tap_rule(setup, bench, site, factor, symmetric=False)
    return replace(mark, holds=partial(_others_lose, tensor=site, weight=False))


def _few_bits_weight(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    mark = _weight_width(setup, bench, site, factor)
    setup.calibrate["methods"] = {site: "mse"}
    return replace(mark, holds=partial(_others_lose, tensor=site, weight=True))


def _every_method_loses(study: Any) -> bool:
    """Whether weights of that width lose about as much by the other method."""
    other = study.with_scheme(study.scheme)
    other.calibrate(**{**study.methods, "weight_method": "minmax"}, progress=False)
    scores = study.evaluate({"float": FLOAT, "now": study.plan, "other": other.plan}, progress=False)
    return scores.loss("other").value >= LEFT * scores.loss("now").value


def _few_bits_network(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """All weights at few bits, each filter with a grid of its own, chosen by least squares: there is no better rule."""
    assert setup.scheme.weight is not None
    setup.scheme = replace(setup.scheme, name="low", weight=replace(setup.scheme.weight, bits=int(factor)))
    setup.calibrate["weight_method"] = "mse"
    return Mark(holds=_every_method_loses)


def _taps(setup: Setup, bench: Bench) -> list[str]:
    return list(bench.graph.taps)


def _weights(setup: Setup, bench: Bench) -> list[str]:
    return [op.weight for op in bench.graph.operations if op.weight is not None]


def _narrow_bias(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    setup.scheme = replace(setup.scheme, bias_bits=int(factor))
    return Mark()


_BITS = (6, 5, 4, 3, 2)

PLANTS = (
    Plant("signed-grid-on-one-sided-tensor", "tap", _one_sided, partial(_tap_rule, symmetric=True, signed=True), _BITS,
          twin=partial(_tap_rule, symmetric=True), probe=Probe(QuantSpec(2, symmetric=True, signed=True))),
    # min-max ranges: the range's end is then where the plant has put it
    Plant("power-of-two-scale", "tap", _relu_sites, _power_tap, _BITS, method="minmax", twin=partial(_tap_rule, symmetric=True)),
    Plant("power-of-two-scale", "weight", _relu_sites, _power_weight, _BITS, twin=_weight_width),
    # a whole network at few bits loses something under any rule: half of a weak fault's loss is let pass
    Plant("power-of-two-scale", "network", anywhere, partial(_network, scheme="int8-per-channel-power-of-two"), (6, 5, 4, 3),
          twin=partial(_network, scheme="int8-symmetric"),
          twin_loss=0.03),
    Plant("insufficient-bits", "tap", _taps, _few_bits_tap, (4, 3, 2), probe=Probe(QuantSpec(2, symmetric=False))),
    Plant("insufficient-bits", "weight", _weights, _few_bits_weight, (4, 3, 2), probe=Probe(_weight_spec(2), weight=True)),
    Plant("insufficient-bits", "network", anywhere, _few_bits_network, (6, 5, 4, 3, 2)),
    Plant("bias-width", "network", anywhere, _narrow_bias, (14, 13, 12, 11, 10, 9, 8, 7, 6, 5), ("int8", "int8-per-tensor")),
)  # fmt: skip
