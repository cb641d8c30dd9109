"""Is it quantization? The verdict from the lanes' scores."""

from qkit.diagnosis.verdict import Verdict, judge

__all__ = ["Verdict", "judge"]
