"""The picture's colours as a file for Google's Model Explorer: its "custom node data" of one graph.

Format: a JSON object with ``results`` (a value and a colour by node), ``gradient`` (two stops or more) and ``name``; see Model
Explorer's ``node_data_builder.py`` (``GraphNodeData``) and its page on custom node data. Nodes are named by their ids, which
for an ONNX file are the nodes' names, see `qkit.engines.onnx.node_names`: Model Explorer (0.1.34) looks for names of output
tensors first, but its ONNX adapter (0.4.2) does not give these in the way it reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qkit.figures.network.quantities import Quantity, Values, scale_of
from qkit.style import NARROW_COLOUR

#: The weakest colour: of paper, so that Model Explorer's black letters stay readable.
_WEAKEST = "#fff7ef"


def overlay(quantity: Quantity, values: Values, *, name: str, nodes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Node data of one graph.

    Parameters
    ----------
    values
        By operation. Those that are infinite (no error at all, no grid) have no place on a scale of numbers and are left out.
    name
        What Model Explorer calls the data.
    nodes
        Ids of the nodes by operation; by default operations are called as the nodes, as in a file of ``study.export``. Operations
        without one are left out.
    """
    scale = scale_of(quantity, values)
    results = {
        (nodes or {}).get(operation, operation): {"value": value, "bgColor": _mixed(scale.share(value))}
        for operation, value in values.items()
        if math.isfinite(value) and (nodes is None or operation in nodes)
    }
    # stop 0 is the least value, whichever end of the scale that is
    shares = (1.0, 0.0) if quantity.low else (0.0, 1.0)
    gradient = [{"stop": stop, "bgColor": _mixed(share)} for stop, share in zip((0.0, 1.0), shares, strict=True)]
    return {"name": name, "results": results, "gradient": gradient}


def _mixed(share: float) -> str:
    """Between the weakest and the strongest colour, as ``#rrggbb``."""
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (_WEAKEST, NARROW_COLOUR)]
    return "#" + "".join(f"{round(weak + share * (strong - weak)):02x}" for weak, strong in zip(*ends, strict=True))
