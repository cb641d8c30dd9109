"""Reference pages from the public names: one page a group of names, so that a new name appears without anybody's doing."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

#: Groups of `qkit.__all__`, as they are looked for; names that are in none come under the last title.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Study": ("Study",),
    "Plans and grids": (
        "Plan", "FLOAT", "Scheme", "PRESETS", "QuantSpec", "QuantParams", "quantize", "dequantize", "fake_quantize",
    ),
    "Tensors, errors and scores": (
        "Capture", "Histogram", "Sensitivity", "GradientRanking", "Depth", "Together", "Scores", "Flips", "RangeSamples",
        "Interval", "Metric", "mean_average_precision", "Graph",
    ),
    "Errors": ("QkitError", "DataError", "GraphError", "PlanError", "MissingExtra"),
    "More": (),
}  # fmt: skip
#: Modules with names of their own to be used, and what their pages are called.
MODULES: Mapping[str, str] = {
    "qkit.diagnosis": "Diagnosis",
    "qkit.ptq": "Post-training calibration",
    "qkit.training": "Calibration in a training loop",
    "qkit.mixed": "Mixed precision",
    "qkit.qat": "Quantization-aware training",
    "qkit.surgery": "Surgery",
    "qkit.linting": "Lint",
    "qkit.report": "Reports",
    "qkit.widgets": "Widgets",
    "qkit.zoo": "Networks and data",
    "qkit.quant.calibration": "From observations to a plan",
    "qkit.quant.estimators": "Range estimators",
    "qkit.execution.evaluator": "The evaluator",
    "qkit.execution.pool": "Workers",
    "qkit.execution.capture": "Captured tensors",
    "qkit.execution.gradient": "All tensors at once",
    "qkit.execution.depth": "Loss along the depth",
    "qkit.execution.together": "The first tensors together",
    "qkit.execution.flips": "Samples that flip",
    "qkit.execution.extremes": "Samples that set ranges",
    "qkit.engines.lane": "Engines: the lane of one",
    "qkit.engines.compare": "Engines: comparing",
    "qkit.engines.onnx": "Engines: ONNX Runtime",
    "qkit.engines.traces": "Engines: traces of a device",
    "qkit.engines.tidl": "Engines: TIDL",
    "qkit.engines.plan_files.encodings": "Engines: encodings (AIMET)",
    "qkit.engines.plan_files.ranges": "Engines: plain ranges",
    "qkit.engines.torchao": "Engines: torchao",
}


@dataclass(frozen=True)
class Page:
    """A page of the reference.

    Attributes
    ----------
    file
        Its name, without suffix.
    title
        Its heading.
    module
        Where its names are imported from.
    names
        What it describes.
    """

    file: str
    title: str
    module: str
    names: tuple[str, ...]

    def text(self, known: Mapping[int, str]) -> str:
        """As reStructuredText for autodoc; what another page describes (`known`, by identity) is referred to."""
        module = importlib.import_module(self.module)
        lines = [self.title, "=" * len(self.title), "", f".. py:currentmodule:: {self.module}", ""]
        # the module's own words, where the page is the module's
        if self.module != "qkit":
            lines += [f".. automodule:: {self.module}", "   :no-members:", ""]
        for name in self.names:
            entry = _entry(module, name, known)
            # a page of one name is headed by it
            lines += entry[3:] if (name,) == self.names and name == self.title else entry
        return "\n".join(lines)

    def described(self) -> Iterator[tuple[int, str]]:
        """Identity and full name of everything that the page describes and that is no plain value."""
        module = importlib.import_module(self.module)
        for name in self.names:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isroutine(thing):
                yield id(thing), f"{self.module}.{name}"


def _entry(module: ModuleType, name: str, known: Mapping[int, str]) -> list[str]:
    thing: Any = getattr(module, name)
    full = f"{module.__name__}.{name}"
    if known.get(id(thing), full) != full:
        return [f"{name}", "~" * len(name), "", f"See :py:obj:`{known[id(thing)]}`.", ""]
    if inspect.isclass(thing):
        options = ["   :members:", "   :member-order: bysource"]
        # an error's own words are all that there is to it
        options += [] if issubclass(thing, BaseException) else ["   :special-members: __getitem__, __call__, __add__"]
        return [name, "~" * len(name), "", f".. autoclass:: {full}", *options, ""]
    if inspect.isroutine(thing):
        return [name, "~" * len(name), "", f".. autofunction:: {full}", ""]
    value = ["", f"   {_brief(thing)}"] if isinstance(thing, (Mapping, tuple, list, frozenset)) else []
    return [name, "~" * len(name), "", f".. py:data:: {full}", *value, ""]


def _brief(value: Any) -> str:
    """The keys or members of a table of names."""
    return ", ".join(f"``{key}``" for key in value if isinstance(key, str))


def public(module: ModuleType) -> tuple[str, ...]:
    """The module's `__all__`: what it promises, and all that the reference lists of it."""
    return tuple(module.__all__)


def pages() -> list[Page]:
    """All pages, in the order of the table of contents."""
    qkit = importlib.import_module("qkit")
    listed = [name for name in qkit.__all__ if not _elsewhere(qkit, name)]
    grouped = {name for names in GROUPS.values() for name in names}
    found = []
    for title, names in GROUPS.items():
        chosen = tuple(n for n in names if n in listed) or tuple(n for n in listed if n not in grouped)
        if chosen:
            found.append(Page(f"{len(found):02}-{_slug(title)}", title, "qkit", chosen))
    for name, title in MODULES.items():
        found.append(Page(f"{len(found):02}-{_slug(name)}", title, name, public(importlib.import_module(name))))
    return found


def _elsewhere(qkit: ModuleType, name: str) -> bool:
    """Whether the name is described on the page of the module that it comes from."""
    home = getattr(getattr(qkit, name), "__module__", "")
    return any(
        home.startswith(f"{module}.") or home == module for module in MODULES if name in public(importlib.import_module(module))
    ) and name not in {n for names in GROUPS.values() for n in names}


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-").replace(",", "").replace(".", "-")


def texts() -> dict[str, str]:
    """By file name, every page's text."""
    made = pages()
    known: dict[int, str] = {}
    for page in made:
        for key, full in page.described():
            known.setdefault(key, full)
    return {f"{page.file}.rst": page.text(known) for page in made}
