"""Training is repeatable, and the command writes what it trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from qkit.errors import QkitError
from qkit.zoo import __main__ as command
from qkit.zoo import build, names
from qkit.zoo.train import Recipe, train


@pytest.mark.parametrize("name", ["mobilenet_v2_hostile", "resnet_small", "vgg_small", "inception_small", "swin_small"])
def test_training_twice_gives_the_same_weights_and_no_side_effects(name: str) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    recipe = Recipe(epochs=1, batch_size=16, optimizer={"mobilenet_v2_hostile": "adam", "swin_small": "adamw"}.get(name, "sgd"))
    first, second = (train(name, 0, recipe, samples=64) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    start = build(name, 0).state_dict()
    assert any(not torch.equal(tensor, start[key]) for key, tensor in first.state_dict().items())


def test_bad_recipes_are_refused() -> None:
    with pytest.raises(QkitError, match="'lbfgs'"):
        train("resnet_small", recipe=Recipe(epochs=1, optimizer="lbfgs"), samples=64)
    with pytest.raises(QkitError, match=r"^8 .*\b32\b"):
        train("resnet_small", recipe=Recipe(epochs=1), samples=8)


def test_the_command_writes_weights_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "train", lambda name, seed, _recipe: build(name, seed).eval())
    result = CliRunner().invoke(command.app, ["train", "resnet_small", "--out", str(tmp_path), "--epochs", "2"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "resnet_small.safetensors").is_file()
    card = json.loads((tmp_path / "resnet_small.json").read_text())
    assert card["recipe"]["epochs"] == 2
    assert set(card["scores"]) == {"train", "calibration", "evaluation"}


def test_the_command_trains_several_or_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "train", lambda name, seed, _recipe: build(name, seed).eval())
    monkeypatch.setattr(command, "scores", lambda _model: {"train": 0.1, "calibration": 0.1, "evaluation": 0.1})
    result = CliRunner().invoke(command.app, ["train", "all", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == sorted(names())


def test_an_unknown_name_among_several_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    result = CliRunner().invoke(command.app, ["train", "resnet_small", "alexnet", "--out", str(tmp_path / "data")])
    assert result.exit_code == 2
    assert not (tmp_path / "data").exists()


def test_the_command_names_the_known_checkpoints() -> None:
    result = CliRunner().invoke(command.app, ["train", "alexnet"])
    assert result.exit_code == 2
    assert "resnet_small" in result.output
