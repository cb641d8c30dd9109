"""Degradation reports: what a study measured, as plain data and as a page that can be handed on; read back, and compared."""

from qkit.report.comparison import Comparison, LaneChange, compare
from qkit.report.data import Report, make
from qkit.report.files import check_path, write
from qkit.report.reading import read

__all__ = ["Comparison", "LaneChange", "Report", "check_path", "compare", "make", "read", "write"]
