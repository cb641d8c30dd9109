"""Faults in activations: rare spikes, wide channels, branches of unequal width at a concatenation."""

from __future__ import annotations

import torch

from benchmarks.faults.networks import Network, Unit
from benchmarks.faults.plants.plant import Bench, Plant, names_of, override
from benchmarks.faults.setup import Setup
from benchmarks.faults.surgery import columns, least_important, most_important, norm_of, scale_channels, slope
from benchmarks.faults.truth import Mark, NoSite
from qkit.quant.grids import QuantSpec

#: Share of positions at which a spiking channel fires.
FIRES = 0.003
#: Share of a layer's channels that are made wide, the ones that matter most: clipping them is no cure.
WIDE = 0.25
_SIXTEEN = QuantSpec(bits=16, symmetric=True, signed=True, per_channel=True, narrow=True)


def _sites(setup: Setup, bench: Bench) -> list[str]:
    network = setup.network(bench.images.inputs[:8])
    return [u.conv for u in network.where(relu=True, readers=True)]


def _spikes(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """One channel is 0 but for rare spikes of `factor` times the tensor's greatest value; nothing reads it."""
    network = setup.network(bench.images.inputs)
    unit = network.unit(site)
    (channel,) = least_important(network, unit, 1)
    end, pre = network.values([unit.end, unit.pre])
    norm = norm_of(network, unit)
    gamma, beta = float(norm.weight.data[channel]), float(norm.bias.data[channel])
    if abs(gamma) < 1e-6:
        raise NoSite(f"{site} channel {channel} has no gain to spike with")
    z = ((pre[:, channel] - beta) / gamma).flatten()
    quiet = float(torch.quantile(z[torch.randperm(z.numel(), generator=torch.Generator().manual_seed(0))[:100_000]], 1 - FIRES))
    peak = float(z.max()) - quiet
    if peak <= 1e-3:
        raise NoSite(f"{site} channel {channel} has no tail to spike with")
    gain = factor * float(end.max()) / peak
    norm.weight.data[channel] = gain
    norm.bias.data[channel] = -gain * quiet
    for part in columns(network, unit, channel):
        part.zero_()
    return Mark(unit.layers)


def _spare_readers(setup: Setup, network: Network, unit: Unit) -> None:
    """16 bits for the weights that compensate a wide channel, so that the activation alone suffers."""
    for reader in unit.readers or ():
        if not reader.depthwise:  # a depthwise filter has a grid of its own per channel
            setup.scheme = override(setup.scheme, f"{reader.path}.weight", _SIXTEEN)


def _wide_channels(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """The channels that matter most × factor, the weights that read them ÷ factor."""
    network = setup.network(bench.images.inputs[:64])
    unit = network.unit(site)
    count = max(1, round(WIDE * len(slope(norm_of(network, unit)))))
    scale_channels(network, unit, most_important(network, unit, count), factor)
    _spare_readers(setup, network, unit)
    return Mark(unit.layers)


def _join_sites(setup: Setup, bench: Bench) -> list[str]:
    network = setup.network(bench.images.inputs[:8])
    steps = [s for s in bench.graph.operations if s.kind == "concat"]
    if len(steps) != len(network.joins):
        return []
    return [s.name for i, s in enumerate(steps) if len(_scalable(network, i)) > 1]


def _scalable(network: Network, join: int) -> list[Unit]:
    return [u for u in network.branches(join) if u.relu and u.readers]


def _mismatched(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """All branches of a concatenation but one ÷ factor, the weights that read them × factor."""
    network = setup.network(bench.images.inputs[:64])
    steps = [s for s in bench.graph.operations if s.kind == "concat"]
    index = next(i for i, s in enumerate(steps) if s.name == site)
    branches = _scalable(network, index)
    wide = bench.random.randrange(len(branches))
    for i, unit in enumerate(branches):
        if i != wide:
            scale_channels(network, unit, range(len(slope(norm_of(network, unit)))), 1.0 / factor)
        _spare_readers(setup, network, unit)
    return Mark(names_of(steps[index]))


_FACTORS = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)

PLANTS = (
    Plant("activation-outlier", "spikes", _sites, _spikes, _FACTORS, ("int8",), "minmax"),
    Plant("activation-channel-imbalance", "wide-channels", _sites, _wide_channels, _FACTORS, ("int8",)),
    Plant("mismatched-join", "concat", _join_sites, _mismatched, _FACTORS, ("int8",), "minmax", needs="concat"),
)
