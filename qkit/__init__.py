"""qkit: is it quantization, and if it is, which tensor, why, and what is the cheapest thing that fixes it?"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

#: Module -> the public names that live in it. They are loaded when they are first used: torch alone takes seconds, which
#: ``qkit --help`` and a module that merely mentions the kit need not pay.
_HOMES = {
    "capture": ("Capture",),
    "errors": ("DataError", "GraphError", "MissingExtra", "PlanError", "QkitError"),
    "graph": ("Graph",),
    "histogram": ("Histogram",),
    "linting": ("Finding", "Lint", "lint"),
    "metrics": ("Interval", "Scores"),
    "numerics": ("QuantParams", "QuantSpec", "dequantize", "fake_quantize", "quantize"),
    "plan": ("FLOAT", "Plan"),
    "schemes": ("PRESETS", "Scheme"),
    "sensitivity": ("Sensitivity",),
    "study": ("Study",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"qkit.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"qkit.{name}") is not None:
        return importlib.import_module(f"qkit.{name}")
    raise AttributeError(f"module 'qkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


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
