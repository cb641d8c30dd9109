"""Float beside a lane: the density counts all elements, the boxes are quantiles of the errors, the worst channel first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from small_networks import minmax_study

from qkit import QkitError
from qkit.execution.capture import Capture, LaneTensor, TapCapture
from qkit.figures.pairs import channel_boxes, density, last_lane
from qkit.style import decibels


def tap(exact: torch.Tensor, rounded: torch.Tensor) -> TapCapture:
    return TapCapture("layer", {"float": LaneTensor(exact, None, None), "int8": LaneTensor(rounded, None, None)})


@pytest.fixture(scope="module")
def captured() -> Capture:
    return minmax_study().capture(progress=False)


def drawn(picture: Figure) -> np.ndarray:
    (image,) = picture.axes[0].get_images()
    return np.asarray(image.get_array())[..., 3]


def test_density_has_a_cell_where_elements_are() -> None:
    exact = torch.tensor([0.0, 0.0, 0.0, 1.0])
    ax = Figure().add_subplot()
    density(tap(exact, torch.tensor([0.0, 0.0, 0.0, 0.0])), ax=ax)
    alpha = drawn(ax.figure)  # type: ignore[arg-type]
    rows, columns = np.nonzero(alpha)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {(0, 0), (0, alpha.shape[1] - 1)}
    assert alpha[0, 0] > alpha[0, -1] > 0, "three elements are stronger than one, which is seen as well"


def test_density_says_the_ratio_that_the_capture_has(captured: Capture) -> None:
    picture = captured.scatter("classify")
    assert decibels(captured.table().loc["classify", ("int8", "sqnr")]) in picture.figure.axes[0].get_title(loc="left")
    assert picture.png().startswith(b"\x89PNG")


def test_a_constant_tensor_is_drawn() -> None:
    for value in (0.0, 3.0):
        ax = Figure().add_subplot()
        density(tap(torch.full((4, 2), value), torch.full((4, 2), value)), ax=ax)
        assert np.count_nonzero(drawn(ax.figure)) == 1  # type: ignore[arg-type]


def test_boxes_are_quantiles_with_the_worst_channel_first() -> None:
    draw = torch.Generator().manual_seed(3)
    exact = torch.randn(8, 4, 10, 10, generator=draw)
    apart = torch.randn(8, 4, 10, 10, generator=draw) * torch.tensor([0.1, 3.0, 0.5, 1.0]).view(1, 4, 1, 1)
    ax = Figure().add_subplot()
    channel_boxes(tap(exact, exact + apart), most=3, ax=ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "3", "2"]
    middles = [line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1 and line.get_color() == "#24292f"]
    errors = (exact + apart - exact).double().movedim(1, 0).reshape(4, -1)
    assert middles == pytest.approx([float(errors[c].quantile(0.5)) for c in (1, 3, 2)])


def test_vectors_and_weights_have_boxes_too(captured: Capture) -> None:
    for tensor, channels in (("classify", 5), ("stem.weight", 8)):
        picture = captured.boxes(tensor)
        assert len(picture.figure.axes[0].get_xticklabels()) == channels


def test_a_lane_is_needed() -> None:
    alone = TapCapture("layer", {"float": LaneTensor(torch.zeros(2), None, None)})
    with pytest.raises(QkitError, match="layer"):
        last_lane(alone)
    with pytest.raises(QkitError, match="int4"):
        density(tap(torch.zeros(2), torch.zeros(2)), "int4", ax=Figure().add_subplot())
