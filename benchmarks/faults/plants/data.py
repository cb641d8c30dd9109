"""Faults of the data: images that one side or both prepare in another way than the network was trained with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.faults.plants.plant import Bench, Plant, anywhere, elsewhere
from benchmarks.faults.setup import Setup
from benchmarks.faults.truth import NOT_QUANTIZATION, QUANTIZATION, Mark
from qkit.zoo.digits import MEAN, STD

Wrong = Callable[[Tensor, float], Tensor]


def _grey(x: Tensor) -> Tensor:
    return x * STD + MEAN


def contrast(x: Tensor, factor: float) -> Tensor:
    """Divided by another standard deviation."""
    return x * factor


def offset(x: Tensor, factor: float) -> Tensor:
    """Another mean subtracted: `factor` standard deviations too bright."""
    return x + factor


def bytes_not_fractions(x: Tensor, factor: float) -> Tensor:
    """Grey levels 0 to `factor` where 0 to 1 were meant, normalized after that."""
    return (_grey(x) * factor - MEAN) / STD


def inverted(x: Tensor, factor: float) -> Tensor:
    """Ink and paper swapped, blended in by `factor`."""
    return x + factor * ((1.0 - _grey(x) - MEAN) / STD - x)


def _then(first: Callable[[Tensor], Tensor] | None, second: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return second if first is None else lambda x: second(first(x))


def _calibration(setup: Setup, bench: Bench, site: str, factor: float, *, wrong: Wrong) -> Mark:
    """The calibration loader alone is wrong."""
    setup.calibration = _then(setup.calibration, partial(wrong, factor=factor))
    return Mark()


def _evaluation(setup: Setup, bench: Bench, site: str, factor: float, *, wrong: Wrong) -> Mark:
    """The evaluation loader alone is wrong."""
    setup.evaluation = _then(setup.evaluation, partial(wrong, factor=factor))
    return Mark()


def _both(setup: Setup, bench: Bench, site: str, factor: float, *, wrong: Wrong) -> Mark:
    """Both loaders are wrong alike: only the score that the user expects can tell."""
    _calibration(setup, bench, site, factor, wrong=wrong)
    return _evaluation(setup, bench, site, factor, wrong=wrong)


def _per_channel(setup: Setup, bench: Bench, factor: float) -> Tensor:
    """Make the network expect images whose channels are scaled by ``1 / factor, 1, factor``; returns the scales (1, 3, 1, 1).

    The grey images' three channels are equal, so only a network with a normalization per channel can tell their order.
    """
    scales = torch.tensor([1.0 / factor, 1.0, factor]).view(1, 3, 1, 1)
    first = setup.model.get_submodule(setup.network(bench.images.inputs[:2]).first)
    first.weight.data /= scales  # type: ignore[operator]
    return scales


def _swapped(setup: Setup, bench: Bench, site: str, factor: float, *, sides: str) -> Mark:
    """One loader, or both, give the colours in the other order."""
    scales = _per_channel(setup, bench, factor)

    def right(x: Tensor) -> Tensor:
        return x * scales

    def swapped(x: Tensor) -> Tensor:
        return (x * scales).flip(1)

    setup.calibration = _then(setup.calibration, swapped if sides in ("calibration", "both") else right)
    setup.evaluation = _then(setup.evaluation, swapped if sides in ("evaluation", "both") else right)
    return Mark()


_CONTRAST = (0.7, 0.5, 0.35, 0.25, 0.17, 0.12, 0.08, 0.05)
_OFFSET = (0.15, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LEVELS = (2.0, 4.0, 8.0, 16.0, 64.0, 255.0)
_BLEND = (0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
_SWAP = (1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
# ranges of far too bright calibration images are far too wide, which 16 bits forgive: by the fork of float, 16 and 8 bits
# that reads as quantization, by the vocabulary it does not; both readings are right
_EITHER = (NOT_QUANTIZATION, QUANTIZATION)

PLANTS: tuple[Plant, ...] = (
    elsewhere("calibration-mismatch", "contrast", anywhere, partial(_calibration, wrong=contrast), _CONTRAST, keeps_float=True),
    elsewhere("calibration-mismatch", "offset", anywhere, partial(_calibration, wrong=offset), tuple(-f for f in _OFFSET),
              keeps_float=True),
    elsewhere("calibration-mismatch", "bytes", anywhere, partial(_calibration, wrong=bytes_not_fractions),
              (64.0, 128.0, 255.0, 1020.0), keeps_float=True, verdicts=_EITHER),
    elsewhere("calibration-mismatch", "channel-order", anywhere, partial(_swapped, sides="calibration"), _SWAP, keeps_float=True),
    elsewhere("preprocessing", "contrast", anywhere, partial(_evaluation, wrong=contrast), _CONTRAST),
    elsewhere("preprocessing", "offset", anywhere, partial(_evaluation, wrong=offset), _OFFSET),
    elsewhere("preprocessing", "bytes", anywhere, partial(_evaluation, wrong=bytes_not_fractions), _LEVELS),
    elsewhere("preprocessing", "inverted", anywhere, partial(_evaluation, wrong=inverted), _BLEND),
    elsewhere("preprocessing", "channel-order", anywhere, partial(_swapped, sides="evaluation"), _SWAP),
    elsewhere("preprocessing", "both-offset", anywhere, partial(_both, wrong=offset), _OFFSET),
    elsewhere("preprocessing", "both-inverted", anywhere, partial(_both, wrong=inverted), _BLEND),
    elsewhere("preprocessing", "both-channel-order", anywhere, partial(_swapped, sides="both"), _SWAP),
)  # fmt: skip
