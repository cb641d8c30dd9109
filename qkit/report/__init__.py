"""Degradation reports: what a study measured, as plain data and as a page that can be handed on."""

from qkit.report.data import Report, make
from qkit.report.files import check_path, write

__all__ = ["Report", "check_path", "make", "write"]
