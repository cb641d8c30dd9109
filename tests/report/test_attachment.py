"""What a vendor gets: the layer computed from the archive alone gives the codes in the archive."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from report_cases import image_batches, tiny_study
from torch.nn import functional as F

import qkit
from qkit.report import attach


@pytest.fixture(scope="module")
def study() -> qkit.Study:
    return tiny_study(scheme="int8-per-tensor")


@pytest.fixture(scope="module")
def archive(study: qkit.Study, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    path = attach(study, tmp_path_factory.mktemp("attached") / "layer.npz", layer="second", samples=3, progress=False)
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


def test_the_layer_computed_from_the_archive_gives_its_codes(archive: dict[str, np.ndarray]) -> None:
    """Plain int64 arithmetic: codes less zero points, the bias on their product's grid, one division at the end."""
    x = torch.from_numpy(archive["input0_codes"].astype(np.int64) - int(archive["input0_zero_point"]))
    w = torch.from_numpy(archive["weight_codes"].astype(np.int64))
    step = float(archive["input0_scale"]) * float(archive["weight_scale"])
    bias = torch.from_numpy(np.rint(archive["bias"] / step))
    sums = F.conv2d(x.double(), w.double(), bias.double(), padding=1).numpy()
    codes = np.rint(sums * step / float(archive["output_scale"])) + int(archive["output_zero_point"])
    codes = np.clip(
        codes, -128 if archive["output_codes"].dtype == np.int8 else 0, 127 if archive["output_codes"].dtype == np.int8 else 255
    )
    off = np.abs(codes - archive["output_codes"].astype(np.int64))
    assert off.max() <= 1
    assert (off > 0).mean() < 0.01


def test_grids_and_values_agree(archive: dict[str, np.ndarray]) -> None:
    for name in ("input0", "weight", "output"):
        codes = archive[f"{name}_codes"].astype(float) - archive[f"{name}_zero_point"]
        assert np.allclose(codes * archive[f"{name}_scale"], archive[name], atol=1e-6)
    assert len(archive["output"]) == len(archive["image0"]) == 3
    about = json.loads(str(archive["about"]))
    assert (about["layer"], about["operation"], about["lane"]) == ("second", "conv", "int8")


def test_images_are_those_of_the_data(study: qkit.Study, tmp_path: Path) -> None:
    coarse = study.with_plan(study.plan.with_range("first.0", 0.0, 0.05))
    with np.load(attach(coarse, tmp_path / "a.npz", samples=3, progress=False), allow_pickle=False) as found:
        archive = dict(found)
    images = torch.cat([x for x, _ in image_batches()]).numpy()
    assert np.array_equal(archive["image0"], images[:3])
    changed = coarse.evaluate(("float", "int8"), progress=False).flips("int8")
    assert len(changed) > 0
    assert list(archive["flip_sample"]) == list(changed.index[:16])
    assert np.array_equal(archive["flip_image0"], images[archive["flip_sample"]])
    assert list(archive["flip_lane"]) == list(changed["to"][:16])


@pytest.mark.parametrize("options", [{"samples": 0}, {"flips": -1}, {"layer": "nowhere"}])
def test_bad_options(study: qkit.Study, tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(qkit.QkitError):
        attach(study, tmp_path / "a.npz", progress=False, **options)


def test_suffix(study: qkit.Study, tmp_path: Path) -> None:
    with pytest.raises(qkit.QkitError, match="npz"):
        attach(study, tmp_path / "a.zip", progress=False)


def test_report_attaches_its_worst_layer(study: qkit.Study, tmp_path: Path) -> None:
    path = tmp_path / "worst.npz"
    report = study.report(tmp_path / "r.json", sensitivity=False, lint=False, worst=1, attachment=path, progress=False)
    with np.load(path, allow_pickle=False) as found:
        assert json.loads(str(found["about"]))["layer"] == report.worst[0]["tap"]
