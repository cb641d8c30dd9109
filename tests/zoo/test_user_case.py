"""The user's own model, weights file and image folder."""

from __future__ import annotations

import itertools
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from qkit.errors import DataError, QkitError
from qkit.zoo import load_torchvision, user_case
from qkit.zoo.classes import map_folders, read_classes
from qkit.zoo.statefile import read_state
from qkit.zoo.usermodel import categories, preset

MODEL = "squeezenet1_1"
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


class MeanColour(nn.Module):
    """Its logits are an image's mean red, green and blue: top-1 tells the colour."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * self.gain


def not_a_model() -> str:
    return "not a model"


def _write_images(root: Path, count: int = 8) -> Path:
    for folder, colour in COLOURS.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40 + i, 36), colour).save(root / folder / f"{i}.png")
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return _write_images(tmp_path / "images")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        model = load_torchvision().models.get_model(MODEL, weights=None, num_classes=3)
    return dict(model.state_dict())


@pytest.fixture
def weights(tmp_path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def _top1(case: object) -> float:
    batches = [(case.model(x).argmax(1) == y).double() for x, y in case.evaluation]  # type: ignore[attr-defined]
    return torch.cat(batches).mean().item()


def test_a_torchvision_model_with_a_folder_that_is_split(images: Path, weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    before = torch.get_rng_state()
    case = user_case(MODEL, weights, images, batch_size=5)
    assert torch.equal(before, torch.get_rng_state())
    assert re.search(r"stratified.*seed 0.* 6 .* 18 ", caplog.text)
    assert case.classes == ("blue", "green", "red")
    assert not case.model.training
    assert case.expected is None
    labels = torch.cat([y for _, y in case.evaluation])
    assert len(labels) == 18
    assert torch.bincount(labels).tolist() == [6, 6, 6]
    inputs, _ = next(iter(case.calibration))
    assert inputs.shape == (5, 3, 224, 224)
    with torch.no_grad():
        assert case.model(inputs).shape == (5, 3)


def test_splits_are_disjoint_seeded_and_limited(images: Path, weights: Path) -> None:
    def paths(**options: int) -> tuple[set[Path], set[Path]]:
        case = user_case(MODEL, weights, images, **options)  # type: ignore[arg-type]
        return tuple({p for p, _ in part.dataset.samples} for part in (case.calibration, case.evaluation))  # type: ignore

    calibration, evaluation = paths(seed=1)
    assert not calibration & evaluation
    assert len(calibration | evaluation) == 24
    assert paths(seed=1) == (calibration, evaluation)
    assert paths(seed=2) != (calibration, evaluation)
    assert [len(part) for part in paths(limit=4)] == [4, 4]


def test_train_and_val_folders_are_used_and_notebook_checkpoints_are_not(tmp_path: Path, weights: Path) -> None:
    root = tmp_path / "data"
    _write_images(root / "val", 2)
    _write_images(root / "train", 4)
    (root / "val" / ".ipynb_checkpoints").mkdir()
    (root / "val" / "red" / "._0.png").write_bytes(b"")
    case = user_case(MODEL, weights, root, calibration_images=5)
    assert {path.parts[-3] for path, _ in case.evaluation.dataset.samples} == {"val"}  # type: ignore[attr-defined]
    assert {path.parts[-3] for path, _ in case.calibration.dataset.samples} == {"train"}  # type: ignore[attr-defined]
    assert len(case.evaluation.dataset) == 6  # type: ignore[attr-defined]
    assert len(case.calibration.dataset) == 5  # type: ignore[attr-defined]


def test_a_class_called_train_is_a_class(tmp_path: Path, weights: Path) -> None:
    root = _write_images(tmp_path / "data")
    (root / "red").rename(root / "train")
    assert user_case(MODEL, weights, root).classes == ("blue", "green", "train")


def test_calibration_images_of_another_folder(images: Path, tmp_path: Path, weights: Path) -> None:
    other = _write_images(tmp_path / "other", 2)
    case = user_case(MODEL, weights, images, calibration_data=other)
    assert len(case.evaluation.dataset) == 24  # type: ignore[attr-defined]
    assert len(case.calibration.dataset) == 6  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=rf"{re.escape(str(images))} .*{re.escape(str(images))} "):
        user_case(MODEL, weights, images, calibration_data=images)


def test_class_names_put_the_folders_in_the_models_order(images: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    by_alphabet = user_case(f"{__name__}:MeanColour", None, images)
    assert "preprocessing" in caplog.text
    assert _top1(by_alphabet) == pytest.approx(1 / 3)
    listed = tmp_path / "classes.txt"
    listed.write_text("red\ngreen\nblue\n")
    for classes in ("red,green,blue", ["red", "green", "blue"], listed):
        case = user_case(MeanColour(), None, images, classes=classes)
        assert case.classes == ("red", "green", "blue")
        assert _top1(case) == 1.0


def test_weights_load_into_a_factorys_model_and_preprocessing_may_be_stated(images: Path, tmp_path: Path) -> None:
    save_file({"gain": torch.tensor([1.0, 2.0, 3.0])}, tmp_path / "w.safetensors")
    case = user_case(
        f"{__name__}:MeanColour",
        tmp_path / "w.safetensors",
        images,
        preprocessing=lambda image: torch.full((3, 4, 4), float(image.width)),
        expected=0.5,
    )
    assert case.expected == 0.5
    assert case.model.gain.tolist() == [1.0, 2.0, 3.0]
    inputs, _ = next(iter(case.evaluation))
    assert inputs.shape[1:] == (3, 4, 4)


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_pickled_code_is_refused_and_not_run(tmp_path: Path) -> None:
    for content in (Trap(tmp_path / "ran"), {"state_dict": {"w": torch.ones(1)}, "extra": Trap(tmp_path / "ran")}):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(QkitError, match=r"w\.pth"):
            read_state(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(QkitError, match=r"none\.pth"):
        read_state(tmp_path / "none.pth")
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(QkitError, match=name.replace(".", r"\.")):
            read_state(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(QkitError, match=r"list\.pth .*\blist\b.*state_dict\(\)"):
        read_state(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(QkitError, match="'epoch'"):
        read_state(tmp_path / "epoch.pth")


def test_weights_that_do_not_fit_name_the_tensor(images: Path, tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "w.pth"

    def expect(content: dict[str, Tensor], message: str) -> None:
        torch.save(content, path)
        with pytest.raises(QkitError, match=message):
            user_case(MODEL, path, images)

    expect({**state, "features.0.weight": torch.zeros(1)}, r"features\.0\.weight .*\(1,\).*SqueezeNet .*\(64, 3, 3, 3\)")
    expect({k: v for k, v in state.items() if k != "features.0.bias"}, r"features\.0\.bias .*SqueezeNet (?!.*\d)")
    expect({**state, "head.weight": torch.zeros(1)}, r"head\.weight .*SqueezeNet\b.*training")
    expect({"features.0.weight": state["features.0.weight"]}, r"features\.0\.bias .*SqueezeNet .*\b50\b")


def test_bad_models_and_tags_are_named(images: Path, weights: Path) -> None:
    with pytest.raises(QkitError, match="squeezenet1_1"):
        user_case("squeezenet11", weights, images)
    with pytest.raises(QkitError, match=r"weights.* squeezenet1_1: "):
        user_case(MODEL, None, images)
    with pytest.raises(QkitError, match="IMAGENET1K_V1"):
        user_case(MODEL, weights, images, weights_tag="V9")
    with pytest.raises(QkitError, match=r"no_such_package:model .*'no_such_package'"):
        user_case("no_such_package:model", None, images)
    with pytest.raises(QkitError, match=r":not_a_model .*\bstr\b.*torch\.nn\.Module"):
        user_case(f"{__name__}:not_a_model", None, images)
    with pytest.raises(QkitError, match=r":MeanColour .*TypeError: .*'width'"):
        user_case(f"{__name__}:MeanColour", None, images, model_arguments={"width": 3})
    with pytest.raises(QkitError, match=r"Identity .*\(1, 3, 224, 224\).*\(1, classes\)"):
        user_case(nn.Identity(), None, images)
    with pytest.raises(QkitError, match=r"^limit .*\b1\b.*\b0\b"):
        user_case(MODEL, weights, images, limit=0)


def test_bad_folders_and_images_are_named(images: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        user_case(MODEL, weights, tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"images.red .*\bclass\b"):
        user_case(MODEL, weights, images / "red")
    for path in (images / "red").iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"red.\d\.png"):
        list(user_case(MODEL, weights, images).evaluation)
    (images / "empty").mkdir()
    with pytest.raises(DataError, match=r"images.empty .*\.png"):
        user_case(MODEL, weights, images)


def test_folders_without_an_output_are_listed(images: Path, weights: Path) -> None:
    with pytest.raises(DataError, match="'blue', 'green'"):
        user_case(MODEL, weights, images, classes="red,cyan,magenta")
    with pytest.raises(DataError, match=r"^2 class (?!.*classes=).*\b3 outputs"):
        user_case(MODEL, weights, images, classes="red,green")
    (images / "red" / "0.png").rename(images / "0.png")
    for path in (images / "red").iterdir():
        path.unlink()
    (images / "red").rmdir()
    with pytest.raises(DataError, match=r"\b2 class .*'blue', 'green'.*\b3 outputs\b.*classes="):
        user_case(MODEL, weights, images)


def test_imagenets_names_map_a_few_folders_to_its_thousand_outputs() -> None:
    names = categories("resnet50")
    mapping, classes = map_folders(["goldfish", "great_white_shark"], 1000, None, names)
    assert mapping == {"goldfish": 1, "great_white_shark": 2}
    assert classes == names
    with pytest.raises(DataError, match=r"\b2 class .*'goldfish', 'unicorn'.*\b1000 outputs\b.*classes="):
        map_folders(["goldfish", "unicorn"], 1000, None, names)
    with pytest.raises(DataError, match=r"'crane' .*\[0, 1\].*classes="):
        map_folders(["crane"], 2, [("crane",), ("crane",)])


def test_class_files_in_all_their_forms(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    for content, expected in (
        (["a", "b"], [("a",), ("b",)]),
        ({"1": "b", "0": "a"}, [("a",), ("b",)]),
        ({"b": 1, "a": 0}, [("a",), ("b",)]),
        ({"0": ["n01", "a"], "1": ["n02", "b"]}, [("n01", "a"), ("n02", "b")]),
    ):
        path.write_text(json.dumps(content))
        assert read_classes(path) == expected
    assert map_folders(["n02"], 2, read_classes(path)) == ({"n02": 1}, ("a", "b"))
    for bad in ("{", "3", '{"0": "a", "2": "b"}'):
        path.write_text(bad)
        with pytest.raises(DataError, match=r"classes\.json"):
            read_classes(path)
    with pytest.raises(DataError, match=r"\bclasses .*comma-separated"):
        read_classes("classes")


def test_preprocessing_is_that_of_the_chosen_weights() -> None:
    assert preset("resnet50").resize_size == [232]  # type: ignore[attr-defined]
    assert preset("resnet50", "IMAGENET1K_V1").resize_size == [256]  # type: ignore[attr-defined]


def test_classes_are_those_of_the_folders_however_few_images_are_taken(images: Path) -> None:
    case = user_case(MeanColour(), None, images, size=8, mean=0, std=1, limit=1)
    assert case.classes == ("blue", "green", "red")
    assert len(case.evaluation) == 1


def test_pictures_of_sixteen_bits_keep_their_values(images: Path) -> None:
    grey = (np.arange(1024).reshape(32, 32) * 64).astype(np.uint16)
    for path in images.rglob("*.png"):
        Image.fromarray(grey).save(path)
    case = user_case(MeanColour(), None, images, size=32, mean=0, std=1)
    pixels = case.evaluation.dataset[0][0]  # type: ignore[attr-defined]
    torch.testing.assert_close(pixels, torch.from_numpy(grey / 65535).float().expand(3, 32, 32), rtol=0, atol=1 / 255)
    for path in images.rglob("*.png"):
        Image.fromarray(grey.astype(np.float32)).save(path, "TIFF")
    with pytest.raises(DataError, match="32 bits"):
        user_case(MeanColour(), None, images, size=32, mean=0, std=1)


@pytest.mark.parametrize("name", ["images", "nope.xyz", "net.onnx.bak"])
def test_a_name_of_nothing_is_not_asked_for_its_weights(name: str, images: Path) -> None:
    with pytest.raises(QkitError, match=rf"torchvision .*classification.* {re.escape(repr(name))}"):
        user_case(name, None, images)


def test_data_that_are_a_file_and_a_tag_of_nothing_are_named(images: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"x\.npy .*package\.module:function"):
        user_case(MeanColour(), None, tmp_path / "x.npy", size=8, mean=0, std=1)
    with pytest.raises(QkitError, match="weights_tag"):
        user_case(MeanColour(), None, images, size=8, mean=0, std=1, weights_tag="IMAGENET1K_V1")


def _parts(case: Any) -> tuple[Any, Any]:
    return case.calibration, case.evaluation


def test_all_corrupt_images_are_listed_at_once_or_left_out_and_counted(images: Path, weights: Path) -> None:
    """One cut off in its middle, one that is no image; the rest is whole."""
    whole = sum(len(part.dataset) for part in _parts(user_case(MODEL, weights, images)))
    broken = sorted((images / "green").iterdir())[1], sorted((images / "blue").iterdir())[2]
    broken[0].write_bytes(broken[0].read_bytes()[:-40])
    broken[1].write_bytes(b"no image")
    case = user_case(MODEL, weights, images, skip_corrupt=True)
    assert sum(len(part.dataset) for part in _parts(case)) == whole - 2
    (remark,) = (remark for remark in case.remarks if "2" in remark)
    assert all(f"{path.parent.name}/{path.name}" in remark for path in broken)
    for _ in case.evaluation:
        pass
    for path in broken:
        path.write_bytes(b"")
    for path in (images / "red").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"\bred/.*skip_corrupt"):
        list(itertools.chain(*_parts(user_case(MODEL, weights, images))))
    for path in images.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"\.png"):
        user_case(MODEL, weights, images, skip_corrupt=True)
