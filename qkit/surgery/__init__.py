"""Model surgery: replace what fixed point handles badly by what it handles well, and say what was replaced."""

from qkit.surgery.changes import Change, Surgery, Unchanged
from qkit.surgery.replace import RULES, lite

__all__ = ["RULES", "Change", "Surgery", "Unchanged", "lite"]
