"""The compiled loops where they can be had: everything they do is done by torch and numpy too, several times slower."""

from __future__ import annotations

import functools
import logging
from types import ModuleType

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
