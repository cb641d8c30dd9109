"""``qkit lint``: models by name, table and JSON, exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from command_line import called
from typer.testing import CliRunner

from qkit import cli

FACTORY = "import torch\n\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return x if x.sum() > 0 else -x\n"


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["lint", *arguments], catch_exceptions=False, env={"COLUMNS": "200"})
    return result.exit_code, result.output


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "lint_command_net.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    return "lint_command_net:Net"


@pytest.mark.slow
def test_bundled_network_brings_its_size() -> None:
    code, said = run()
    assert code == 0
    assert "features.3.conv.1.0" in said
    assert "depthwise-spread" in said
    assert re.search(r"\b6\b.*--all\b", said)
    assert "MobileNetV2: 0 errors, 11 warnings" in said
    assert "random" not in said
    assert "--all" not in run("--all")[1]


def test_torchvision_network_with_random_weights() -> None:
    code, said = run("--model", "squeezenet1_0", "--input-size", "1x3x64x64")
    assert code == 0
    assert "features.3.squeeze" in said
    assert "random" in said


@pytest.mark.slow
def test_torchvision_network_with_weights(tmp_path: Path, torchvision_models) -> None:
    path = tmp_path / "weights.pth"
    torch.save(torchvision_models.shufflenet_v2_x0_5(weights=None).state_dict(), path)
    code, said = run("--model", "shufflenet_v2_x0_5", "--weights", str(path), "--input-size", "1x3x64x64")
    assert code == 0
    assert "random" not in said


def test_errors_are_exit_code_1_and_json_is_json(factory: str, tmp_path: Path) -> None:
    out = tmp_path / "made" / "lint.json"
    code, said = run("--model", factory, "--json", "--out", str(out))
    assert code == 1
    data = json.loads(said)
    assert data == json.loads(out.read_text())
    assert not data["ok"]
    assert [(f["rule"], f["line"]) for f in data["findings"] if f["severity"] == "error"] == [("data-dependent-control-flow", 5)]
    code, said = run("--model", factory)
    assert code == 1
    assert "data-dependent-control-flow" in said
    assert "torch.where" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet81"], r"\bclassification\b.*'resnet81'"),
        (["--model", "nowhere:Net"], r"\bnowhere:Net .*'nowhere'"),
        (["--input-size", "3,32,32"], r"'3,32,32'.*\bsize\b"),
        (["--input-size", "1x4x32x32"], r"\(1, 4, 32, 32\)"),
        (["--model", "resnet18", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["--weights", "nowhere.pth"], r"--weights .*--model\b"),
        (["--out", "file/lint.json"], r"\bfile/lint\.json\b"),
    ],
)
def test_bad_use_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    code, _, said = called("lint", *arguments, columns=500)
    assert code == 2
    assert re.search(message, said)
    assert "Traceback" not in said
