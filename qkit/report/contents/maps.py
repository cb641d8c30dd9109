"""Feature maps of one image at the worst layers, in float and in the judged lane; only when asked for, since they show it."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from qkit.execution.capture import Capture
from qkit.quant.sqnr import sqnr

#: Channels shown of each layer, the worst first, and the greatest height and width that is kept.
CHANNELS = 3
MOST_PIXELS = 96


def describe(captured: Capture, tap: str, lane: str, image: int = 0) -> dict[str, Any] | None:
    """The channels of one image with the least signal to noise ratio; None where the tensor has no positions.

    Maps higher or wider than `MOST_PIXELS` are thinned out, not averaged, so that single errors stay what they are.
    """
    op = captured.graph.operation(tap)
    tensors = captured[tap]
    exact, other = (tensors[name].values[image].detach().cpu().float() for name in ("float", lane))
    axis = op.channel_axis
    if exact.ndim < 3 or axis is None or axis < 1:
        return None
    planes = [x.movedim(axis - 1, 0).flatten(1, -2).numpy().astype(np.float64) for x in (exact, other)]
    signal, noise = (planes[0] ** 2).sum((1, 2)), ((planes[1] - planes[0]) ** 2).sum((1, 2))
    ratio = np.asarray(sqnr(signal, noise), dtype=np.float64)
    order = np.lexsort((-noise, ratio))[:CHANNELS]
    every = [max(1, -(-size // MOST_PIXELS)) for size in planes[0].shape[1:]]
    kept = [plane[order, :: every[0], :: every[1]].astype("<f4") for plane in planes]
    return {
        "image": image,
        "lane": lane,
        "channels": [int(c) for c in order],
        "sqnr": [float(r) for r in ratio[order]],
        "shape": list(kept[0].shape),
        "thinned": every,
        "float": base64.b64encode(kept[0].tobytes()).decode("ascii"),
        "quantized": base64.b64encode(kept[1].tobytes()).decode("ascii"),
    }
