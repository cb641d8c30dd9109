"""Post-training calibration: everything that recovers accuracy without training."""

from qkit.ptq.absorption import Absorbed, absorb
from qkit.ptq.equalization import Equalized, equalize
from qkit.ptq.pipeline import STEPS, calibrate
from qkit.ptq.treatment import Effect, Treatment

__all__ = ["STEPS", "Absorbed", "Effect", "Equalized", "Treatment", "absorb", "calibrate", "equalize"]
