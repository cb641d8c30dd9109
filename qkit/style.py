"""The look of everything shown: colours by role, numbers as a person reads them and as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

#: Colours by role: in light and in dark surroundings. All light ones differ, since they are found again in the SVG.
COLOURS = {
    "ink": ("#24292f", "#e6e8eb"),
    "muted": ("#6b7280", "#9aa3af"),
    "lines": ("#d5d9df", "#3b4149"),
    "page": ("#fefefe", "#1b1e22"),
    "wide": ("#0f73b3", "#5cb3ea"),
    "narrow": ("#cc5f00", "#ff9d4d"),
    "other": ("#7a4fb0", "#b79af0"),
    "bad": ("#b3261e", "#ff7b72"),
    "good": ("#1c7a55", "#56c596"),
}
INK, MUTED, LINES, PAGE, WIDE_COLOUR, NARROW_COLOUR, OTHER, BAD, GOOD = (light for light, _ in COLOURS.values())

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qkit",
    "font.size": 9.0,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": LINES,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    # names of layers and classes are text, whatever signs they hold
    "text.parse_math": False,
}
_LONGEST_NAME = 34
NOTHING = "–"


def is_missing(value: Any) -> bool:
    """None, NaN or pandas' NA."""
    return value is None or value is pd.NA or (isinstance(value, (float, np.floating)) and math.isnan(value))


def plain(value: Any) -> Any:
    """Nested containers, frames and numbers as strict JSON has them: infinities as strings, NaN and missing as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    return None if is_missing(value) else json_numbers({"": value})[""]


def frame_dict(frame: pd.DataFrame) -> dict[str, Any]:
    """A frame by row name; columns of two levels become nested dicts."""
    rows: dict[str, Any] = {}
    for name, values in zip(frame.index, frame.itertuples(index=False, name=None), strict=True):
        row: dict[str, Any] = {}
        for column, value in zip(frame.columns, values, strict=True):
            levels = [str(level) for level in np.atleast_1d(np.asarray(column, dtype=object))]
            place = row.setdefault(levels[0], {}) if len(levels) > 1 else row
            place[levels[-1]] = plain(value)
        rows[str(name)] = row
    return rows


def number(value: Any, digits: int = 4) -> str:
    """`digits` significant digits, powers of ten where plain digits would be long; a dash where there is no value."""
    if is_missing(value):
        return NOTHING
    if isinstance(value, str):
        return value
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}".replace(",", "\u202f").replace("-", "−")
    if not 1e-3 <= abs(value) < 10**6:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}".replace("-", "−")


def decibels(value: Any) -> str:
    """One decimal."""
    if is_missing(value) or math.isinf(value):
        return number(value)
    return f"{round(float(value), 1) + 0.0:.1f}".replace("-", "−")  # 0 has no sign


def share(value: Any) -> str:
    """A share of 1 in percent, with two significant digits where it is small."""
    if is_missing(value):
        return NOTHING
    percent = 100.0 * float(value)
    if percent == 0 or math.isinf(percent):
        return "0 %" if percent == 0 else number(percent) + " %"
    if percent < 0.001:
        return "< 0.001 %"
    return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2g} %"


@dataclass(frozen=True)
class Units:
    """How scores and losses read: percent and points for shares, numbers with their unit for other metrics.

    Attributes
    ----------
    percent
        Whether scores are shares of 1.
    unit
        Of scores that are none, such as "dB".
    lower
        Whether lower is better: scores are kept with their sign changed then, and shown as they are.
    """

    percent: bool
    unit: str = ""
    lower: bool = False

    @property
    def factor(self) -> float:
        """What losses are multiplied by."""
        return 100.0 if self.percent else 1.0

    @property
    def points(self) -> str:
        """After a loss: "points", the unit, or nothing."""
        return "points" if self.percent else self.unit

    def said(self, loss: float) -> str:
        """A round loss with its unit, for a sentence: "1 point", "0.3 dB"."""
        text = f"{self.factor * loss:.4g}"
        return f"{text} {'point' if self.percent and text == '1' else self.points}".strip()

    @property
    def after(self) -> str:
        """After what an axis or a column shows: its unit behind a comma, or nothing."""
        unit = "%" if self.percent else self.unit
        return f", {unit}" if unit else ""

    def score(self, value: Any) -> str:
        """A score."""
        if self.lower and not is_missing(value):
            value = -value
        if self.percent and not is_missing(value) and math.isfinite(value):
            return f"{100 * value:.2f} %"
        return f"{number(value)} {self.unit}".strip() if not is_missing(value) else number(value)

    def loss(self, value: Any, *, sign: bool = False) -> str:
        """A loss, without its unit; `sign` marks gains and losses both."""
        if is_missing(value) or math.isinf(value) or not self.percent:
            text = number(value)
            positive = not is_missing(value) and value > 0
        else:
            text = f"{100 * value:.2f}".replace("-0.00", "0.00").replace("-", "−")
            positive = text[0] != "−" and text != "0.00"
        return f"+{text}" if sign and positive else text

    def interval(self, low: Any, high: Any, *, loss: bool = False) -> str:
        """The ends of an interval."""
        if not loss and self.lower:
            low, high = high, low
        show = self.loss if loss else self.score
        unit = " %" if self.percent else f" {self.unit}" if self.unit else ""
        return f"{show(low).removesuffix(unit) if unit else show(low)} to {show(high)}"

    def amount(self, value: Any, low: Any, high: Any) -> str:
        """A loss with unit and interval, for a sentence."""
        unit = f" {self.points}" if self.points else ""
        return f"{self.loss(value)}{unit} [{self.loss(low)}, {self.loss(high)}]"

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"percent": self.percent, "unit": self.unit, "lower": self.lower}


def units_of(metric: Mapping[str, Any]) -> Units:
    """Those of a metric in a report's figures; reports of earlier versions know of percent alone."""
    return Units(bool(metric["percent"]), str(metric.get("unit", "")), bool(metric.get("lower", False)))


#: Of a score of which no unit is known.
PLAIN = Units(percent=False)


def short(name: str, most: int = _LONGEST_NAME) -> str:
    """A name cut in its middle where it is too long for an axis."""
    name = " ".join(name.split()) or "(unnamed)"
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


def json_numbers(values: Mapping[Any, Any]) -> dict[str, Any]:
    """Numbers that JSON has: infinities as strings, NaN and missing as None."""
    plain: dict[str, Any] = {}
    for key, value in values.items():
        if value is None or (isinstance(value, float) and math.isnan(value)):
            plain[str(key)] = None
        elif isinstance(value, float) and math.isinf(value):
            plain[str(key)] = "inf" if value > 0 else "-inf"
        else:
            plain[str(key)] = value.item() if isinstance(value, np.generic) else value
    return plain
