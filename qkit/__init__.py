"""qkit: is it quantization, and if it is, which tensor, why, and what is the cheapest thing that fixes it?"""

import importlib
from types import ModuleType

from qkit.capture import Capture
from qkit.errors import DataError, GraphError, MissingExtra, PlanError, QkitError
from qkit.graph import Graph
from qkit.histogram import Histogram
from qkit.linting import Finding, Lint, lint
from qkit.metrics import Interval, Scores
from qkit.numerics import QuantParams, QuantSpec, dequantize, fake_quantize, quantize
from qkit.plan import FLOAT, Plan
from qkit.schemes import PRESETS, Scheme
from qkit.sensitivity import Sensitivity
from qkit.study import Study

__version__ = "0.1.0"

#: Loaded when they are first used, to keep the import light.
_PARTS = ("mixed", "ptc", "qat", "surgery")


def __getattr__(name: str) -> ModuleType:
    if name in _PARTS:
        return importlib.import_module(f"qkit.{name}")
    raise AttributeError(f"module 'qkit' has no attribute {name!r}")


__all__ = [
    "FLOAT",
    "PRESETS",
    "Capture",
    "DataError",
    "Finding",
    "Graph",
    "GraphError",
    "Histogram",
    "Interval",
    "Lint",
    "MissingExtra",
    "Plan",
    "PlanError",
    "QkitError",
    "QuantParams",
    "QuantSpec",
    "Scheme",
    "Scores",
    "Sensitivity",
    "Study",
    "dequantize",
    "fake_quantize",
    "lint",
    "quantize",
]
