"""From a picture to a network's input: torchvision's numbers to the bit, and every option on its own."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qkit.errors import DataError, QkitError
from qkit.zoo import user_case
from qkit.zoo.preprocessing import ImageOptions, Prepared, from_options, from_preset
from qkit.zoo.programfile import Signature, program_path, signature
from qkit.zoo.usermodel import preset

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 211, 3), dtype=np.uint8))


def prepared(shape: tuple[int | None, ...] | None = None, **options: Any) -> Prepared:
    return from_options(ImageOptions(**{"mean": 0, "std": 1, **options}), shape, "net.onnx")


@pytest.mark.parametrize("size", [(150, 211), (211, 150), (224, 224), (260, 300), (257, 999)])
@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "inception_v3"])
def test_torchvisions_preset_is_the_same_in_numbers(name: str, size: tuple[int, int]) -> None:
    picture = PICTURE.resize(size)
    theirs = preset(name)
    ours = from_preset(theirs, ImageOptions(layout="nchw"), None, name)
    assert isinstance(ours, Prepared)
    assert torch.equal(ours(picture), theirs(picture))


def test_parts_of_a_preset_are_replaced_and_the_others_stay() -> None:
    theirs = preset("resnet50")
    assert from_preset(theirs, ImageOptions(), None, "resnet50") is theirs
    smaller = from_preset(theirs, ImageOptions(size=112), None, "resnet50")
    assert isinstance(smaller, Prepared)
    assert (smaller.size, smaller.mean) == ((112, 112), (0.485, 0.456, 0.406))
    assert round(112 * smaller.zoom) == 116
    turned = from_preset(theirs, ImageOptions(channels="bgr"), None, "resnet50")
    assert torch.equal(turned(PICTURE), theirs(PICTURE).flip(0)), "mean and deviation go with their channels"
    whole = from_preset(theirs, ImageOptions(pixel_range=255), None, "resnet50")
    assert torch.allclose(whole(PICTURE), theirs(PICTURE), atol=1e-5)
    assert from_preset(theirs, ImageOptions(), (1, 3, 96, 96), "net.onnx")(PICTURE).shape == (3, 96, 96)
    with pytest.raises(QkitError, match=r"gray .*--mean, --std"):
        from_preset(theirs, ImageOptions(channels="gray"), None, "resnet50")


@pytest.mark.parametrize(("size", "shape"), [(24, (24, 24)), ("24", (24, 24)), ("24x40", (24, 40)), ((24, 40), (24, 40))])
def test_sizes(size: Any, shape: tuple[int, int]) -> None:
    assert prepared(size=size)(PICTURE).shape == (3, *shape)


def test_a_picture_of_the_size_is_taken_as_it_is() -> None:
    values = prepared(size="150x211")(PICTURE)
    assert torch.equal(values, torch.from_numpy(np.asarray(PICTURE).copy()).permute(2, 0, 1).float() / 255)


def test_the_middle_is_cut_out() -> None:
    picture = PICTURE.crop((0, 0, 50, 50))
    wide = Image.new("RGB", (90, 50))
    wide.paste(picture, (20, 0))
    assert torch.equal(prepared(size=50)(wide), prepared(size=50)(picture))


def test_range_channels_layout_mean_and_deviation() -> None:
    plain = prepared(size=32)(PICTURE)
    assert 0 <= float(plain.min()) < float(plain.max()) <= 1
    assert torch.allclose(prepared(size=32, pixel_range=255)(PICTURE), 255 * plain, atol=1e-4)
    assert torch.equal(prepared(size=32, channels="bgr")(PICTURE), plain.flip(0))
    assert torch.equal(prepared(size=32, layout="nhwc")(PICTURE), plain.permute(1, 2, 0))
    assert prepared(size=32, channels="gray")(PICTURE).shape == (1, 32, 32)
    normal = prepared(size=32, mean="0.1, 0.2,0.3", std=(0.5, 0.25, 1.0))(PICTURE)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1), torch.tensor([0.5, 0.25, 1.0]).reshape(3, 1, 1)
    assert torch.allclose(normal, (plain - mean) / std)


@pytest.mark.parametrize(
    ("shape", "layout", "channels", "size"),
    [
        ((1, 3, 20, 30), "nchw", "rgb", (20, 30)),
        ((None, 20, 30, 3), "nhwc", "rgb", (20, 30)),
        ((8, 1, 20, 20), "nchw", "gray", (20, 20)),
        ((1, 20, 20, 1), "nhwc", "gray", (20, 20)),
    ],
)
def test_what_a_file_says_of_its_input_is_the_default(
    shape: tuple[int | None, ...], layout: str, channels: str, size: tuple[int, int]
) -> None:
    made = prepared(shape)
    assert (made.layout, made.channels, made.size) == (layout, channels, size)
    sizes = made(PICTURE).shape
    assert all(known in (None, found) for known, found in zip(shape[1:], sizes, strict=True))


@pytest.mark.parametrize(
    ("options", "shape", "said"),
    [
        ({}, None, r"^net\.onnx (?!.*\?).*--size"),
        ({}, (1, 3, None, None), r"^net\.onnx .*\(1 x 3 x \? x \?\).*--size"),
        ({"size": 64}, (1, 3, 32, 32), r"^net\.onnx .*1 x 3 x 32 x 32 \(nchw\).*--size.* 64 x 64"),
        ({"channels": "gray"}, (1, 3, 32, 32), r"\b3 channels\b.*--channels.* gray"),
        ({"channels": "bgr"}, (1, 1, 32, 32), r"\b1 channel\b.*--channels.* bgr"),
        ({}, (1, 4, 32, 32), r"\b4 channels \(1 x 4 x 32 x 32, nchw\).*--layout"),
        ({"layout": "nhwc", "size": 32}, (1, 3, 32, 32), r"\b32 channels \(1 x 3 x 32 x 32, nhwc\).*--layout"),
        ({"size": "big"}, None, r"--size\) 'big' "),
        ({"size": 0}, None, r"--size\) 0 "),
        ({"size": "1x2x3"}, None, r"--size\) '1x2x3' "),
        ({"size": 8, "mean": None}, None, r"\(--mean, --std\).*--mean 0 "),
        ({"size": 8, "std": None}, None, r"\(--mean, --std\).*--mean 0 "),
        ({"size": 8, "std": 0}, None, r"--std\) 0 .*\b0\b"),
        ({"size": 8, "mean": "a"}, None, r"--mean\) 'a' .*0\.485,0\.456,0\.406"),
        ({"size": 8, "mean": "0.1,0.2"}, None, r"--mean\) '0\.1,0\.2' .*\bthree\b.*\brgb\b"),
        ({"size": 8, "mean": "0.1,0.2,0.3", "channels": "gray"}, None, r"--mean\) '0\.1,0\.2,0\.3' (?!.*\bthree\b).*\bgray\b"),
        ({"size": 8, "mean": "nan"}, None, r"--mean\) 'nan' .*\bthree\b.*\brgb\b"),
        ({"size": 8, "mean": 123.7, "std": 58.4}, None, r"mean 123\.7 .*std 58\.4 .*--range 255 \(pixel_range=255\)"),
        (
            {"size": 8, "mean": 0.485, "std": 58.4, "pixel_range": 255},
            None,
            r"mean 0\.485 .*std 58\.4 (?!.*pixel_range=).*--range 255",
        ),
        (
            {"size": 8, "mean": 123.7, "std": 0.2, "pixel_range": 255},
            None,
            r"mean 123\.7 .*std 0\.2 (?!.*pixel_range=).*--range 255",
        ),
        ({"size": 8, "pixel_range": 100}, None, r"--range\) 100 .*\b1\b.*\b255\b"),
        ({"size": 8, "channels": "hsv"}, None, r"--channels\) 'hsv' .*rgb, bgr, gray"),
        ({"size": 8, "layout": "chwn"}, None, r"--layout\) 'chwn' .*nchw, nhwc"),
    ],
)
def test_what_is_not_known_or_contradicts_is_refused(options: dict[str, Any], shape: Any, said: str) -> None:
    with pytest.raises(QkitError, match=said):
        prepared(shape, **options)


@pytest.mark.parametrize(
    ("options", "mean", "warned"),
    [
        ({}, (0.485, 0.456, 0.406), True),
        ({"channels": "bgr"}, (0.406, 0.456, 0.485), True),
        ({"channels": "gray"}, (0.0,), True),
        ({"pixel_range": 255}, (0.0,), False),
    ],
)
def test_mean_and_deviation_that_are_not_given_are_assumed_and_that_is_said(
    options: dict[str, Any], mean: tuple[float, ...], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert prepared(size=8, **{"mean": None, "std": None, **options}).mean == mean
    assert ("--mean" in caplog.text) == warned


class Mean(nn.Module):
    """The logits are the channels' means."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class MeanNhwc(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four pictures each of blue, green and red, the classes in the order of BGR."""
    for name, colour in {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (20 + i, 18), colour).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def test_options_are_the_preprocessing_of_a_users_module(images: Path) -> None:
    case = user_case(Mean(), None, images, size=16, mean=0, std=1, channels="bgr")
    assert isinstance(case.model, nn.Module)
    for inputs, targets in case.evaluation:
        assert inputs.shape[1:] == (3, 16, 16)
        assert torch.equal(case.model(inputs).argmax(1), targets)
    with pytest.raises(QkitError, match=r"^Mean .*--size"):
        user_case(Mean(), None, images, mean=0, std=1)
    with pytest.raises(QkitError, match=r"^preprocessing= .*size, mean, std"):
        user_case(Mean(), None, images, size=8, preprocessing=lambda image: torch.zeros(3, 8, 8))


def test_images_of_a_network_with_channels_last_are_shown(images: Path) -> None:
    case = user_case(MeanNhwc(), None, images, size=16, mean=0, std=1, layout="nhwc", channels="bgr")
    inputs, _ = next(iter(case.evaluation))
    assert inputs.shape[1:] == (16, 16, 3)
    assert "blue, green" in repr(case.plot(2))


def export(path: Path, model: nn.Module, shape: tuple[int, ...], *, free: tuple[int, ...] = ()) -> Path:
    """A file of the network, whose input has sizes that are not fixed at `free`."""
    example = torch.rand(shape)
    sizes = dict.fromkeys(free, torch.export.Dim.DYNAMIC)
    if path.suffix == ".onnx":
        named = {axis: f"d{axis}" for axis in free}
        torch.onnx.export(model, (example,), path, dynamo=True, dynamic_shapes=(named,), verbose=False)
    else:
        torch.export.save(torch.export.export(model, (example,), dynamic_shapes=(sizes,)), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_files_say_what_they_take_and_give(suffix: str, tmp_path: Path) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    fixed = signature(export(tmp_path / f"a.{suffix}", Mean(), (2, 3, 8, 12)))
    assert (fixed.image, fixed.classes) == ((2, 3, 8, 12), 3)
    free = signature(export(tmp_path / f"b.{suffix}", Mean(), (2, 3, 8, 12), free=(0, 2, 3)))
    assert (free.image, free.classes) == ((None, 3, None, None), 3)


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_case_of_a_file(suffix: str, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxscript")
    path = export(tmp_path / f"net.{suffix}", Mean(), (2, 3, 8, 12), free=(0,))
    caplog.set_level(logging.WARNING)
    case = user_case(str(path), None, images)
    assert case.model == path
    assert path.name in repr(case)
    assert case.classes == ("blue", "green", "red")
    inputs, _ = next(iter(case.evaluation))
    assert inputs.shape == (9, 3, 8, 12)
    assert re.search(r"net\.\w+: ImageNet.*--mean .*--std ", caplog.text)
    assert next(iter(user_case(path, None, images, preprocessing="resnet50").evaluation))[0].shape == (9, 3, 8, 12)
    with pytest.raises(QkitError, match=rf"^--weights .*{re.escape(path.name)}"):
        user_case(path, tmp_path / "w.pth", images)
    with pytest.raises(QkitError, match=rf"^--argument .*{re.escape(path.name)}"):
        user_case(path, None, images, model_arguments={"a": 1})
    with pytest.raises(DataError, match=r"^2 class .*\b3 outputs"):
        user_case(path, None, images, classes="a,b")


@pytest.mark.parametrize("count", [1, 3])
def test_a_file_that_was_written_with_some_images_takes_any_number_where_its_nodes_do(
    count: int, images: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    path = export(tmp_path / "net.onnx", Mean(), (count, 3, 8, 8))
    assert [len(targets) for _, targets in user_case(path, None, images, mean=0, std=1).evaluation] == [9]


def test_a_fixed_batch_is_kept_and_images_that_fill_none_are_left_out_by_number(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = export(tmp_path / "net.pt2", Mean(), (2, 3, 8, 8))
    caplog.set_level(logging.WARNING)
    case = user_case(path, None, images, mean=0, std=1)
    assert [len(targets) for _, targets in case.evaluation] == [2, 2, 2, 2]
    assert (2, 1) in [record.args[1:] for record in caplog.records if record.name.startswith("qkit") and record.args]
    assert [len(targets) for _, targets in user_case(path, None, images, batch_size=5).evaluation] == [5, 4]
    with pytest.raises(DataError, match=r"net\.pt2 .*\b2 images\b.*\b1\b.*--batch-size"):
        user_case(path, None, images, limit=1)


def test_damaged_and_missing_files_and_those_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(QkitError, match=r"net\.onnx "):
        program_path(tmp_path / "net.onnx")
    for suffix in ("onnx", "pt2"):
        (tmp_path / f"bad.{suffix}").write_bytes(b"nothing of the kind")
        with pytest.raises(QkitError, match=rf"bad\.{suffix} ") as refused:
            signature(tmp_path / f"bad.{suffix}")
        assert refused.value.__cause__ is not None
    torch.jit.save(torch.jit.trace(Mean(), torch.rand(1, 3, 4, 4)), tmp_path / "script.pt")
    with pytest.raises(QkitError, match=r"script\.pt .*TorchScript.*ONNX"):
        program_path(tmp_path / "script.pt")
    torch.save(Mean().state_dict(), tmp_path / "state.pt")
    assert program_path(tmp_path / "state.pt") is None
    assert program_path("resnet50") is program_path("net:make") is None


@pytest.mark.parametrize(
    ("made", "part", "said"),
    [
        (Signature(((1, 3, 4, 4), (1, 2))), "image", r"\b2 inputs\b"),
        (Signature(((1, 3),)), "image", r"\binput\b.* 1 x 3\b(?! x)"),
        (Signature((), ((1, 3), (1, 2))), "classes", r"\b2 outputs\b"),
        (Signature((), ((1, 3, 4, 4),)), "classes", r"\boutput\b.* 1 x 3 x 4 x 4\b.*\(images, classes\)"),
    ],
)
def test_networks_that_are_no_classifiers_of_images_need_loaders(made: Signature, part: str, said: str) -> None:
    with pytest.raises(QkitError, match=said):
        getattr(made, part)
