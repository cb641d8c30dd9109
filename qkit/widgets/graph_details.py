"""What stands beside the network's picture: figures of the chosen box, and pictures of a tensor's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from qkit.figures.drawing import svg
from qkit.figures.network.quantities import Quantity
from qkit.figures.pairs import channel_boxes, density

if TYPE_CHECKING:
    from qkit.execution.capture import TapCapture
    from qkit.widgets.graph_values import GraphValues

#: Inches of a picture.
_WIDE, _TALL = 3.3, 2.1
#: Channels that fit one.
_CHANNELS = 12


def node_facts(values: GraphValues, quantities: Mapping[str, Quantity], name: str) -> list[list[str]]:
    """Names and texts of what is known of an operation."""
    number = values.network.number[name]
    node = values.network.nodes[number]
    rows = [["layer", name], ["kind", f"{node.kind}, {node.shape}" if node.shape else node.kind]]
    rows += [["weight", node.weight]] if node.weight else []
    rows += [["note", node.note]] if node.note else []
    return rows + _figures(values, quantities, (number,))


def block_facts(values: GraphValues, quantities: Mapping[str, Quantity], key: str) -> list[list[str]]:
    """The same of a block."""
    nodes = values.network.blocks[key].nodes
    return [["block", key], ["operations", str(len(nodes))], *_figures(values, quantities, nodes)]


def _figures(values: GraphValues, quantities: Mapping[str, Quantity], nodes: Sequence[int]) -> list[list[str]]:
    names = [values.network.nodes[n].name for n in nodes]
    order = list(quantities)
    rows = []
    for key, lane in sorted(values.known(), key=lambda place: order.index(place[0])):
        quantity, known = quantities[key], values.get(key, lane) or {}
        figure = quantity.joined([known[name] for name in names if name in known])
        if figure is not None:
            rows.append([f"{quantity.name}{f', {lane}' if lane else ''}", quantity.words(figure)])
    return rows


def value_pictures(tap: TapCapture, lane: str, axis: int) -> list[str]:
    """SVG of a lane's values over float's, and of its errors by channel, in colours of the page."""
    drawn = (partial(density, tap, lane), partial(channel_boxes, tap, lane, axis=axis, most=_CHANNELS))
    return [svg(draw, width=_WIDE, height=_TALL) for draw in drawn]
