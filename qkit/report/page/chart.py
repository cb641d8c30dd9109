"""The chart of all layers as a drawing inside the page: readable as it stands, sorted and explored where scripts run.

Every layer is a column of its own, one group of the drawing that a script can move: its errors above, what it loses when it
alone is quantized below, and its figures in words, which a pointer or the keyboard brings up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from qkit.report.contents.data import WIDE, Report
from qkit.report.text.tables import bars_shown
from qkit.style import decibels, is_missing, number, share, short, units_of

_LEFT, _RIGHT, _TOP, _BOTTOM = 54.0, 12.0, 34.0, 12.0
_ERRORS, _LOSSES, _GAP = 250.0, 96.0, 30.0
#: Width of a letter of a name, roughly.
_FONT = 6.1
_LONGEST = 34
#: Width of the columns together that fits the page without scrolling, as long as each keeps ten units.
_INNER = 1120.0
_LEAST_WIDTH = 520.0
#: Ways to sort: key, words, whether the greatest comes first.
ORDERS: Mapping[str, tuple[str, bool]] = {
    "order": ("order of execution", False),
    "local": ("lowest local SQNR", False),
    "sqnr": ("lowest accumulated SQNR", False),
    "loss": ("greatest loss alone", True),
    "clipped": ("most clipped", True),
    "macs": ("most multiply-accumulates", True),
    "name": ("name", False),
}


@dataclass(frozen=True)
class Chart:
    """The drawing, and what goes with it on the page."""

    svg: Markup
    orders: list[tuple[str, str, bool]]
    legend: list[tuple[str, str, str]]
    has_loss: bool


@dataclass(frozen=True)
class _Scale:
    """A value's place from the top, and the ticks of its axis."""

    low: float
    high: float
    top: float
    height: float
    ticks: Sequence[float]

    def __call__(self, value: float) -> float:
        share_of = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.top + self.height * (1 - share_of), 1)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most so many round numbers from `low` to `high`, steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(step * i, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(report: Report) -> Chart:
    """Draw the report's layers."""
    names = [str(name) for name in report.layers.index]
    shown = [lane for lane in (WIDE, report.narrow) if lane in report.lanes] or list(report.lanes)
    column = min(max(_INNER / max(len(names), 1), 10.0), 48.0)
    has_loss = bars_shown(report) > 0
    words = _FONT * max((len(short(name, _LONGEST)) for name in names), default=0) + 10
    bottom_of_errors = _TOP + _ERRORS
    losses = _losses(report, bottom_of_errors + _GAP) if has_loss else None
    names_at = bottom_of_errors + (_GAP + _LOSSES if losses else 0.0) + 8
    # the axes' words need their room where the layers are few
    width, height = max(_LEFT + column * len(names) + _RIGHT, _LEAST_WIDTH), names_at + words + _BOTTOM
    errors = _errors(report, shown)
    parts = [*_axes(errors, losses, width, report)]
    parts += [_line(report, lane, errors, column) for lane in shown]
    ranks = {entry["tap"]: rank for rank, entry in enumerate(report.worst, 1)}
    for i, name in enumerate(names):
        parts.append(_layer(report, i, name, shown, errors, losses, column, names_at, height, ranks.get(name)))
    label = f"Errors of {len(names)} layers in {' and '.join(shown)}" + (", and their losses alone" if losses else "")
    svg = Markup(
        '<svg class="chart" viewBox="0 0 {} {}" width="{}" height="{}" role="group" aria-label="{}" data-left="{}" '
        'data-column="{}">\n{}\n</svg>'
    ).format(
        _n(width), _n(height), _n(width), _n(height), label, _n(_LEFT + column / 2), _n(column), Markup("\n").join(parts)
    )  # fmt: skip
    orders = [(key, text, down) for key, (text, down) in ORDERS.items() if key != "loss" or has_loss]
    legend = [(lane, look, text) for lane in shown for look, text in _looks(report, lane)]
    return Chart(svg, orders, [(_role(report, lane), look, f"{lane}, {text}") for lane, look, text in legend], has_loss)


def _looks(report: Report, lane: str) -> list[tuple[str, str]]:
    looks = [("dot", "accumulated"), ("triangle", "local")]
    return [*looks, ("diamond", "weight alone")] if (lane, "sqnr") in report.weights else looks


def _role(report: Report, lane: str) -> str:
    return {WIDE: "wide", report.narrow: "narrow"}.get(lane, "other")


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _figures(report: Report, shown: Sequence[str]) -> list[float]:
    found = [float(v) for lane in shown for column in ("sqnr", "local sqnr") for v in report.layers[lane, column]]
    found += [float(v) for lane in shown if (lane, "sqnr") in report.weights for v in report.weights[lane, "sqnr"]]
    return [v for v in found if math.isfinite(v)]


def _errors(report: Report, shown: Sequence[str]) -> _Scale:
    finite = _figures(report, shown)
    low, high = min([*finite, 0.0]), max([*finite, 20.0])
    # the topmost strip is infinity's
    return _Scale(low - 3, high + 0.09 * (high - low), _TOP, _ERRORS, ticks(low, high))


def _losses(report: Report, top: float) -> _Scale:
    assert report.sensitivity is not None
    units = units_of(report.metric)
    values = [units.factor * float(v) for v in report.sensitivity[["loss", "loss low", "loss high"]].to_numpy().ravel()]
    finite = [v for v in values if math.isfinite(v)]
    low, high = min([*finite, 0.0]), max([*finite, 0.0])
    if high - low < 1e-9:
        high = low + 1.0
    return _Scale(low, high, top, _LOSSES, ticks(low, high, 4))


def _axes(errors: _Scale, losses: _Scale | None, width: float, report: Report) -> list[Markup]:
    parts = []
    right = _n(width - _RIGHT)
    for scale in (errors, losses):
        for tick in scale.ticks if scale else ():
            assert scale is not None
            y = scale(tick)
            kind = "zero" if tick == 0 else "grid"
            parts.append(Markup('<line class="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(kind, _n(_LEFT), right, y, y))
            parts.append(Markup('<text class="tick" x="{}" y="{}">{}</text>').format(_n(_LEFT - 6), _n(y + 3.5), _tick(tick)))
    top = errors(math.inf)
    parts.append(Markup('<text class="tick" x="{}" y="{}">∞</text>').format(_n(_LEFT - 6), _n(top + 3.5)))
    parts.append(Markup('<text class="axis" x="4" y="12">SQNR in dB, higher is better</text>'))
    if losses is not None:
        units = units_of(report.metric)
        unit = f" in {units.points}" if units.points else ""
        said = f"loss with this layer alone in {report.narrow}{unit}, with its 95 % interval"
        parts.append(Markup('<text class="axis" x="4" y="{}">{}</text>').format(_n(losses.top - 10), said))
    return parts


def _tick(value: float) -> str:
    return number(value, 3) if value != int(value) else number(int(value))


def _line(report: Report, lane: str, errors: _Scale, column: float) -> Markup:
    points = [
        f"{_n(_LEFT + column * (i + 0.5))},{errors(float(v))}"
        for i, v in enumerate(report.layers[lane, "sqnr"])
        if not math.isnan(float(v))
    ]
    return Markup('<polyline class="line {}" points="{}"/>').format(_role(report, lane), " ".join(points))


def _mark(look: str, role: str, y: float) -> Markup:
    if look == "dot":
        return Markup('<circle class="{}" cy="{}" r="3.4"/>').format(role, y)
    if look == "triangle":
        return Markup('<path class="{}" d="M-4 {}h8l-4 -7z"/>').format(role, _n(y + 3))
    return Markup('<path class="{} hollow" d="M0 {}l3.6 3.6l-3.6 3.6l-3.6 -3.6z"/>').format(role, _n(y - 3.6))


def _layer(
    report: Report, i: int, name: str, shown: Sequence[str], errors: _Scale, losses: _Scale | None, column: float,
    names_at: float, height: float, rank: int | None,
) -> Markup:  # fmt: skip
    row = report.layers.loc[name]
    half = column / 2
    parts = [
        Markup('<title>{}</title><rect class="hit" x="{}" y="{}" width="{}" height="{}"/>').format(
            "\n".join(_words(report, name, row, shown)), _n(-half), _n(_TOP - 8), _n(column), _n(height - _TOP)
        )
    ]
    if rank is not None:
        band = Markup('<rect class="band" x="{}" y="{}" width="{}" height="{}"/><text class="rank" y="{}">{}</text>')
        parts.append(band.format(_n(-half + 1), _n(_TOP), _n(column - 2), _n(_ERRORS), _n(_TOP - 3), rank))
    for lane in shown:
        role = _role(report, lane)
        weight = row["tap", "weight"]
        own: dict[Any, Any] = report.weights[lane, "sqnr"].to_dict() if (lane, "sqnr") in report.weights else {}
        if isinstance(weight, str) and weight in own:
            parts.append(_mark("diamond", role, errors(float(own[weight]))))
        for look, figure in (("triangle", "local sqnr"), ("dot", "sqnr")):
            if not is_missing(row[lane, figure]):
                value: Any = row[lane, figure]
                parts.append(_mark(look, role, errors(float(value))))
    data: dict[str, Any] = {
        "order": i,
        "local": row[report.narrow, "local sqnr"],
        "sqnr": row[report.narrow, "sqnr"],
        "clipped": row[report.narrow, "clipped"],
        "macs": row["tap", "macs"],
    }
    if losses is not None and report.sensitivity is not None and name in report.sensitivity.index:
        alone = report.sensitivity.loc[name]
        data["loss"] = alone["loss"]
        parts.append(_bar(report, losses, alone, column))
    parts.append(
        Markup('<text class="name" transform="translate(3.5 {}) rotate(-90)">{}</text>').format(
            _n(names_at), short(name, _LONGEST)
        )
    )
    values = Markup("").join(
        Markup(' data-{}="{}"').format(key, f"{float(v):.6g}") for key, v in data.items() if not is_missing(v)
    )  # fmt: skip
    x = _n(_LEFT + column * (i + 0.5))
    return Markup('<g class="layer" data-name="{}"{} transform="translate({} 0)">{}</g>').format(
        name, values, x, Markup("").join(parts)
    )


def _bar(report: Report, losses: _Scale, alone: Any, column: float) -> Markup:
    factor = units_of(report.metric).factor
    value, low, high = (losses(factor * float(alone[c])) for c in ("loss", "loss low", "loss high"))
    zero, kind = losses(0.0), "sure" if float(alone["loss low"]) > 0 else "unsure"
    bar = Markup('<rect class="loss {}" x="{}" y="{}" width="{}" height="{}"/><path class="whisker" d="M0 {}V{}"/>')
    wide = min(10.0, column * 0.6)
    return bar.format(kind, _n(-wide / 2), _n(min(value, zero)), _n(wide), _n(max(abs(value - zero), 0.8)), low, high)


def _words(report: Report, name: str, row: Any, shown: Sequence[str]) -> list[str]:
    """A layer's figures, as a pointer brings them up."""
    units = units_of(report.metric)
    lines = [name, f"{row['tap', 'kind']}, {row['tap', 'shape'].replace('x', '×') or 'scalar'}"]
    lines += [
        f"{lane}: local {decibels(row[lane, 'local sqnr'])} dB, accumulated {decibels(row[lane, 'sqnr'])} dB"
        for lane in reversed(shown)
    ]
    lines.append(
        f"{report.narrow} clips {share(row[report.narrow, 'clipped'])}, uses {share(row[report.narrow, 'used'])} of its range"
    )
    if report.sensitivity is not None and name in report.sensitivity.index:
        alone = report.sensitivity.loc[name]
        lines.append(f"loses alone {units.amount(alone['loss'], alone['loss low'], alone['loss high'])}")
    if row["tap", "macs"]:
        lines.append(f"{number(int(row['tap', 'macs']))} multiply-accumulates")
    return lines
