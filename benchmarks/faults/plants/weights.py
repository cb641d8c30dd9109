"""Faults in weights: a channel, or an element, that takes the tensor's grid for itself; rounding that leans to one side."""

from __future__ import annotations

import torch

from benchmarks.faults.plants.plant import Bench, Plant, override
from benchmarks.faults.setup import Setup
from benchmarks.faults.surgery import (
    conv_of,
    folded,
    least_important,
    norm_of,
    scale_channels,
    set_folded,
    silence,
    slope,
)
from benchmarks.faults.truth import Mark, NoSite
from qkit.quant.grids import QuantSpec

#: A step's fraction that every weight of a leaning layer lies above its code.
LEAN = 0.45


def _depthwise_sites(setup: Setup, bench: Bench) -> list[str]:
    network = setup.network(bench.images.inputs[:8])
    fed = [
        u.readers[0].path for u in network.where(relu=True, readers=True) if len(u.readers or ()) == 1 and u.readers[0].depthwise
    ]  # type: ignore[index]
    return [path for path in fed if path in network.units]


def _wide_depthwise(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """One depthwise filter × factor, its input channel ÷ factor."""
    network = setup.network(bench.images.inputs[:64])
    source = next(u for u in network.where(readers=True) if any(r.path == site for r in u.readers or ()))
    weight = folded(network, network.unit(site)).abs().amax((1, 2, 3))
    channel = least_important(network, source, 1)
    # factor is the width of this channel over the widest other one
    by = factor * float(weight.max() / weight[channel[0]].clamp(min=1e-3 * float(weight.max())))
    scale_channels(network, source, channel, 1.0 / by)
    return Mark(network.unit(site).layers)


def _relu_sites(setup: Setup, bench: Bench) -> list[str]:
    network = setup.network(bench.images.inputs[:8])
    return [u.conv for u in network.where(relu=True, depthwise=False, readers=True)]


def _wide_dead_channel(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """A filter whose output never passes the ReLU is `factor` times as wide as the widest other."""
    network = setup.network(bench.images.inputs[:64])
    unit = network.unit(site)
    (channel,) = least_important(network, unit, 1)
    weight = folded(network, unit).abs().amax((1, 2, 3))
    conv_of(network, unit).weight.data[channel] *= factor * float(weight.max() / weight[channel].clamp(min=1e-6))
    silence(network, unit, [channel])
    return Mark(unit.layers)


def _outlier_sites(setup: Setup, bench: Bench) -> list[str]:
    network = setup.network(bench.images.inputs[:8])
    fed = {r.path for u in network.where(relu=True, readers=True) for r in u.readers or () if not r.depthwise}
    return [path for path in network.units if path in fed]


def _outliers(setup: Setup, bench: Bench, site: str, factor: float, *, share: float | None) -> Mark:
    """Weights of `factor` times the widest, on an input channel that is always 0: one, or one in a share of all filters."""
    network = setup.network(bench.images.inputs[:64])
    sources = [u for u in network.where(relu=True, readers=True) if any(r.path == site for r in u.readers or ())]
    source = sources[0]
    (channel,) = least_important(network, source, 1)
    silence(network, source, [channel])
    unit = network.unit(site)
    conv, gain = conv_of(network, unit), slope(norm_of(network, unit)).abs()
    widest = float(folded(network, unit).abs().max())
    reader = next(r for r in source.readers or () if r.path == site)
    column, (height, width) = reader.offset + channel, conv.kernel_size
    filters = list(range(conv.out_channels))
    bench.random.shuffle(filters)
    alive = [f for f in filters if float(gain[f]) > 1e-2 * float(gain.max())]
    for index in alive[: 1 if share is None else max(1, round(share * len(filters)))]:
        conv.weight.data[index, column, height // 2, width // 2] = factor * widest / float(gain[index])
    return Mark(unit.layers)


def _one_outlier(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    return _outliers(setup, bench, site, factor, share=None)


def _outlier_a_filter(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    return _outliers(setup, bench, site, factor, share=0.9)


def _spec(bits: float) -> QuantSpec:
    return QuantSpec(bits=int(bits), symmetric=True, signed=True, per_channel=True, narrow=True)


def _lean_sites(setup: Setup, bench: Bench) -> list[str]:
    network = setup.network(bench.images.inputs[:8])
    # the lean adds up over many one-sided inputs: not in depthwise filters, nor on images or signed inputs
    fed = {r.path for u in network.where(relu=True, readers=True) for r in u.readers or () if not r.depthwise}
    return [path for path in network.units if path in fed]


def _leaning(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """Every weight lies `LEAN` of a step of its own `factor`-bit grid above its code, the widest of each filter on its code."""
    network = setup.network(bench.images.inputs[:128])
    unit = network.unit(site)
    if bool((slope(norm_of(network, unit)).abs() < 1e-6).any()):
        raise NoSite(f"{site} has filters without gain")
    (before,) = network.values([unit.pre])
    weight = folded(network, unit)
    widest = weight.abs().amax((1, 2, 3), keepdim=True)
    step = widest / (2.0 ** (factor - 1) - 1)
    codes = torch.floor(weight / step)
    leaning = torch.minimum((codes + LEAN) * step, widest * 0.999)
    set_folded(network, unit, torch.where(weight.abs() >= widest * 0.9999, weight, leaning))
    (after,) = network.values([unit.pre])
    # what moved on average goes back into the bias, so that float keeps its function
    norm_of(network, unit).bias.data += (before - after).mean((0, 2, 3))
    setup.scheme = override(setup.scheme, f"{site}.weight", _spec(factor))
    return Mark(unit.layers)


def _narrow_weight(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """The twin of a leaning layer: its own weights at the same width."""
    setup.scheme = override(setup.scheme, f"{site}.weight", _spec(factor))
    return Mark()


_WIDTHS = (10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1300.0, 2600.0)

PLANTS = (
    Plant("weight-channel-imbalance", "depthwise", _depthwise_sites, _wide_depthwise, _WIDTHS, ("int8-per-tensor",),
          needs="depthwise"),
    Plant("weight-channel-imbalance", "dead-channel", _relu_sites, _wide_dead_channel, _WIDTHS, ("int8-per-tensor",)),
    Plant("weight-outlier", "one", _outlier_sites, _one_outlier, _WIDTHS, ("int8-per-tensor",)),
    Plant("weight-outlier", "every-filter", _outlier_sites, _outlier_a_filter, _WIDTHS, ("int8",)),
    Plant("bias-shift", "leaning", _lean_sites, _leaning, (7, 6, 5, 4, 3), ("int8",), twin=_narrow_weight),
)  # fmt: skip
