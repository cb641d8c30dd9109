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
def gpu_kernels() -> ModuleType | None:
    """`qkit.quant.gpu_kernels`; None, which is said once, where Triton cannot be imported. It comes with torch's CUDA builds."""
    try:
        from qkit.quant import gpu_kernels
    except ImportError as error:
        logger.warning(
            "Triton cannot be imported (%s): on the GPU the same is computed by torch's own operators, which takes several times "
            "as long. Install triton to have its kernels.", error,
        )  # fmt: skip
        return None
    return gpu_kernels


def kernels_for(device: torch.device) -> ModuleType | None:
    """`gpu_kernels` for a GPU that they are for; None for every other device."""
    return gpu_kernels() if device.type == "cuda" else None
