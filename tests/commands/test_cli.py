"""The command line: the bundled networks, a user's own folder and weights, and errors in one line."""

from __future__ import annotations

import csv
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from command_line import called
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import qkit
from qkit import cli
from qkit.commands import source
from qkit.errors import QkitError
from qkit.quant.plan import Plan
from qkit.zoo import load_torchvision

COLOURS = {"blue": (20, 40, 230), "green": (30, 220, 40), "red": (230, 30, 20)}


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    handlers = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = handlers


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    noise = torch.Generator().manual_seed(0)
    for folder, colour in COLOURS.items():
        (root / folder).mkdir()
        for i in range(4):
            picture = Image.new("RGB", (48 + i, 40), colour)
            for _ in range(30):
                x, y, *other = torch.randint(0, 40, (5,), generator=noise).tolist()
                picture.putpixel((x, y), tuple(other))
            picture.save(root / folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = load_torchvision().models.get_model("resnet18", weights=None, num_classes=3)
    state = model.state_dict()
    paths = {"pth": folder / "resnet18.pth", "safetensors": folder / "resnet18.safetensors"}
    torch.save(state, paths["pth"])
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, paths["safetensors"])
    return paths


def report(images: Path, weights: Path, *more: str) -> list[str]:
    return ["report", "--model", "resnet18", "--weights", str(weights), "--data", str(images), *more]


@pytest.mark.parametrize("network", ["mobilenet_v2_hostile", "resnet_small"])
def test_demo(network: str, tmp_path: Path) -> None:
    out = tmp_path / "made" / "report.json"
    result = CliRunner().invoke(
        cli.app,
        ["demo", "--network", network, "--no-sensitivity", "--no-diagnose", "--batches", "3", "--out", str(out)],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    data = json.loads(out.read_text())
    # of a network that loses nothing, 192 images may be too few to tell
    expected = {"quantization"} if "hostile" in network else {"no-degradation", "inconclusive"}
    assert data["verdict"]["verdict"] in expected
    for lane in ("float", "int16", "int8"):
        assert lane in result.output
    assert "192" in result.output


@pytest.mark.slow
def test_demo_calls_the_hostile_network_by_its_name(tmp_path: Path) -> None:
    out = tmp_path / "report.md"
    result = CliRunner().invoke(cli.app, ["demo", "--no-sensitivity", "--out", str(out)], catch_exceptions=False)
    assert "quantization: " in " ".join(result.output.split())
    assert "features.3.conv.1.0" in out.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_report_on_a_folder_of_images(kind: str, images: Path, weights: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "report.csv"
    arguments = report(
        images,
        weights[kind],
        "--classes",
        "blue,green,red",
        "--out",
        str(out),
        "--no-sensitivity",
        "--no-diagnose",
        "--batch-size",
        "6",
    )
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with out.open() as stream:
        rows = list(csv.DictReader(line for line in stream if not line.startswith("#")))
    assert len(rows) > 20
    assert any("conv1" in value for value in rows[1].values())


@pytest.mark.slow
def test_report_in_a_process_of_its_own_is_a_page(images: Path, weights: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("blue\ngreen\nred\n")
    arguments = report(
        images, weights["pth"], "--classes", "classes.txt", "--out", "page.html", "--batch-size", "6", "--threads", "2",
        "--no-sensitivity", "--no-diagnose",
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "qkit", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "<!doctype html>" in page[:20].lower()
    assert "calibrating" not in done.stderr, "bars are for terminals"
    assert "Report: page.html" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "--model", "resnet18", "--weights", "nowhere.pth", "--data", "IMAGES"], "nowhere.pth"),
        (["report", "--model", "resnet18", "--weights", "WEIGHTS", "--data", "nowhere"], "nowhere"),
        (["report", "--model", "resnet81", "--weights", "WEIGHTS", "--data", "IMAGES"], "'resnet81'"),
        (["report", "--model", "mobilenet_v2", "--weights", "WEIGHTS", "--data", "IMAGES"], "resnet18.pth"),
        (["report", "--model", "resnet18", "--weights", "WEIGHTS", "--data", "IMAGES", "--classes", "a,b,c"], "class folders"),
        (["report", "--model", "resnet18", "--weights", "WEIGHTS", "--data", "IMAGES", "--classes", "a,b"], "3 outputs"),
        (["report", "--model", "resnet18", "--weights", "WEIGHTS", "--data", "IMAGES", "--out", "report.pdf"], ".pdf"),
        (["report", "--model", "resnet18", "--weights", "WEIGHTS", "--data", "IMAGES", "--scheme", "int9000"], "int9000"),
        (["report", "--model", "resnet18", "--weights", "WEIGHTS", "--data", "IMAGES", "--method", "guess"], "guess"),
        (["report", "--model", "resnet18", "--weights", "WEIGHTS", "--data", "IMAGES", "--device", "warp"], "warp"),
        (["demo", "--scheme", "int9000"], "int9000"),
        (["demo", "--out", "FILE/report.html"], "file/report.html"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, images: Path, weights: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    places = {"IMAGES": str(images), "WEIGHTS": str(weights["pth"]), "FILE/report.html": "file/report.html"}
    code, _, said = called(*(places.get(a, a) for a in arguments), columns=500)
    assert code == 2
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*.html"))


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(source, "make_study", stop)
    monkeypatch.setattr(sys, "argv", ["qkit", "demo"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 130


@pytest.mark.slow
def test_diagnose_prints_causes_and_writes_diagnosis_and_plan(tmp_path: Path) -> None:
    out, plan = tmp_path / "diagnosis.json", tmp_path / "plan.json"
    arguments = ["diagnose", "--batches", "4", "--budget", "200", "--out", str(out), "--save-plan", str(plan)]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert re.search(r"\bweight-channel-imbalance\b.{,9}\bfeatures\.3\.conv\.1\.0\b", said)
    assert "200 evaluations" in said
    assert json.loads(out.read_text())["verdict"] == "quantization"
    assert Plan.load(plan)["features.3.conv.1.0.weight"].params.per_channel


@pytest.mark.slow
def test_diagnose_says_that_a_sound_network_leaves_no_plan_to_save(tmp_path: Path) -> None:
    arguments = ["diagnose", "--model", "resnet_small", "--batches", "4", "--save-plan", str(tmp_path / "plan.json")]
    with pytest.raises(QkitError, match=r"\bremedy\b.*\bplan\b"):
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert not (tmp_path / "plan.json").exists()


COMMANDS = ("demo", "lab", "diagnose", "lint", "capture", "report", "export", "config")


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    result = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert all(f" {command} " in result.output for command in COMMANDS)
    assert "130 interrupted" in " ".join(result.output.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_examples_and_exit_codes(command: str) -> None:
    result = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "Usage" in result.output
    assert f"qkit {command}" in result.output.split("Examples")[1]
    assert "130 interrupted" in " ".join(result.output.split("Examples")[1].split("Exit code")[1].split())
    assert "--json" in result.output
    assert ("--write-config" in result.output) == (command != "config")


def test_what_help_lists_is_what_there_is() -> None:
    from qkit import PRESETS, zoo
    from qkit.commands import options
    from qkit.execution.metrics import NAMED
    from qkit.quant.estimators import METHODS

    assert set(options.SCHEMES) == set(PRESETS)
    assert set(options.METHODS) == set(METHODS)
    assert set(options.BUNDLED) == set(zoo.names())
    assert get_args(get_args(get_type_hints(options.DataOptions)["metric"])[0]) == tuple(NAMED)


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, qkit.cli\ntry: qkit.cli.app([])\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Usage" in done.stdout
    assert not {"torch", "numpy", "pandas", "scipy", "matplotlib", "IPython"} & set(done.stderr.split())


def test_version() -> None:
    assert CliRunner().invoke(cli.app, ["--version"]).output == f"qkit {qkit.__version__}\n"
