"""Is it quantization, where, why, and what fixes it: the verdict from lanes, and causes confirmed by intervention."""

from qkit.diagnosis.answer import Diagnosis
from qkit.diagnosis.candidates import Cause
from qkit.diagnosis.diagnose import Cost, cost, diagnose
from qkit.diagnosis.remedies import Remedy
from qkit.diagnosis.verdict import Verdict, judge

__all__ = ["Cause", "Cost", "Diagnosis", "Remedy", "Verdict", "cost", "diagnose", "judge"]
