"""Post-training calibration: everything that recovers accuracy without training."""

from qkit.ptc.absorption import Absorbed, absorb
from qkit.ptc.equalization import Equalized, equalize
from qkit.ptc.module import PtcModule
from qkit.ptc.pipeline import STEPS, calibrate
from qkit.ptc.treatment import Effect, Treatment
from qkit.ptc.wrapping import wrap

__all__ = ["STEPS", "Absorbed", "Effect", "Equalized", "PtcModule", "Treatment", "absorb", "calibrate", "equalize", "wrap"]
