"""What the commands hand on to a study of a network that is a file: the path, the images that the options make, and the line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from command_cases import Run
from PIL import Image
from torch import Tensor, nn

from qkit.commands import source
from qkit.commands.options import DataOptions, GridOptions, MachineOptions, ModelOptions
from qkit.errors import QkitError


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Recorded:
    """In place of a study: what it was made of."""

    made: tuple[Any, ...] = ()

    def __init__(self, *given: Any, **named: Any) -> None:
        Recorded.made = given
        self.remarks: tuple[str, ...] = ()

    def with_remarks(self, remarks: tuple[str, ...]) -> Recorded:
        self.remarks = remarks
        return self


@pytest.fixture
def images(folder: Path) -> Path:
    for name, colour in {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}.items():
        (folder / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (20, 20), colour).save(folder / "images" / name / f"{i}.png")
    program = torch.export.export(Mean(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, folder / "net.pt2")
    return folder / "images"


def test_the_study_is_of_the_path_and_of_the_images_as_the_options_say(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkit.study.Study", Recorded)
    data = DataOptions(data="images", mean="0", std="1", channels="bgr", pixel_range=255)
    taken = source.load(ModelOptions(model="net.pt2"), data)
    assert (taken.case.name, taken.bundled) == ("net.pt2", False)
    source.make_study(taken, GridOptions(), MachineOptions())
    model, _, evaluation = Recorded.made
    assert model == Path("net.pt2")
    for inputs, targets in evaluation:
        assert inputs.shape[1:] == (3, 8, 8)
        assert float(inputs.max()) == 255
        assert torch.equal(inputs.mean((2, 3)).argmax(1), targets), "blue comes first"


def test_loaders_of_the_users_go_with_a_file(images: Path) -> None:
    taken = source.load(ModelOptions(model="net.pt2"), DataOptions(data="usernet:loaders"))
    assert taken.case.model == Path("net.pt2")


def test_remarks_on_weights_go_to_the_study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkit.study.Study", Recorded)
    monkeypatch.syspath_prepend(str(folder))
    import usernet

    torch.save({f"module.{name}": tensor for name, tensor in usernet.make().state_dict().items()}, "w.pth")
    taken = source.load(ModelOptions(model="usernet:make", weights=Path("w.pth")), DataOptions(data="usernet:loaders"))
    study: Any = source.make_study(taken, GridOptions(), MachineOptions())
    assert [("'module.'" in remark) for remark in study.remarks] == [True]


def test_all_options_go_into_the_configuration_and_the_line(images: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("--size", "8", "--mean", "0.5,0.4,0.3", "--std", "0.2", "--range", "1", "--layout", "nchw", "--channels", "rgb")
    lines: list[DataOptions] = []

    def load(model: ModelOptions, data: DataOptions) -> None:
        lines.append(data)
        raise QkitError("enough")

    monkeypatch.setattr("qkit.commands.capture.source.load", load)
    run("capture", "--model", "net.pt2", "--data", "images", *given, "--write-config", "run.toml", "--out", "t")
    kept = tomllib.loads(Path("run.toml").read_text())["capture"]
    assert {key: kept[key] for key in ("size", "mean", "std", "range", "layout", "channels")} == {
        "size": "8", "mean": "0.5,0.4,0.3", "std": "0.2", "range": 1, "layout": "nchw", "channels": "rgb",
    }  # fmt: skip
    run("capture", "--config", "run.toml")
    assert lines[0] == lines[1]
    assert (lines[0].size, lines[0].pixel_range, lines[0].channels) == ("8", 1, "rgb")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--size", "9"), r"net\.pt2 .*\? x 3 x 8 x 8 \(nchw\).*--size.* 9 x 9"),
        (("--mean", "0.5"), r"\(--mean, --std\).*--mean 0 "),
        (("--mean", "127", "--std", "58"), r"\b127\b.*\b58\b.*--range 255 \(pixel_range=255\)"),
        (("--channels", "gray"), r"net\.pt2 .*\b3 channels\b.*--channels.* gray"),
        (("--weights", "w.pth"), r"--weights .*\bnet\.pt2\b"),
    ],
)
def test_what_contradicts_the_file_is_one_line(options: tuple[str, ...], said: str, images: Path, run: Run) -> None:
    code, out, warned = run("capture", "--model", "net.pt2", "--data", "images", *options, "--out", "t")
    assert (code, out) == (2, "")
    assert re.search(said, " ".join(warned.split()))


def test_lint_takes_the_size_of_the_file(images: Path) -> None:
    from qkit.commands.lint_model import model_and_batch

    model, batch, trained = model_and_batch("net.pt2")
    assert (tuple(batch.shape), trained) == ((1, 3, 8, 8), True)
    assert model(batch).shape == (1, 3)
    assert tuple(model_and_batch("net.pt2", input_size="4x3x8x8")[1].shape) == (4, 3, 8, 8)


def test_torchvisions_parts_are_replaced_by_options(images: Path, run: Run) -> None:
    from qkit.zoo import load_torchvision

    with torch.random.fork_rng():
        net = load_torchvision().models.get_model("squeezenet1_1", weights=None, num_classes=3)
    torch.save(net.state_dict(), "w.pth")
    taken = source.load(
        ModelOptions(model="squeezenet1_1", weights=Path("w.pth")), DataOptions(data="images", size="64x80", mean="0", std="1")
    )
    inputs, _ = next(iter(taken.case.evaluation))
    assert inputs.shape[1:] == (3, 64, 80)
    assert (float(inputs.min()), float(inputs.max())) == (0, 1)
