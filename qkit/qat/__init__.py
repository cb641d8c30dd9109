"""Quantization-aware training: the network computes on its grids while it is trained."""

from qkit.qat.module import QatModule
from qkit.qat.training import Fit, fit
from qkit.qat.wrapping import wrap

__all__ = ["Fit", "QatModule", "fit", "wrap"]
