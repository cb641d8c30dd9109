"""Degradation reports: what a study measured, as plain data and as a page that can be handed on; read back, and compared."""

from qkit.report.attachment import attach
from qkit.report.comparing.comparison import Comparison, LaneChange, compare
from qkit.report.contents.data import Report, make
from qkit.report.reading import read, schema
from qkit.report.writing import check_path, write

__all__ = ["Comparison", "LaneChange", "Report", "attach", "check_path", "compare", "make", "read", "schema", "write"]
