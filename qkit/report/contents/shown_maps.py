"""Feature maps of one image at the worst layers, in float and in the judged lane; only when asked for, since they show it."""

from __future__ import annotations

import base64
from typing import Any

from qkit.execution.capture import Capture
from qkit.execution.feature_maps import image_maps

#: Channels shown of each layer, the worst first, and the greatest height and width that is kept.
CHANNELS = 3
MOST_PIXELS = 96


def describe(captured: Capture, tap: str, lane: str, image: int = 0) -> dict[str, Any] | None:
    """The channels of one image with the least signal to noise ratio; None where the tensor has no positions.

    Maps higher or wider than `MOST_PIXELS` are thinned out, not averaged, so that single errors stay what they are.
    """
    tensors, axis = captured[tap], captured.graph.operation(tap).channel_axis
    if tensors["float"].values.ndim < 4 or axis < 1:
        return None
    found = image_maps(tensors, image, axis, ("float", lane))
    planes, order = (found.lanes["float"], found.lanes[lane]), found.ranking[:CHANNELS]
    every = [max(1, -(-size // MOST_PIXELS)) for size in planes[0].shape[1:]]
    kept = [plane[order, :: every[0], :: every[1]].astype("<f4") for plane in planes]
    return {
        "image": image,
        "lane": lane,
        "channels": [int(c) for c in order],
        "sqnr": [float(r) for r in found.sqnr[lane][order]],
        "shape": list(kept[0].shape),
        "thinned": every,
        "float": base64.b64encode(kept[0].tobytes()).decode("ascii"),
        "quantized": base64.b64encode(kept[1].tobytes()).decode("ascii"),
    }
