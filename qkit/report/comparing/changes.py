"""What differs between two reports besides their scores: layers' errors, grids, causes, and the setting of either run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qkit.report.contents.data import Report
from qkit.style import decibels, is_missing, number, plain

#: Changes of an SQNR below this are none, in dB.
_LEAST_DECIBELS = 0.05


@dataclass(frozen=True)
class LayerChange:
    """A tap whose error changed; SQNR in dB, infinite where there is no error.

    Attributes
    ----------
    tap
        Its name.
    old_local, new_local
        Of this layer's quantization alone.
    old, new
        Accumulated from the input on.
    """

    tap: str
    old_local: float
    new_local: float
    old: float
    new: float

    def figures(self) -> tuple[str, str, str, str]:
        """Local old and new, accumulated old and new, in dB."""
        return tuple(decibels(x) for x in (self.old_local, self.new_local, self.old, self.new))  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return dict(plain(asdict(self)))

    def __str__(self) -> str:
        return f"{self.tap} {decibels(self.old_local)} → {decibels(self.new_local)} dB"


@dataclass(frozen=True)
class GridChange:
    """A tensor whose grid differs, both grids in words."""

    tensor: str
    old: str
    new: str

    def to_dict(self) -> dict[str, Any]:
        """Plain strings."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """Something that was not the same in both runs.

    Attributes
    ----------
    what, old, new
        Its name and both values.
    matters
        Whether it touches the comparison: a change may then come from here.
    why
        What it does to the comparison.
    """

    what: str
    old: str
    new: str
    matters: bool
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Plain strings."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.what}: {self.old} → {self.new}" + (f" ({self.why})" if self.matters else "")


def _apart(old: float, new: float) -> float:
    """How far two SQNR are apart; two infinities are equal, a missing figure equals another."""
    if old == new or (math.isnan(old) and math.isnan(new)):
        return 0.0
    return math.inf if math.isnan(old) or math.isnan(new) else abs(new - old)


def layer_changes(old: Report, new: Report) -> tuple[LayerChange, ...]:
    """Taps of both, by the change of their local SQNR in the judged lane, then of their accumulated one."""
    found = []
    for tap in new.layers.index:
        if tap not in old.layers.index:
            continue
        figures = [
            float(report.layers.loc[tap, (report.narrow, column)]) for column in ("local sqnr", "sqnr") for report in (old, new)
        ]
        change = LayerChange(str(tap), *figures)
        apart = _apart(change.old_local, change.new_local), _apart(change.old, change.new)
        if max(apart) >= _LEAST_DECIBELS:
            found.append((apart, change))
    found.sort(key=lambda pair: pair[0], reverse=True)
    return tuple(change for _, change in found)


def grid_words(grid: Mapping[str, Any] | None) -> str:
    """A plan's grid in words."""
    if grid is None:
        return "float"
    lo, hi = grid_range(grid)
    scale, spec = np.atleast_1d(np.asarray(grid["scale"], float)), grid["spec"]
    step = f"scale {number(float(scale[0]))}"
    if len(scale) > 1:
        step = f"{len(scale)} scales from {number(float(scale.min()))} to {number(float(scale.max()))}"
    codes = ", codes chosen otherwise than by rounding" if "codes" in grid else ""
    return f"{spec['bits']} bits, {step}, {number(lo)} to {number(hi)}, by {grid['method']}{codes}"


def grid_range(grid: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the greatest value that a plan's grid holds, over all channels."""
    scale, zero = (np.atleast_1d(np.asarray(grid[key], float)) for key in ("scale", "zero_point"))
    return float(((grid["qmin"] - zero) * scale).min()), float(((grid["qmax"] - zero) * scale).max())


def grid_changes(old: Report, new: Report) -> tuple[GridChange, ...]:
    """Tensors whose grids differ in numbers, the greatest change of width first; how they were found is none."""
    before, after = old.plan["grids"], new.plan["grids"]
    keys = ("scale", "zero_point", "qmin", "qmax", "axis")
    found = []
    for tensor in [*before, *(name for name in after if name not in before)]:
        a, b = before.get(tensor), after.get(tensor)
        if a is not None and b is not None:
            if all(a[key] == b[key] for key in keys) and a.get("codes") == b.get("codes"):
                continue
            widths = [max(grid_range(grid)[1] - grid_range(grid)[0], 1e-300) for grid in (a, b)]
            change = abs(math.log(widths[1] / widths[0]))
        else:
            change = math.inf
        found.append((change, GridChange(tensor, grid_words(a), grid_words(b))))
    found.sort(key=lambda pair: pair[0], reverse=True)
    return tuple(grid for _, grid in found)


_Causes = tuple[tuple[str, str], ...] | None


def single_causes(old: Report, new: Report) -> tuple[_Causes, _Causes]:
    """Causes that only the new report has, and those that only the old one has, by kind and layer; None without a diagnosis."""
    if old.diagnosis is None or new.diagnosis is None:
        return None, None
    before, after = ([(c["kind"], c["layer"]) for c in (r.diagnosis or {})["causes"]] for r in (old, new))
    return tuple(c for c in after if c not in before), tuple(c for c in before if c not in after)


def settings_differences(old: Report, new: Report) -> tuple[Difference, ...]:
    """Model, data, counts and scheme, which touch the comparison, and the environment, which hardly does."""
    same_images = old.data["evaluation"]["fingerprint"] == new.data["evaluation"]["fingerprint"]
    figures: list[tuple[str, Any, Any, bool, str]] = [
        ("metric", old.metric["name"], new.metric["name"], True, "scores of different metrics cannot be compared"),
        ("model", old.model["name"], new.model["name"], True, "another network"),
        ("layers", old.model["taps"], new.model["taps"], True, "another network: layers are compared where the names agree"),
        ("multiply-accumulates", old.model["macs"], new.model["macs"], True, "another network or input size"),
        ("scheme", old.settings["scheme"], new.settings["scheme"], True, "other rules for the grids"),
        ("judged lane", old.narrow, new.narrow, True, "widths differ: the losses are each lane's own"),
        ("activations", old.settings["activations"], new.settings["activations"], True, "ranges are chosen otherwise"),
        ("weights", old.settings["weights"], new.settings["weights"], True, "ranges are chosen otherwise"),
        ("bias", old.settings["bias"], new.settings["bias"], True, "another width of the biases"),
        ("evaluation samples", old.metric["samples"], new.metric["samples"], True, "not the same images"),
        (
            "calibration samples", old.data["calibration"]["samples"], new.data["calibration"]["samples"], True,
            "ranges fit other data",
        ),
        (
            "samples behind the layers' figures", old.layer_samples, new.layer_samples, True,
            "SQNR is measured on other images",
        ),
        ("tolerance", old.metric["tolerance"], new.metric["tolerance"], True, "the verdicts were judged otherwise"),
    ]  # fmt: skip
    if not same_images and old.metric["samples"] == new.metric["samples"]:
        known = None not in (old.data["evaluation"]["fingerprint"], new.data["evaluation"]["fingerprint"])
        why = "scores and SQNR are of different images" if known else "whether the images are the same is not known"
        prints = [report.data["evaluation"]["fingerprint"] for report in (old, new)]
        figures.append(("evaluation data", *prints, True, why))
    names = ("qkit", "torch", "python", "numpy", "platform", "processor", "device", "threads")
    figures += [
        (name, old.environment.get(name), new.environment.get(name), False, "small numerical differences") for name in names
    ]
    differ = [figure for figure in figures if figure[1] != figure[2] or figure[0] == "evaluation data"]
    return tuple(Difference(what, _shown(a), _shown(b), matters, why) for what, a, b, matters, why in differ)


def _shown(value: Any) -> str:
    return "unknown" if is_missing(value) else value if isinstance(value, str) else number(value)
