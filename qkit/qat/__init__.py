"""Quantization-aware training: the network computes on its grids while it is trained."""

from qkit.qat.qat_module import QatModule
from qkit.qat.qat_wrapping import wrap
from qkit.qat.training import Fit, fit

__all__ = ["Fit", "QatModule", "fit", "wrap"]
