"""Controls: changes that look ugly and cost nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.faults.plants.modes import behind, units
from benchmarks.faults.plants.plant import Bench
from benchmarks.faults.setup import Setup
from benchmarks.faults.surgery import conv_of, folded, least_important, scale_channels, silence
from benchmarks.faults.truth import NoSite


class IgnoredNoise(nn.Module):
    """Draws random numbers and throws them away."""

    def forward(self, x: Tensor) -> Tensor:
        torch.randn_like(x)
        return x


def none(setup: Setup, bench: Bench) -> None:
    """As it was trained."""


def moderate_channels(setup: Setup, bench: Bench) -> None:
    """In every layer some channels four times as wide, compensated."""
    network = setup.network(bench.images.inputs[:32])
    for unit in network.where(relu=True, readers=True):
        scale_channels(network, unit, least_important(network, unit, 2), 4.0)


def wide_weight(setup: Setup, bench: Bench) -> None:
    """A dead filter eight times as wide as the others."""
    network = setup.network(bench.images.inputs[:64])
    sites = network.where(relu=True, depthwise=False, readers=True)
    if not sites:
        raise NoSite("no layer with a ReLU")
    unit = bench.random.choice(sites)
    (channel,) = least_important(network, unit, 1)
    wide = folded(network, unit).abs().amax((1, 2, 3))
    conv_of(network, unit).weight.data[channel] *= 8.0 * float(wide.max() / wide[channel].clamp(min=1e-6))
    silence(network, unit, [channel])


def ignored_noise(setup: Setup, bench: Bench) -> None:
    """A layer draws noise that nobody reads."""
    behind(setup, bench, bench.random.choice(units(setup, bench)), IgnoredNoise())


def idle_dropout(setup: Setup, bench: Bench) -> None:
    """Dropout in evaluation mode."""
    behind(setup, bench, bench.random.choice(units(setup, bench)), nn.Dropout(0.5))


def dim_calibration(setup: Setup, bench: Bench) -> None:
    """Calibration images a little brighter than the others: a real set of photographs is not better."""
    setup.calibration = lambda x: x * 1.05


def half_wide_range(setup: Setup, bench: Bench) -> None:
    """One range half as wide again as it need be."""
    tap = bench.random.choice(bench.graph.taps)

    def edit(study, plan):  # type: ignore[no-untyped-def]
        params = plan[tap].params
        return plan.with_range(tap, params.lo * 1.5, params.hi * 1.5)

    setup.edits.append(edit)


CONTROLS = {
    f.__name__.replace("_", "-"): f
    for f in (none, moderate_channels, wide_weight, ignored_noise, idle_dropout, dim_calibration, half_wide_range)
}
