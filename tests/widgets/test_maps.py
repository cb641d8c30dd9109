"""Feature maps: what is shown are the captured tensors, worst channel first, on scales that compare."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import READS
from studies import small_study
from torch import Tensor

from qkit import QkitError
from qkit.execution.capture import Capture, LaneTensor, TapCapture
from qkit.execution.feature_maps import image_maps
from qkit.style import decibels
from qkit.widgets import map_view
from qkit.widgets.map_view import FeatureMaps

LANES = ("float", "int16", "int4")


@cache
def captured() -> Capture:
    return small_study().capture(LANES, progress=False)


def tap(**lanes: Tensor) -> TapCapture:
    """Tensors as if they had been captured."""
    return TapCapture("tap", {name: LaneTensor(values, None, None) for name, values in lanes.items()})


def sqnr(exact: np.ndarray, other: np.ndarray) -> np.ndarray:
    """By hand, in float64, of every channel of (C, H, W)."""
    exact, other = exact.astype(np.float64), other.astype(np.float64)
    signal, noise = (exact**2).sum((1, 2)), ((other - exact) ** 2).sum((1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(noise > 0, 10.0 * np.log10(signal / noise), np.inf)


def drawn(shown: FeatureMaps) -> np.ndarray:
    """The maps as the page gets them, (M, H, W)."""
    return np.frombuffer(shown.plot.maps, np.float32).reshape(-1, *shown.plot.shape)


@pytest.mark.parametrize("name", [name for name in READS if name != "classify"])
@pytest.mark.parametrize("image", [0, 7])
def test_values_are_the_captured_tensors(name: str, image: int) -> None:
    here = captured()[name]
    found = image_maps(here, image, 1)
    assert list(found.lanes) == list(LANES)
    for lane in LANES:
        np.testing.assert_array_equal(found.lanes[lane], here[lane].values[image].numpy())
        assert found.lanes[lane].flags["C_CONTIGUOUS"]
    assert list(found.sqnr) == ["int16", "int4"]
    for lane in ("int16", "int4"):
        expected = sqnr(found.lanes["float"], found.lanes[lane])
        np.testing.assert_allclose(found.sqnr[lane], expected, rtol=1e-12)
    in_order = found.sqnr["int4"][found.ranking].tolist()
    assert in_order == sorted(in_order), "the worst channel of the last lane comes first"
    assert sorted(found.ranking) == list(range(len(found.ranking)))


def test_a_tensor_without_positions_is_one_channel() -> None:
    here = captured()["classify"]
    found = image_maps(here, 3, 1)
    assert found.lanes["int4"].shape == (1, 1, 5)
    np.testing.assert_array_equal(found.lanes["int4"][0, 0], here["int4"].values[3].numpy())
    assert found.ranking.tolist() == [0]
    assert found.sqnr["int4"].shape == (1,)


def test_a_sequence_has_channels_where_its_axis_is() -> None:
    exact = torch.randn(2, 3, 7)
    other = exact + 0.1 * torch.randn(2, 3, 7)
    first, last = (image_maps(tap(float=exact, int8=other), 1, axis) for axis in (1, 2))
    assert first.lanes["int8"].shape == (3, 1, 7)
    np.testing.assert_array_equal(first.lanes["int8"][2, 0], other[1, 2].numpy())
    assert last.lanes["int8"].shape == (7, 1, 3)
    np.testing.assert_array_equal(last.lanes["int8"][4, 0], other[1, :, 4].numpy())
    np.testing.assert_allclose(last.sqnr["int8"], sqnr(last.lanes["float"], last.lanes["int8"]))


def test_images_with_channels_last_and_volumes() -> None:
    exact = torch.randn(2, 4, 5, 3)
    found = image_maps(tap(float=exact, int8=exact + 1.0), 0, 3)
    assert found.lanes["float"].shape == (3, 4, 5)
    np.testing.assert_array_equal(found.lanes["float"], exact[0].permute(2, 0, 1).numpy())
    volume = torch.randn(1, 2, 3, 4, 5)
    found = image_maps(tap(float=volume, int8=volume + 1.0), 0, 1)
    assert found.lanes["float"].shape == (2, 12, 5)
    np.testing.assert_array_equal(found.lanes["float"][1].reshape(3, 4, 5), volume[0, 1].numpy())


def test_channels_without_noise_come_last_and_without_signal_first() -> None:
    exact = torch.ones(1, 4, 2, 2)
    exact[0, 1] = 0.0
    exact[0, 3] = 0.0
    other = exact.clone()
    other[0, 0] += 0.5
    other[0, 1] += 0.1
    other[0, 3] += 0.2
    found = image_maps(tap(float=exact, int8=other), 0, 1)
    assert found.ranking.tolist() == [3, 1, 0, 2], "among those without signal the one with more noise"
    assert found.sqnr["int8"][2] == np.inf


@pytest.mark.parametrize("image", [-1, 8, 100])
def test_an_image_that_was_not_captured_is_refused(image: int) -> None:
    with pytest.raises(QkitError, match=rf"image {image}\b.*\b0\b.*\b7\b"):
        image_maps(captured()["stem"], image, 1)


def test_the_worst_channel_is_shown_with_all_lanes_on_one_scale() -> None:
    shown = FeatureMaps()
    assert shown.maps is None
    here = captured()["side"]
    shown.show(here, 1)
    found = shown.maps
    assert found is not None
    worst = int(found.ranking[0])
    assert shown.channel.value == worst
    assert shown.image.max == 7
    assert [value for _, value in shown.channel.options] == found.ranking.tolist()
    assert shown.channel.options[0][0] == f"{worst}: {decibels(found.sqnr['int4'][worst])} dB in int4"
    assert shown.plot.titles == ["float", "int16", "int4", "int16 − float", "int4 − float"]
    planes = drawn(shown)
    for at, lane in enumerate(LANES):
        np.testing.assert_array_equal(planes[at], found.lanes[lane][worst])
    for at, lane in ((3, "int16"), (4, "int4")):
        np.testing.assert_array_equal(planes[at], found.lanes[lane][worst] - found.lanes["float"][worst])
    scales = shown.plot.scales
    assert [scale[2] for scale in scales] == [False, False, False, True, True]
    assert scales[0] == scales[1] == scales[2] == [float(planes[:3].min()), float(planes[:3].max()), False]
    assert scales[3] == scales[4]
    assert scales[3][0] == -scales[3][1] < 0
    assert scales[3][1] == float(np.abs(planes[3:]).max())


def test_stepping_through_channels_and_images() -> None:
    shown = FeatureMaps()
    here = captured()["stem"]
    shown.show(here, 1)
    found = shown.maps
    assert found is not None
    order = found.ranking.tolist()
    shown._back.click()
    assert shown.channel.value == order[0], "there is none before the first"
    shown._forth.click()
    shown._forth.click()
    assert shown.channel.value == order[2]
    np.testing.assert_array_equal(drawn(shown)[0], here.float.values[0, order[2]].numpy())
    shown._back.click()
    assert shown.channel.value == order[1]
    for _ in range(20):
        shown._forth.click()
    assert shown.channel.value == order[-1]
    shown.image.value = 5
    found = shown.maps
    assert found is not None
    assert shown.channel.value == found.ranking[0]
    np.testing.assert_array_equal(drawn(shown)[2], here["int4"].values[5, found.ranking[0]].numpy())
    shown.image.value = 99
    assert shown.image.value == 7


def test_another_layer_with_the_same_channels_is_drawn_anew() -> None:
    shown = FeatureMaps()
    shown.show(captured()["stem"], 1)
    shown.image.value = 6
    for name in ("depthwise", "project", "classify"):
        shown.show(captured()[name], 1)
        found = shown.maps
        assert found is not None
        np.testing.assert_array_equal(drawn(shown)[0], found.lanes["float"][found.ranking[0]])
    assert shown.image.value == 6, "the image stays"
    assert [label.split(":")[0] for label, _ in shown.channel.options] == ["all"]
    fewer = captured()["stem"]
    fewer = TapCapture("stem", {n: LaneTensor(t.values[:2], None, None) for n, t in fewer.lanes.items()})
    shown.show(fewer, 1)
    assert shown.image.value == 1


def test_the_list_ends_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_view, "MOST_CHANNELS", 3)
    shown = FeatureMaps()
    shown.show(captured()["stem"], 1)
    found = shown.maps
    assert found is not None
    assert [value for _, value in shown.channel.options] == found.ranking[:3].tolist()


def test_without_any_error_the_differences_are_nothing() -> None:
    shown = FeatureMaps()
    same = torch.randn(1, 2, 3, 3)
    shown.show(tap(float=same, int8=same.clone()), 1)
    assert shown.plot.scales[1:] == [[float(drawn(shown)[0].min()), float(drawn(shown)[0].max()), False], [0.0, 0.0, True]]
    assert "∞ dB in int8" in shown.channel.options[0][0]


def test_float_alone_can_be_looked_at() -> None:
    shown = FeatureMaps()
    only: Any = small_study().capture(("float",), progress=False)["stem"]
    shown.show(only, 1)
    assert shown.plot.titles == ["float"]


def test_colours_are_two_tables() -> None:
    tables = np.frombuffer(FeatureMaps().plot.colours, np.uint8).reshape(2, 256, 3)
    assert len(np.unique(tables[0], axis=0)) > 200
    middle = tables[1][127:129].astype(int)
    assert (middle > 230).all(), "no difference is nearly white"
