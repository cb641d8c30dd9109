"""Stale statistics of batch norms, and numbers that are none."""

from __future__ import annotations

import torch

from benchmarks.faults.plants.plant import Bench, Plant, anywhere, elsewhere
from benchmarks.faults.setup import Setup
from benchmarks.faults.surgery import conv_of, norm_of, scale_channels, slope
from benchmarks.faults.truth import Mark


def _norms(setup: Setup, bench: Bench) -> list[str]:
    return list(setup.network(bench.images.inputs[:2]).units)


def _shifted_mean(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """Every running mean off by `factor` standard deviations, up or down."""
    network = setup.network(bench.images.inputs[:2])
    unit = network.unit(site)
    norm = norm_of(network, unit)
    signs = torch.tensor([bench.random.choice((-1.0, 1.0)) for _ in range(norm.num_features)])
    norm.running_mean += factor * signs * norm.running_var.sqrt()  # type: ignore[union-attr,operator]
    return Mark(unit.layers)


def _scaled_variance(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """Every running variance × factor."""
    network = setup.network(bench.images.inputs[:2])
    unit = network.unit(site)
    norm_of(network, unit).running_var *= factor  # type: ignore[operator]
    return Mark(unit.layers)


def _forgotten(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """The statistics of a share of all norms moved by `factor` of the way to those of a norm that has seen nothing: 0 and 1."""
    network = setup.network(bench.images.inputs[:2])
    for unit in network.units.values():
        norm = norm_of(network, unit)
        norm.running_mean *= 1.0 - factor  # type: ignore[operator]
        norm.running_var.lerp_(torch.ones_like(norm.running_var), factor)  # type: ignore[union-attr,arg-type]
    return Mark()


def _nan_weight(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """`factor` elements of a weight are NaN."""
    setup.calibrated = False
    network = setup.network(bench.images.inputs[:2])
    unit = network.unit(site)
    flat = conv_of(network, unit).weight.data.view(-1)
    for _ in range(int(factor)):
        flat[bench.random.randrange(len(flat))] = float("nan")
    return Mark(unit.layers)


def _nan_statistics(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """`factor` running variances of a norm are NaN, as after one batch of one sample in training mode."""
    setup.calibrated = False
    network = setup.network(bench.images.inputs[:2])
    unit = network.unit(site)
    variance = norm_of(network, unit).running_var
    for index in bench.random.sample(range(len(variance)), min(int(factor), len(variance))):  # type: ignore[arg-type]
        variance[index] = float("nan")  # type: ignore[index]
    return Mark(unit.layers)


def _relu_sites(setup: Setup, bench: Bench) -> list[str]:
    return [u.conv for u in setup.network(bench.images.inputs[:2]).where(relu=True, readers=True)]


def _overflow(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """Finite weights whose products exceed float32: a layer's output × 10**20, and what reads it × 10**20 as well."""
    setup.calibrated = False
    network = setup.network(bench.images.inputs[:2])
    unit = network.unit(site)
    by = 1e20 * factor
    scale_channels(network, unit, range(len(slope(norm_of(network, unit)))), by)
    read = [r.path for r in unit.readers or ()]
    for path in read:
        # the compensation undone, and as much again: the product of both passes the greatest float32
        setup.model.get_submodule(path).weight.data *= by * by  # type: ignore[operator]
    # the overflow is made where the product is: in what reads the unit
    return Mark(frozenset(p for path in read for p in _names(network, path)))


def _names(network: object, path: str) -> frozenset[str]:
    units = network.units  # type: ignore[attr-defined]
    return units[path].layers if path in units else frozenset((path, f"{path}.weight"))


PLANTS: tuple[Plant, ...] = (
    elsewhere("batchnorm-statistics", "mean", _norms, _shifted_mean, (0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)),
    elsewhere("batchnorm-statistics", "variance", _norms, _scaled_variance, (3.0, 6.0, 10.0, 20.0, 50.0, 200.0, 1000.0)),
    elsewhere("batchnorm-statistics", "small-variance", _norms, _scaled_variance, (0.3, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001)),
    elsewhere("batchnorm-statistics", "reset", anywhere, _forgotten, (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)),
    elsewhere("non-finite", "nan-weight", _norms, _nan_weight, (1, 3, 10)),
    elsewhere("non-finite", "nan-statistics", _norms, _nan_statistics, (1, 2, 4)),
    elsewhere("non-finite", "overflow", _relu_sites, _overflow, (1.0, 10.0)),
)
