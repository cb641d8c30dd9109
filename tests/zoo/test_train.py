"""Training is repeatable, and rescaling channels preserves the function."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from qkit.errors import QkitError
from qkit.zoo import __main__ as command
from qkit.zoo import build, load
from qkit.zoo.hostile import rescale_channels, rescale_pair
from qkit.zoo.train import Recipe, train


@pytest.mark.parametrize("name", ["mobilenet_v2_hostile", "resnet_small"])
def test_training_twice_gives_the_same_weights_and_no_side_effects(name: str) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    recipe = Recipe(epochs=1, batch_size=16, spread=4.0 if "mobilenet" in name else 1.0)
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
    with pytest.raises(QkitError, match="do not fill one batch"):
        train("resnet_small", recipe=Recipe(epochs=1), samples=8)


def test_the_command_writes_weights_and_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "train", lambda name, seed, _recipe: build(name, seed).eval())
    result = CliRunner().invoke(command.app, ["train", "resnet_small", "--out", str(tmp_path), "--epochs", "2"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "resnet_small.safetensors").is_file()
    card = json.loads((tmp_path / "resnet_small.json").read_text())
    assert card["recipe"]["epochs"] == 2
    assert set(card["scores"]) == {"train", "calibration", "evaluation"}


def test_the_command_names_the_known_checkpoints() -> None:
    result = CliRunner().invoke(command.app, ["train", "alexnet"])
    assert result.exit_code == 1
    assert "resnet_small" in result.output


@pytest.mark.parametrize("seed", [0, 1])
def test_rescaling_preserves_the_function(seed: int) -> None:
    model = load("mobilenet_v2_lite").model
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = model(images)
        assert rescale_channels(model, 16.0, seed) == 33
        found = model(images)
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_rescaling_makes_the_ranges_of_channels_unequal() -> None:
    model = load("mobilenet_v2_lite").model
    layer = model.get_submodule("features.10.conv.1.0")
    assert isinstance(layer, nn.Conv2d)
    before = layer.weight.flatten(1).abs().amax(1)
    rescale_channels(model, 16.0)
    ratio = layer.weight.flatten(1).abs().amax(1) / before
    assert 8 < ratio.max() / ratio.min() <= 16


def test_rescaling_one_pair_scales_the_first_layer_and_unscales_the_second() -> None:
    norm, conv = nn.BatchNorm2d(2).eval(), nn.Conv2d(2, 3, 1)
    weight = conv.weight.detach().clone()
    rescale_pair(norm, conv, torch.tensor([2.0, 0.5]))
    assert norm.weight.tolist() == [2.0, 0.5]
    assert torch.equal(conv.weight, weight / torch.tensor([2.0, 0.5]).view(1, 2, 1, 1))


def test_rescaling_refuses_what_it_cannot_rescale() -> None:
    with pytest.raises(QkitError, match="nothing to rescale"):
        rescale_channels(build("resnet_small"), 4.0)
    with pytest.raises(QkitError, match="at least 1"):
        rescale_channels(build("mobilenet_v2_lite"), 0.5)
