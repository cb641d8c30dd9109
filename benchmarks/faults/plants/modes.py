"""Models that do not compute one function: left in training mode, noisy, or other than their trace."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.faults.networks import Unit
from benchmarks.faults.plants.plant import Bench, Plant, anywhere, elsewhere
from benchmarks.faults.setup import Setup
from benchmarks.faults.truth import Mark


class AlwaysDropout(nn.Module):
    """Dropout that somebody left on."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=True)


class Noise(nn.Module):
    """Adds noise of a standard deviation."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) * self.deviation


class RandomChannels(nn.Module):
    """Leaves out channels by the toss of a coin."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x[:, :, :1, :1]) > self.p)


class Alternating(nn.Module):
    """Negates and scales what it gets at every call but the first of each three: state that a trace cannot see."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x if self.calls % 3 == 1 else x * (1.0 - self.factor)


def units(setup: Setup, bench: Bench) -> list[str]:
    """Convolutions with a norm."""
    return list(setup.network(bench.images.inputs[:2]).units)


def behind(setup: Setup, bench: Bench, site: str, module: nn.Module) -> Unit:
    """Put a module behind the unit's norm, ahead of its ReLU; returns the unit as it was."""
    unit = setup.network(bench.images.inputs[:2]).unit(site)
    parent, _, name = unit.norm.rpartition(".")
    owner = setup.model.get_submodule(parent)
    setattr(owner, name, nn.Sequential(owner.get_submodule(name), module).eval())
    return unit


def around(unit: Unit, *members: str) -> frozenset[str]:
    """Names that count as a unit behind whose norm a module was put."""
    inner = {f"{unit.norm}.{i}" for i in range(2)}
    return unit.layers | inner | {f"{base}:{m}" for base in inner for m in members}


def _training(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """The model is handed over in training mode; a loader sorted by class makes its batch statistics bad."""
    setup.model.train()
    setup.by_class, setup.batch_size = True, int(factor)
    return Mark()


def _batch_statistics(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """Norms without running statistics take those of each batch, in evaluation mode too."""
    network = setup.network(bench.images.inputs[:2])
    for unit in network.units.values():
        norm: Any = setup.model.get_submodule(unit.norm)
        norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
        norm.num_batches_tracked = None
    setup.by_class, setup.batch_size = True, int(factor)
    return Mark()


def _dropout(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    return Mark(around(behind(setup, bench, site, AlwaysDropout(factor)), "dropout"))


def _deviation(setup: Setup, bench: Bench, site: str) -> float:
    network = setup.network(bench.images.inputs[:32])
    (pre,) = network.values([network.unit(site).pre])
    return float(pre.std())


def _noise(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    module = Noise(factor * _deviation(setup, bench, site))
    return Mark(around(behind(setup, bench, site, module), "randn_like", "mul", "add"))


def _random_channels(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    return Mark(around(behind(setup, bench, site, RandomChannels(factor)), "rand_like", "mul", "gt", "getitem"))


def _hook(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """A hook that the model needs: it adds what the norm's bias lacks. A trace of the modules alone loses it."""
    unit = setup.network(bench.images.inputs[:2]).unit(site)
    norm: Any = setup.model.get_submodule(unit.norm)
    lacks = factor * norm.running_var.new_tensor([bench.random.choice((-1.0, 1.0)) for _ in range(norm.num_features)])
    lacks = lacks * norm.weight.data.abs().mean()
    norm.bias.data -= lacks

    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + lacks.view(1, -1, 1, 1)

    norm.register_forward_hook(add)
    return Mark(unit.layers)


def _patched(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """One norm's `forward` is replaced on the instance, as some libraries do: it multiplies, its parameters are divided."""
    unit = setup.network(bench.images.inputs[:2]).unit(site)
    norm: Any = setup.model.get_submodule(unit.norm)
    norm.weight.data /= factor
    norm.bias.data /= factor

    def forward(self: nn.BatchNorm2d, x: Tensor) -> Tensor:
        return nn.BatchNorm2d.forward(self, x) * factor

    norm.forward = types.MethodType(forward, norm)
    return Mark(unit.layers)


def _stateful(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    return Mark(around(behind(setup, bench, site, Alternating(factor)), "mul"))


_BATCHES = (64, 32, 16, 8)
_SHARES = (0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)

PLANTS: tuple[Plant, ...] = (
    elsewhere("train-mode", "training", anywhere, _training, _BATCHES),
    # a norm that takes its batch's statistics is as well a fault of batch-norm statistics
    elsewhere("train-mode", "batch-statistics", anywhere, _batch_statistics, _BATCHES, synonyms=("batchnorm-statistics",)),
    # dropout left on is a module in training behaviour and draws random numbers: both names tell the user where to look
    elsewhere("train-mode", "dropout", units, _dropout, _SHARES, synonyms=("nondeterminism",)),
    elsewhere("nondeterminism", "noise", units, _noise, (0.3, 0.6, 1.0, 1.5, 2.5, 4.0, 8.0)),
    elsewhere("nondeterminism", "channels", units, _random_channels, _SHARES),
    elsewhere("graph-transform", "hook", units, _hook, (0.3, 0.6, 1.0, 1.5, 2.5, 4.0, 8.0), knows_expected=False),
    elsewhere("graph-transform", "patched", units, _patched, (0.5, 0.3, 0.2, 0.1, 0.05, 0.02), knows_expected=False),
    # what differs from call to call is not one function: nondeterminism says so too
    elsewhere("graph-transform", "state", units, _stateful, (0.5, 0.8, 1.2, 1.6, 2.0, 3.0), synonyms=("nondeterminism",)),
)
