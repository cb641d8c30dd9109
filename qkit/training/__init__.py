"""Calibration in a training loop: a module that stands where the model stood, and learns its grids from the batches it sees."""

from qkit.training.ptq_module import PtqModule
from qkit.training.ptq_wrapping import calibrating

__all__ = ["PtqModule", "calibrating"]
