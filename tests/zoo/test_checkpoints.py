"""The shipped checkpoints are torchvision's architectures and score what their cards say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from qkit.errors import QkitError
from qkit.graph import build as build_graph
from qkit.graph import run_float
from qkit.zoo import build, checkpoints, folders, load, load_torchvision, names
from qkit.zoo.train import RECIPES, top1

MEGABYTES = {
    "mobilenet_v2_lite": 2, "mobilenet_v2_hostile": 2, "resnet_small": 3, "vgg_small": 2, "inception_small": 2, "deit_small": 1.2,
    "swin_small": 1.2, "mobilevit_small": 1.2,
}  # fmt: skip
TRANSFORMERS = ("deit_small", "swin_small", "mobilevit_small")


@pytest.mark.parametrize("name", names())
def test_a_checkpoint_scores_what_its_card_says(name: str) -> None:
    case = load(name)
    assert not case.model.training
    assert len(case.classes) == 10
    score = top1(case.model, case.evaluation.dataset)  # type: ignore[attr-defined]
    # one image of 741: another CPU's kernels may round another way
    assert case.expected == pytest.approx(score, abs=1.5 / 741)
    assert score > 0.95


@pytest.mark.parametrize("name", names())
def test_a_card_tells_the_recipe_and_the_counts(name: str) -> None:
    weights = next(path for folder in folders.FOLDERS if (path := folder / f"{name}.safetensors").is_file())
    assert weights.stat().st_size < MEGABYTES[name] * 1e6
    card = checkpoints.read_card(weights.with_suffix(".json"))
    assert card["recipe"] == dataclasses.asdict(RECIPES[name])
    assert card["counts"] == {"train": 800, "calibration": 256, "evaluation": 741}
    assert card["seed"] == 0
    assert {"torch", "torchvision"} <= set(card["versions"])


def test_mobilenet_is_torchvisions_but_for_its_relus() -> None:
    model = build("mobilenet_v2_lite")
    models = load_torchvision().models
    reference = models.mobilenet_v2(num_classes=10, width_mult=0.25)
    assert isinstance(model, models.MobileNetV2)
    assert list(model.state_dict()) == list(reference.state_dict())
    assert not any(isinstance(module, nn.ReLU6) for module in model.modules())
    assert sum(type(module) is nn.ReLU for module in model.modules()) == 35


def test_resnet_is_torchvisions_with_fewer_channels() -> None:
    model = build("resnet_small")
    models = load_torchvision().models
    assert isinstance(model, models.ResNet)
    assert list(model.state_dict()) == list(models.resnet18().state_dict())
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_vgg_is_torchvisions_features_without_joins() -> None:
    model = build("vgg_small")
    models = load_torchvision().models
    assert isinstance(model, models.VGG)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    operations = build_graph(model.eval(), (torch.zeros(1, 3, 32, 32),)).operations
    assert [op.kind for op in operations].count("conv") == 7
    assert not {op.kind for op in operations} & {"add", "concat", "float"}
    assert all(len(op.inputs) <= 1 for op in operations)


def test_inception_has_a_tap_at_each_concatenation() -> None:
    model = build("inception_small")
    graph = build_graph(model.eval(), (torch.zeros(1, 3, 32, 32),))
    joins = {op.tap: len(op.inputs) for op in graph.operations if op.kind == "concat"}
    assert joins == {f"inception{name}:cat": 4 for name in ("3a", "3b", "4a", "4b")}
    assert not any(op.kind == "float" for op in graph.operations)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_are_on_grids_as_a_whole_at_any_batch_size(name: str) -> None:
    model = build(name).eval()
    graph = build_graph(model, (torch.randn(2, 3, 32, 32),))
    assert not any(op.kind == "float" for op in graph.operations)
    assert graph.share.macs >= 0.99
    assert graph.share.elements == 1.0
    assert [op.kind for op in graph.operations].count("matmul") == 8
    for count in (1, 5):
        images = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(run_float(graph, (images,)), model(images), rtol=1e-4, atol=1e-5)


def test_shifted_windows_see_no_token_from_the_other_side() -> None:
    """A pixel of the first row reaches a token of the last one through a window only if the mask lets it."""
    model = build("swin_small").eval()
    block = model.get_submodule("stages.0.1")
    tokens = torch.randn(1, 8, 8, 48)
    tokens.requires_grad_()
    block(tokens)[0, -1].sum().backward()
    assert tokens.grad is not None
    moved = tokens.grad.abs().sum(-1)[0]
    assert moved[6:].max() > 1e-3
    assert moved[:6].max() < 1e-30  # exp(-100)


def test_building_is_seeded_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = build("mobilenet_v2_lite", 3), build("mobilenet_v2_lite", 3)
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(QkitError, match="mobilenet_v2_lite, mobilenet_v2_hostile, resnet_small"):
        load("mobilenet_v3")


def test_missing_weights_say_how_to_train_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "FOLDERS", (tmp_path / "package", tmp_path / "checkout"))
    with pytest.raises(QkitError, match=r"python -m qkit\.zoo train resnet_small"):
        load("resnet_small")


def test_damaged_weights_and_cards_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "FOLDERS", (tmp_path,))
    card = tmp_path / "resnet_small.json"
    (tmp_path / "resnet_small.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(QkitError, match=r"resnet_small\.json"):
        load("resnet_small")
    card.write_text(json.dumps({"scores": {"evaluation": 1.0}, "description": ""}))
    with pytest.raises(QkitError, match=r"resnet_small\.safetensors"):
        load("resnet_small")


def test_weights_survive_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("resnet_small", 5)
    checkpoints.save(model, "resnet_small", {"scores": {"evaluation": 0.5}, "description": "x"}, tmp_path)
    monkeypatch.setattr(folders, "FOLDERS", (tmp_path, *folders.FOLDERS))
    case = load("resnet_small")
    assert case.expected == 0.5
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, case.model.state_dict()[name])
