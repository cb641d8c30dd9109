"""What boxes are coloured by: figures of operations, of blocks made of them, and their place on a scale.

The scale is one colour that grows stronger, or two (orange and blue) for differences, which people with any of the common
colour vision deficiencies tell apart; the number stands in the box as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qkit.errors import QkitError
from qkit.figures.network.blocks import Network
from qkit.figures.network.layout import Layout
from qkit.style import NOTHING, Units, decibels, number

#: Values of operations by name; infinities are values, what is missing has none.
Values = Mapping[str, float]
#: Shares of the scale that the legend names.
_TICKS = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Quantity:
    """A figure that every operation has, or may have.

    Attributes
    ----------
    key, name, unit
        "propagated", "propagated error (SQNR)", "dB".
    show
        How a value reads, without its unit.
    join
        What a block's figure is made of those of its operations.
    low
        Whether low values are the ones to look at: they have the strong colour.
    log
        Whether the scale is logarithmic.
    by_lane
        Whether it differs between lanes.
    tip
        What it says.
    """

    key: str
    name: str
    unit: str
    show: Callable[[Any], str]
    join: Literal["least", "greatest", "sum"]
    low: bool
    log: bool = False
    by_lane: bool = True
    tip: str = ""

    def joined(self, values: Sequence[float]) -> float | None:
        """A block's figure; None where no operation has one."""
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return None
        if self.join == "sum":
            return sum(known)
        return min(known) if self.join == "least" else max(known)

    def words(self, value: float | None) -> str:
        """A value with its unit."""
        return NOTHING if value is None else f"{self.show(value)} {self.unit}".strip()


@dataclass(frozen=True)
class Painted:
    """Colours of a layout's boxes.

    Attributes
    ----------
    shares
        Of each box from 0 to 1, how strong its colour is; of differences from -1 (better) to 1 (worse). None: no value.
    texts
        What stands in it.
    legend
        Shares with what they stand for, the weakest first.
    title
        What is shown.
    words
        What strong colours mean.
    signed
        Whether these are differences.
    """

    shares: tuple[float | None, ...]
    texts: tuple[str, ...]
    legend: tuple[tuple[float, str], ...]
    title: str
    words: str
    signed: bool = False


def quantities(units: Units) -> dict[str, Quantity]:
    """All of them by key; `units` are the score's."""
    rank = "place by gradient"
    return {
        quantity.key: quantity
        for quantity in (
            Quantity(
                "propagated", "propagated error (SQNR)", "dB", decibels, "least", low=True,
                tip="all error that has come down to the tensor, against float",
            ),
            Quantity(
                "local", "local error (SQNR)", "dB", decibels, "least", low=True,
                tip="this layer's own quantization, on float inputs",
            ),
            Quantity(
                "loss", "loss alone", units.points, units.loss, "greatest", low=False,
                tip="loss of score with this layer alone quantized",
            ),
            Quantity(
                "gradient", rank, "", lambda value: f"{value:.0f}.", "least", low=True, log=True,
                tip="1. is the tensor whose quantization is expected to cost most, by gradients",
            ),
            Quantity(
                "macs", "multiply-accumulates", "", lambda value: number(int(value)), "sum", low=False, log=True, by_lane=False,
                tip="of one sample",
            ),
            Quantity(
                "bits", "bits", "bits", lambda value: "float" if math.isinf(value) else f"{value:.0f}", "least", low=True,
                tip="of the tensor and its weight, the fewer of the two; float where there is no grid",
            ),
        )
    }  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """From values to shares: 0 at `weak`, 1 at `strong`."""

    weak: float
    strong: float
    log: bool

    def share(self, value: float) -> float:
        """Where a value stands; beyond the ends it is at the end."""
        if math.isinf(value):
            return float((value > 0) == (self.strong > self.weak))
        low, high, at = (self._place(v) for v in (self.weak, self.strong, value))
        return 1.0 if high == low else min(max((at - low) / (high - low), 0.0), 1.0)

    def value(self, share: float) -> float:
        """The value at a share of the way."""
        low, high = self._place(self.weak), self._place(self.strong)
        at = low + share * (high - low)
        return math.exp(at) - 1.0 if self.log else at

    def _place(self, value: float) -> float:
        return math.log1p(max(value, 0.0)) if self.log else value


def scale_of(quantity: Quantity, *values: Values) -> Scale:
    """The scale of operations' values, which stays when blocks open and close."""
    finite = [v for of_lane in values for v in of_lane.values() if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    if quantity.key == "loss":
        low = max(low, 0.0)  # a layer that gains is none to look at
    return Scale(high, low, quantity.log) if quantity.low else Scale(low, max(low, high), quantity.log)


def of_boxes(layout: Layout, network: Network, quantity: Quantity, values: Values) -> list[float | None]:
    """The figure of every box."""
    names = [node.name for node in network.nodes]
    return [quantity.joined([values[names[n]] for n in box.nodes if names[n] in values]) for box in layout.boxes]


def paint(layout: Layout, network: Network, quantity: Quantity, values: Values | None) -> Painted:
    """Colour by one lane's values; None: they are not measured yet."""
    if values is None:
        none = tuple(None for _ in layout.boxes)
        return Painted(none, tuple("not measured" for _ in layout.boxes), (), quantity.name, "not measured yet")
    scale = scale_of(quantity, values)
    found = of_boxes(layout, network, quantity, values)
    if quantity.join == "sum":  # blocks go beyond what single operations have
        top = max([scale.strong, *(v for v, box in zip(found, layout.boxes, strict=True) if v is not None and not box.opened)])
        scale = Scale(scale.weak, top, scale.log)
    ticks = _ticks(quantity, scale)
    said = {"least": "blocks show their lowest", "greatest": "blocks show their highest", "sum": "blocks show their sum"}
    return Painted(
        tuple(None if value is None else scale.share(value) for value in found),
        tuple(quantity.words(value) for value in found),
        ticks,
        quantity.name,
        f"{quantity.tip}; {said[quantity.join]}",
    )


def paint_pair(
    layout: Layout, network: Network, quantity: Quantity, a: Values | None, b: Values | None, lanes: tuple[str, str]
) -> tuple[Painted, Painted]:
    """Two lanes on one scale, to stand side by side in each box; the texts have both."""
    title = f"{quantity.name}: {lanes[0]} | {lanes[1]}"
    if a is None or b is None:
        none = paint(layout, network, quantity, None)
        return (one := Painted(none.shares, none.texts, (), title, none.words)), one
    scale = scale_of(quantity, a, b)
    found = [of_boxes(layout, network, quantity, values) for values in (a, b)]
    texts = tuple(_pair(quantity, x, y) for x, y in zip(*found, strict=True))
    words = f"left half: {lanes[0]}, right half: {lanes[1]}"
    first, second = (
        Painted(tuple(None if v is None else scale.share(v) for v in of), texts, _ticks(quantity, scale), title, words)
        for of in found
    )
    return first, second


def paint_difference(
    layout: Layout, network: Network, quantity: Quantity, a: Values | None, b: Values | None, lanes: tuple[str, str]
) -> Painted:
    """Colour by what the first lane is better or worse than the second."""
    title = f"{quantity.name}: {lanes[0]} against {lanes[1]}"
    if a is None or b is None:
        none = tuple(None for _ in layout.boxes)
        return Painted(none, tuple("not measured" for _ in layout.boxes), (), title, "not measured yet", signed=True)
    ours, others = of_boxes(layout, network, quantity, a), of_boxes(layout, network, quantity, b)
    apart = [_difference(x, y) for x, y in zip(ours, others, strict=True)]
    most = max((abs(d) for d in _apart(a, b) if math.isfinite(d)), default=0.0) or 1.0
    sign = -1.0 if quantity.low else 1.0  # positive is worse
    shares = tuple(None if d is None else max(min(sign * d / most, 1.0), -1.0) for d in apart)
    texts = tuple(
        NOTHING if d is None else f"{_signed(quantity.show(d))} ({_pair(quantity, x, y)})"
        for x, y, d in zip(ours, others, apart, strict=True)
    )
    better, worse = (quantity.words(-sign * most), quantity.words(sign * most))
    legend = ((-1.0, _signed(better)), (0.0, "equal"), (1.0, _signed(worse)))
    return Painted(shares, texts, legend, title, f"orange: {lanes[0]} is worse than {lanes[1]}; blue: better", signed=True)


def _pair(quantity: Quantity, x: float | None, y: float | None) -> str:
    return f"{NOTHING if x is None else quantity.show(x)} | {quantity.words(y)}"


def _apart(a: Values, b: Values) -> list[float]:
    return [d for name in a if name in b and (d := _difference(a[name], b[name])) is not None]


def _difference(x: float | None, y: float | None) -> float | None:
    if x is None or y is None:
        return None
    return 0.0 if x == y else x - y  # also where both are infinite


def _signed(text: str) -> str:
    return text if text[0] in "−-" or text == NOTHING else f"+{text}"


def _ticks(quantity: Quantity, scale: Scale) -> tuple[tuple[float, str], ...]:
    if scale.weak == scale.strong:
        return ((1.0, quantity.words(scale.strong)),)
    shown = [(share, quantity.words(scale.value(share))) for share in _TICKS]
    return tuple((share, text) for i, (share, text) in enumerate(shown) if text not in [other for _, other in shown[:i]])


def known(quantity: str, choices: Mapping[str, Quantity]) -> Quantity:
    """The quantity of that key; raises `QkitError` where there is none."""
    if quantity not in choices:
        raise QkitError(f"there is no figure {quantity!r} to colour by; choose one of {', '.join(choices)}.")
    return choices[quantity]
