"""Small pictures of samples with a line of text each: on a figure, or as HTML."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping
from html import escape

import matplotlib.image
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from qkit.errors import DataError
from qkit.figures.drawing import DPI, WIDTH, Picture
from qkit.style import STYLE

__all__ = ["html", "sheet"]

_COLUMNS = 6
#: Edge in pixels on a page.
_EDGE = 96


def sheet(images: Mapping[int, np.ndarray], captions: Mapping[int, str], words: str) -> Picture:
    """The images, uint8 (H, W, 3), in rows of six.

    Raises
    ------
    DataError
        If there is none.
    """
    if not images:
        raise DataError("there is no image to show: no sample was found, or the network's inputs are not images.")
    rows = -(-len(images) // _COLUMNS)
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 0.1 + 1.75 * rows), layout="constrained", facecolor="white", dpi=DPI)
        axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
        for ax in axes:
            ax.set_axis_off()
        for ax, (number, image) in zip(axes, images.items(), strict=False):
            ax.imshow(image, interpolation="nearest")
            ax.set_title("\n".join(textwrap.wrap(captions[number], 22)[:3]), fontsize=7.5)
    return Picture(figure, words)


def html(images: Mapping[int, np.ndarray], captions: Mapping[int, str]) -> str:
    """The images side by side, each with its caption below; nothing where there are none."""
    if not images:
        return ""
    cells = "".join(
        f'<figure style="margin:0;width:{_EDGE + 24}px;font-size:11px">'
        f'<img src="{_address(image)}" alt="{escape(captions[number])}" style="height:{_EDGE}px;max-width:100%;'
        f'object-fit:contain;image-rendering:pixelated"><figcaption>{escape(captions[number])}</figcaption></figure>'
        for number, image in images.items()
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px;margin-bottom:8px">{cells}</div>'


def _address(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, image, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
