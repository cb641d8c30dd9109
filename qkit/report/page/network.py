"""The network as a still picture: its blocks, coloured by what layers lose alone or by the error that has come down to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from qkit.figures.network.blocks import Network, Node
from qkit.figures.network.drawing import SVG_RULES, key, svg
from qkit.figures.network.layout import layout
from qkit.figures.network.quantities import Values, paint, quantities
from qkit.report.contents.data import Report
from qkit.style import units_of

__all__ = ["SVG_RULES", "NetworkPicture", "picture"]


#: How much wider than high: as the page is.
_ASPECT = 2.4


@dataclass(frozen=True)
class NetworkPicture:
    """The drawing, its legend, and the sentence that goes with it."""

    svg: Markup
    legend: Markup
    words: str


def picture(report: Report) -> NetworkPicture | None:
    """Draw the report's network; None for reports that have none."""
    if not report.network:
        return None
    network = Network(tuple(Node(entry["name"], entry["kind"], tuple(entry["inputs"])) for entry in report.network))
    places = layout(network, network.first_view())
    choices = quantities(units_of(report.metric))
    losses = _losses(report)
    quantity = choices["propagated" if losses is None else "loss"]
    painted = paint(places, network, quantity, _errors(report) if losses is None else losses)
    closed = sum(box.block and not box.opened for box in places.boxes)
    said = f"{len(network.nodes)} operations{f', {closed} blocks of them closed' if closed else ''}. Lines are tensors, from top "
    said += f"to bottom and column by column. Colour: {quantity.name} in {report.narrow}; {painted.words}."
    return NetworkPicture(svg(places, painted, aspect=_ASPECT, label=str(report.model["name"])), key(painted), said)


def _losses(report: Report) -> Values | None:
    """What layers lose alone, where any of them does so by more than chance."""
    swept = report.sensitivity
    if swept is None or not (swept["loss low"] > 0).any():
        return None
    return {str(name): float(value) for name, value in swept["loss"].items()}


def _errors(report: Report) -> Values:
    column = report.layers[report.narrow, "sqnr"]
    return {str(name): float(value) for name, value in column.items() if not math.isnan(float(value))}
