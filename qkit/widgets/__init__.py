"""Widgets for notebooks: Python holds the state and the numbers, JavaScript draws and reports gestures.

Nothing in the kit imports this package but `Study`, when a widget is asked for.
"""

from qkit.errors import MissingExtra

try:
    import anywidget  # noqa: F401
except ImportError as error:
    raise MissingExtra("qkit's widgets need anywidget and ipywidgets: pip install anywidget ipywidgets.") from error

from qkit.widgets.calibration_panel import CalibrationPanel
from qkit.widgets.explorer import Explorer
from qkit.widgets.graph_view import GraphView
from qkit.widgets.guide import Guide
from qkit.widgets.tuner import Tuner

__all__ = ["CalibrationPanel", "Explorer", "GraphView", "Guide", "Tuner"]
