"""Checkpoints as training code writes them, through the command line: each is read right, and what was done is said there and in reports."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import called
from torch import Tensor, nn

SOURCE = """
import torch
from torch import nn

def make():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )

def data():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, 8, 8, generator=g)
    y = torch.randint(0, 4, (64,), generator=g)
    return [(x[i : i + 32], y[i : i + 32]) for i in (0, 32)], [(x[i : i + 32], y[i : i + 32]) for i in (0, 32)]
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a command in a folder with the user's module; returns exit code, standard output and standard error."""
    (tmp_path / "trainednet.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield called
    sys.modules.pop("trainednet", None)


def weights(bias: float) -> dict[str, Tensor]:
    """Weights whose logits are almost the bias of the last layer's first output: they tell which ones they are."""
    from torch.nn.init import constant_

    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    constant_(model[5].bias, bias)
    constant_(model[5].weight, 1e-3)
    return dict(model.state_dict())


RAW, MEAN = 1.0, 5.0


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


FORMS: dict[str, Callable[[], Any]] = {
    "plain": lambda: weights(MEAN),
    "module.": lambda: prefixed("module.", weights(MEAN)),
    "module._orig_mod.": lambda: {"epoch": 3, "state_dict": prefixed("module._orig_mod.", weights(MEAN))},
    "model.": lambda: {"state_dict": prefixed("model.", weights(MEAN)), "epoch": 1, "global_step": 2},
    "model_ema": lambda: {"model": weights(RAW), "model_ema": {**prefixed("module.", weights(MEAN)), "n_averaged": torch.tensor(3)}},
    "state_dict_ema": lambda: {"state_dict": weights(RAW), "state_dict_ema": weights(MEAN), "epoch": 3},
    "float16": lambda: {name: t.half() if t.is_floating_point() else t for name, t in weights(MEAN).items()},
}  # fmt: skip
OWN = ("--model", "trainednet:make", "--data", "trainednet:data", "--weights", "w.pth")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_and_what_was_done_is_on_standard_error(form: str, run: Run) -> None:
    torch.save(FORMS[form](), "w.pth")
    code, said, warned = run("capture", *OWN, "--lane", "float", "--samples", "2", "--tap", "5", "--out", "t", "--json")
    assert code == 0, warned
    found = json.loads(said)["errors"]["taps"]["5"]["float"]
    assert found["min"] == pytest.approx(MEAN, abs=0.1)
    assert form == "plain" or form in warned


def test_the_other_weights_are_taken_by_their_key_and_reports_say_which(run: Run) -> None:
    torch.save(FORMS["model_ema"](), "w.pth")
    quick = ("--no-sensitivity", "--no-diagnose")
    code, _, warned = run("report", *OWN, "--out", "r.json", "--write-config", "run.toml", "--weights-key", "model", *quick)
    assert code == 0, warned
    assert tomllib.loads(Path("run.toml").read_text())["report"]["weights-key"] == "model"
    assert "--weights-key model" in Path("r.json").read_text()
    code, _, warned = run("report", *OWN, "--out", "s.json", *quick)
    assert code == 0, warned
    remarks = json.loads(Path("s.json").read_text())["remarks"]
    assert any(re.search(r"'model_ema\.module'.*--weights-key model ", remark) for remark in remarks)
    code, _, warned = run("report", *OWN, "--out", "u.json", "--weights-key", "swa", *quick)
    assert code == 2
    assert re.search(r"'swa'.*'model', 'model_ema\.module'", " ".join(warned.split()))


@pytest.mark.parametrize("command", ["lint", "export", "diagnose"])
def test_every_command_reads_checkpoints_alike(command: str, run: Run) -> None:
    torch.save(FORMS["module._orig_mod."](), "w.pth")
    own = OWN if command != "lint" else (*OWN[:2], *OWN[4:], "--input-size", "1x3x8x8")
    more = {"export": ("--out", "plan.json", "--format", "plan"), "diagnose": ("--budget", "3")}.get(command, ())
    code, _, warned = run(command, *own, *more)
    assert code == 0, warned
    assert "module._orig_mod." in warned
