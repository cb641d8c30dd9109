"""A network that is a file, on every command that takes one: its own size, classes from folders, and no weights beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from command_line import called
from PIL import Image
from torch import Tensor, nn

import qkit
from qkit import zoo

onnx = pytest.importorskip("onnx")
quantization = pytest.importorskip("onnxruntime.quantization")
pytest.importorskip("onnxscript")

COLOURS = {"blue": (20, 40, 230), "green": (30, 220, 40), "red": (230, 30, 20)}
#: Preprocessing of the networks here: values from 0 to 1, as they are.
PLAIN = ("--mean", "0", "--std", "1")
Run = Callable[..., tuple[int, str, str]]


class Colour(nn.Module):
    """Tells blue, green and red; of images in red, green and blue, with channels first or last."""

    def __init__(self, *, last: bool = False, bgr: bool = False) -> None:
        super().__init__()
        self.last = last
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.conv.weight.zero_()
            for channel in range(3):
                self.conv.weight[channel, channel] = 1 / 9
            self.head.weight.copy_(torch.eye(3) if bgr else torch.eye(3).flip(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.last:
            x = x.permute(0, 3, 1, 2)
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a command in a folder with images; returns exit code, standard output and standard error."""
    noise = torch.Generator().manual_seed(0)
    for name, colour in COLOURS.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            picture = Image.new("RGB", (20 + i, 18), colour)
            for x, y, *other in torch.randint(0, 18, (40, 5), generator=noise).tolist():
                picture.putpixel((x, y), tuple(14 * value for value in other))
            picture.save(tmp_path / "images" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return called


def write(path: str, model: nn.Module, shape: tuple[int, ...] = (2, 3, 16, 16)) -> str:
    """A file of the network for any number of images."""
    model.eval()
    example = torch.rand(shape)
    if path.endswith(".onnx"):
        torch.onnx.export(model, (example,), path, dynamo=True, dynamic_shapes=({0: "images"},), verbose=False)
    else:
        torch.export.save(torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},)), path)
    return path


def reported(run: Run, *arguments: str) -> float:
    code, said, warned = run(
        "report", *arguments, "--data", "images", "--out", "r.json", "--no-sensitivity", "--no-diagnose", "--json"
    )
    assert code == 0, warned
    return float(json.loads(said)["scores"]["lanes"]["float"]["score"]["value"])


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_a_file_is_reported_on_and_the_line_that_repeats_it_has_all_options(suffix: str, run: Run) -> None:
    path = write(f"net.{suffix}", Colour())
    assert reported(run, "--model", path, *PLAIN) == 1.0
    text = Path("r.json").read_text()
    assert f"qkit report --model net.{suffix} --data images --mean 0 --std 1" in text


@pytest.mark.slow
def test_channels_layout_and_range_are_those_of_the_network(run: Run) -> None:
    bgr = write("bgr.onnx", Colour(bgr=True))
    assert reported(run, "--model", bgr, *PLAIN, "--channels", "bgr") == 1.0
    assert reported(run, "--model", bgr, *PLAIN) < 0.5, "red for blue"
    last = write("last.onnx", Colour(last=True), (2, 16, 16, 3))
    assert reported(run, "--model", last, *PLAIN) == 1.0
    assert reported(run, "--model", last, *PLAIN, "--layout", "nhwc", "--range", "255") == 1.0


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
@pytest.mark.parametrize("command", ["diagnose", "capture", "export", "lint"])
def test_every_command_takes_a_file(command: str, suffix: str, run: Run) -> None:
    path = write(f"net.{suffix}", Colour())
    more = {"capture": ("--samples", "2", "--out", "t"), "export": ("--out", "plan.json", "--format", "plan"), "lint": ()}
    data = () if command == "lint" else ("--data", "images", *PLAIN)
    code, _, warned = run(command, "--model", path, *data, *more.get(command, ("--budget", "5")))
    assert code == 0, warned


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_lint_says_nothing_of_a_source_that_a_file_does_not_have(suffix: str, run: Run) -> None:
    path = write(f"net.{suffix}", nn.Sequential(Colour(), nn.SiLU()))
    code, said, warned = run("lint", "--model", path, "--all", "--json")
    assert code == 0, warned
    found = json.loads(said)
    rules = {finding["rule"] for finding in found["findings"]}
    assert "replaceable-activation" in rules
    assert not rules & {"functional-operation", "data-dependent-control-flow", "assert"}
    assert any(remark.startswith(f"{path} ") and "source" in remark for remark in found["remarks"])


@pytest.mark.slow
def test_loaders_of_the_users_serve_a_file_as_well(run: Run, tmp_path: Path) -> None:
    (tmp_path / "filedata.py").write_text(
        "import torch\n\n\ndef data():\n    x = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))\n"
        "    return [(x, x.mean((2, 3)).flip(1).argmax(1))]\n"
    )
    path = write("net.onnx", Colour())
    code, said, warned = run("diagnose", "--model", path, "--data", "filedata:data", "--budget", "3", "--json")
    assert code == 0, warned
    assert json.loads(said)["model"] == "net.onnx"


def test_a_case_of_a_file_makes_a_study(run: Run) -> None:
    case = zoo.user_case(write("net.onnx", Colour()), None, "images", mean=0, std=1)
    study = qkit.Study(case.model, case.calibration, case.evaluation)  # type: ignore[arg-type]
    assert study.evaluate(("float",), progress=False)["float"].value == 1.0


@pytest.mark.slow
def test_a_quantized_file_keeps_its_grids_unless_others_are_asked_for(run: Run) -> None:
    made = write("net.onnx", Colour())
    pictures = iter([{"x": torch.rand(4, 3, 16, 16).numpy()}])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> object:
            return next(pictures, None)

    quantization.quantize_static(made, "int8.onnx", Reader(), activation_type=quantization.QuantType.QInt8)
    (scale,) = (onnx.numpy_helper.to_array(t) for t in onnx.load("int8.onnx").graph.initializer if t.name == "x_scale")

    def exported(*options: str) -> float:
        line = ("--model", "int8.onnx", "--data", "images", *PLAIN, "--out", "plan.json", "--format", "plan")
        code, _, warned = run("export", *line, *options)
        assert code == 0, warned
        return float(json.loads(Path("plan.json").read_text())["grids"]["x"]["scale"])

    assert exported() == scale
    assert exported("--method", "minmax") != scale
    assert exported("--scheme", "int8-symmetric") != scale
    code, _, warned = run("report", "--model", "int8.onnx", "--data", "images", *PLAIN, "--out", "r.json", "--no-diagnose")
    assert code == 0, warned
    report = json.loads(Path("r.json").read_text())
    assert any("grids" in remark for remark in report["remarks"])
    assert "file" in report["settings"]["scheme"]
    assert not {"--scheme", "--method"} & set(report["command"].split())
