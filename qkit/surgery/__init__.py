"""Model surgery: replace what fixed point handles badly by what it handles well, and say what was replaced."""

from qkit.surgery.replace import RULES, lite
from qkit.surgery.result import Change, Surgery, Unchanged

__all__ = ["RULES", "Change", "Surgery", "Unchanged", "lite"]
