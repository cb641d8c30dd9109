"""Post-training calibration: everything that recovers accuracy without training."""

from qkit.ptq.absorption import Absorbed, absorb
from qkit.ptq.equalization import Equalized, equalize
from qkit.ptq.pipeline import STEPS, calibrate
from qkit.ptq.smoothing import Smoothed, smooth
from qkit.ptq.treatment import Effect, Treatment

__all__ = ["STEPS", "Absorbed", "Effect", "Equalized", "Smoothed", "Treatment", "absorb", "calibrate", "equalize", "smooth"]
