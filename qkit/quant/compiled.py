"""The compiled loops and kernels where they can be had: all they do is done by torch and numpy too, several times slower."""

from __future__ import annotations

import functools
import logging
from types import ModuleType

import torch

logger = logging.getLogger(__name__)


@functools.cache
def kernels() -> ModuleType | None:
    """`qkit.quant.kernels`; None, which is said once, where numba cannot be imported."""
    try:
        from qkit.quant import kernels
    except ImportError as error:
        logger.warning(
            "numba cannot be imported (%s): the same is computed without compiled loops, which takes several times as long. "
            "Install numba to have them.", error,
        )  # fmt: skip
        return None
    return kernels


@functools.cache
def integer_kernels() -> ModuleType | None:
    """`qkit.quant.integer.kernels` where there are `kernels`."""
    if kernels() is None:
        return None
    from qkit.quant.integer import kernels as loops

    return loops


@functools.cache
def gpu_kernels() -> ModuleType | None:
    """`qkit.quant.gpu_kernels`, tried once; None, which is said, where they do not run. Triton comes with torch's CUDA builds."""
    try:
        from qkit.quant import gpu_kernels

        gpu_kernels.finish(torch.zeros(1, 8, device="cuda"), 1, act=(0.0, 1.0))
    except Exception as error:  # whatever Triton says where it is not there, finds no compiler, or does not know the card
        logger.warning(
            "Triton's kernels do not run here (%s): on the GPU torch's own operators compute the same, which takes several "
            "times as long. They need the package triton, a C compiler, and a card that Triton knows.", error,
        )  # fmt: skip
        return None
    return gpu_kernels


def kernels_for(device: torch.device) -> ModuleType | None:
    """`gpu_kernels` for a GPU that they are for; None for every other device."""
    return gpu_kernels() if device.type == "cuda" else None
