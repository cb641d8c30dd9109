"""Post-training calibration: everything that recovers accuracy without training."""

from qkit.ptc.pipeline import STEPS, calibrate
from qkit.ptc.treatment import Effect, Treatment

__all__ = ["STEPS", "Effect", "Treatment", "calibrate"]
