"""qkit: is it quantization, and if it is, which tensor, why, and what is the cheapest thing that fixes it?"""

import importlib
import importlib.metadata
import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

from qkit.version import __version__

if TYPE_CHECKING:
    from qkit.errors import DataError, GraphError, MissingExtra, PlanError, QkitError, WorkersError
    from qkit.execution.capture import Capture
    from qkit.execution.depth import Depth
    from qkit.execution.detection import mean_average_precision
    from qkit.execution.extremes import RangeSamples
    from qkit.execution.flips import Flips
    from qkit.execution.gradient import GradientRanking
    from qkit.execution.metrics import Metric
    from qkit.execution.observing import observe
    from qkit.execution.pool import workers
    from qkit.execution.scores import Scores
    from qkit.execution.sensitivity import Sensitivity
    from qkit.execution.statistics import Interval
    from qkit.execution.together import Together
    from qkit.graph import Graph
    from qkit.linting import Finding, Lint, lint
    from qkit.quant.grids import QuantParams, QuantSpec, dequantize, fake_quantize, quantize
    from qkit.quant.histogram import Histogram
    from qkit.quant.plan import FLOAT, Plan
    from qkit.quant.schemes import PRESETS, Scheme
    from qkit.study import Study


#: Module -> the public names that live in it. They are loaded when they are first used: torch alone takes seconds, which
#: ``qkit --help`` and a module that merely mentions the kit need not pay.
_HOMES = {
    "execution.capture": ("Capture",),
    "errors": ("DataError", "GraphError", "MissingExtra", "PlanError", "QkitError", "WorkersError"),
    "graph": ("Graph",),
    "quant.histogram": ("Histogram",),
    "linting": ("Finding", "Lint", "lint"),
    "execution.detection": ("mean_average_precision",),
    "execution.depth": ("Depth",),
    "execution.extremes": ("RangeSamples",),
    "execution.flips": ("Flips",),
    "execution.gradient": ("GradientRanking",),
    "execution.metrics": ("Metric",),
    "execution.scores": ("Scores",),
    "execution.statistics": ("Interval",),
    "quant.grids": ("QuantParams", "QuantSpec", "dequantize", "fake_quantize", "quantize"),
    "quant.plan": ("FLOAT", "Plan"),
    "quant.schemes": ("PRESETS", "Scheme"),
    "execution.observing": ("observe",),
    "execution.pool": ("workers",),
    "execution.sensitivity": ("Sensitivity",),
    "execution.together": ("Together",),
    "study": ("Study",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def _told_of_namesakes() -> None:
    """Say so where the package index's qkit, another project with the same import name, is installed beside this one."""
    try:
        other = importlib.metadata.distribution("qkit")
    except importlib.metadata.PackageNotFoundError:
        return
    warnings.warn(
        f"another project, qkit {other.version}, is installed in this environment under the same import name: which of the two "
        "is imported, and whether its files are whole, is chance. Keep one: pip uninstall qkit qkit-cnn, then install the one "
        "that you want (this one from its clone).",
        stacklevel=3,
    )


_told_of_namesakes()


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
    "Depth",
    "Finding",
    "Flips",
    "GradientRanking",
    "Graph",
    "GraphError",
    "Histogram",
    "Interval",
    "Lint",
    "Metric",
    "MissingExtra",
    "Plan",
    "PlanError",
    "QkitError",
    "QuantParams",
    "QuantSpec",
    "RangeSamples",
    "Scheme",
    "Scores",
    "Sensitivity",
    "Study",
    "Together",
    "WorkersError",
    "__version__",
    "dequantize",
    "fake_quantize",
    "lint",
    "mean_average_precision",
    "observe",
    "quantize",
    "workers",
]
