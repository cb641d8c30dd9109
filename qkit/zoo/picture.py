"""The images that a network is given, as a picture: after the preprocessing, which is where mistakes are made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor


def draw(images: Tensor, names: Sequence[str], *, figure: Figure) -> Figure:
    """A row of images, (N, C, H, W), with their names; least and greatest value of all of them are black and white.

    The first three channels are red, green and blue; of one or two channels the first is shown in grey. Channels may come last.
    """
    values = images.detach().cpu().double().numpy()
    if values.shape[-1] in (1, 3) and values.shape[1] not in (1, 3):
        values = np.moveaxis(values, -1, 1)
    least, most = float(values.min()), float(values.max())
    shown = (values - least) / max(most - least, 1e-12)
    for ax, image, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, names, strict=True):
        if len(image) >= 3:
            ax.imshow(np.moveaxis(image[:3], 0, -1))
        else:
            ax.imshow(image[0], cmap="gray", vmin=0.0, vmax=1.0)
        ax.set_title(name, fontsize=8.5)
        ax.set_axis_off()
    figure.supxlabel(f"values from {least:.2f} (black) to {most:.2f} (white)", fontsize=8.5)
    return figure
