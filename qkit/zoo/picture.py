"""The images that a network is given, as a picture: after the preprocessing, which is where mistakes are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from qkit.style import BAD, MUTED

#: Below the images, in their heights: where the first answer stands, and the next ones below it.
_FIRST, _NEXT = -0.04, -0.19

Answers = Mapping[str, Sequence[tuple[str, bool]]]


def draw(images: Tensor, names: Sequence[str], *, figure: Figure, answers: Answers | None = None) -> Figure:
    """A row of images, (N, C, H, W), with their names; least and greatest value of all of them are black and white.

    The first three channels are red, green and blue; of one or two channels the first is shown in grey. Channels may come last.
    Below each image stand the `answers` of lanes, (name, whether it is right); a wrong one is red and bold, with a cross.
    """
    values = images.detach().cpu().double().numpy()
    if values.shape[-1] in (1, 3) and values.shape[1] not in (1, 3):
        values = np.moveaxis(values, -1, 1)
    least, most = float(values.min()), float(values.max())
    shown = (values - least) / max(most - least, 1e-12)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for at, (ax, image, name) in enumerate(zip(axes, shown, names, strict=True)):
        if len(image) >= 3:
            ax.imshow(np.moveaxis(image[:3], 0, -1))
        else:
            ax.imshow(image[0], cmap="gray", vmin=0.0, vmax=1.0)
        ax.set_title(name, fontsize=8.5)
        _answer(ax, [(lane, *said[at]) for lane, said in (answers or {}).items()])
        ax.set_axis_off()
    figure.supxlabel(f"values from {least:.2f} (black) to {most:.2f} (white)", fontsize=8.5)
    return figure


def _answer(ax: Axes, said: Sequence[tuple[str, str, bool]]) -> None:
    for row, (lane, name, right) in enumerate(said):
        text = f"{lane}: {name}" + ("" if right else " ✗")
        drawn = ax.text(0.5, _FIRST + row * _NEXT, text, transform=ax.transAxes, ha="center", va="top", fontsize=8.5)
        drawn.set(color=MUTED if right else BAD, fontweight="normal" if right else "bold")
