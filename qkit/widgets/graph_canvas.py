"""The network's picture on the page: boxes, edges, colours, and the controls around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import traitlets

from qkit.figures.network.blocks import Network
from qkit.figures.network.layout import Layout
from qkit.figures.network.quantities import Painted, Quantity
from qkit.widgets.canvas import Canvas, es_module


class GraphCanvas(Canvas):
    """Draws what it is given; what is to open, close or be measured it asks of Python by messages."""

    _esm = es_module("graph")
    boxes: Any = traitlets.List([]).tag(sync=True)
    edges: Any = traitlets.List([]).tag(sync=True)
    size: Any = traitlets.List([0.0, 0.0]).tag(sync=True)
    #: name, kind and shape of every operation
    nodes: Any = traitlets.List([]).tag(sync=True)
    #: of every box one share of the scale, or two that stand side by side
    shares: Any = traitlets.List([]).tag(sync=True)
    texts: Any = traitlets.List([]).tag(sync=True)
    legend: Any = traitlets.Dict({"title": "", "words": "", "signed": False, "ticks": []}).tag(sync=True)
    figures: Any = traitlets.List([]).tag(sync=True)
    figure = traitlets.Unicode("").tag(sync=True)
    lanes: Any = traitlets.List([]).tag(sync=True)
    lane = traitlets.Unicode("").tag(sync=True)
    #: the lane that it is compared with; "" for none
    other = traitlets.Unicode("").tag(sync=True)
    #: whether the two stand side by side, or their difference is shown
    beside = traitlets.Bool(False).tag(sync=True)
    #: what is missing to colour by this figure; "" where nothing is
    missing = traitlets.Unicode("").tag(sync=True)
    doing = traitlets.Unicode("").tag(sync=True)
    done = traitlets.Float(None, allow_none=True).tag(sync=True)
    selected = traitlets.Unicode("").tag(sync=True)
    facts: Any = traitlets.List([]).tag(sync=True)
    pictures: Any = traitlets.List([]).tag(sync=True)
    #: why there are no pictures, or what they wait for
    said = traitlets.Unicode("").tag(sync=True)
    actions: Any = traitlets.List([]).tag(sync=True)

    def show_network(self, network: Network) -> None:
        """Names, for search and tooltips."""
        self.nodes = [[node.name, node.kind, node.shape] for node in network.nodes]

    def show_layout(self, layout: Layout) -> None:
        """Places; colours follow."""
        self.boxes = [
            {
                "key": box.key,
                "title": box.title,
                "place": [round(v, 1) for v in (box.left, box.top, box.width, box.height)],
                "nodes": list(box.nodes),
                "block": box.block,
                "opened": box.opened,
                "depth": box.depth,
                "after": list(after),
            }
            for box, after in zip(layout.boxes, layout.after, strict=True)
        ]
        self.edges = [
            {"points": [round(v, 1) for point in edge.points for v in point], "skip": edge.skip, "arrow": edge.arrow,
             "tensor": edge.tensor}
            for edge in layout.edges
        ]  # fmt: skip
        self.size = [round(layout.width, 1), round(layout.height, 1)]

    def show_colours(self, *painted: Painted) -> None:
        """One colour a box, or two side by side."""
        first = painted[0]
        self.shares = [[_rounded(share) for share in of_box] for of_box in zip(*(p.shares for p in painted), strict=True)]
        self.texts = list(first.texts)
        ticks = [[round(share, 3), text] for share, text in first.legend]
        self.legend = {"title": first.title, "words": first.words, "signed": first.signed, "ticks": ticks}

    def show_choices(self, quantities: Mapping[str, Quantity], lanes: Sequence[str]) -> None:
        """What there is to colour by."""
        self.figures = [
            {"key": q.key, "name": q.name, "tip": q.tip, "by_lane": q.by_lane} for q in quantities.values()
        ]  # fmt: skip
        self.lanes = list(lanes)


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
