"""Splits are disjoint, stratified and repeatable."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from qkit.errors import QkitError
from qkit.zoo import folders
from qkit.zoo.digits import digits, loader
from qkit.zoo.folders import find
from qkit.zoo.splits import stratified_order


@pytest.mark.parametrize("seed", [0, 7])
def test_every_stretch_of_the_order_is_stratified(seed: int) -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 10
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(100))
    for start in (0, 30, 60):
        counts = Counter(labels[i] for i in order[start : start + 20])
        assert abs(counts[0] - 12) <= 1
        assert abs(counts[1] - 6) <= 1
        assert abs(counts[2] - 2) <= 1


def test_the_order_depends_on_the_seed_alone() -> None:
    labels = [i % 3 for i in range(50)]
    assert stratified_order(labels, 1) == stratified_order(labels, 1)
    assert stratified_order(labels, 1) != stratified_order(labels, 2)


def test_digits_have_three_disjoint_splits_with_all_classes_in_proportion() -> None:
    splits = digits()
    parts = [splits.train, splits.calibration, splits.evaluation]
    assert [len(part) for part in parts] == [800, 256, 741]
    images = torch.cat([part.tensors[0] for part in parts])
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images) == 1797
    for part in parts:
        counts = torch.bincount(part.tensors[1], minlength=10)
        assert counts.min() >= len(part) // 10 - 3
        assert counts.max() <= len(part) // 10 + 3


def test_digits_are_scikit_learns():
    with np.load(find("digits.npz")) as held:
        images, labels = held["images"], held["labels"]
    theirs = load_digits()
    assert np.array_equal(images, theirs.images)
    assert np.array_equal(labels, theirs.target)


@pytest.mark.parametrize("damage", ["missing", "cut off", "text", "another array"])
def test_damaged_digits_are_named(tmp_path, monkeypatch, damage):
    file = tmp_path / "digits.npz"
    whole = find("digits.npz").read_bytes()
    if damage == "another array":
        np.savez(file, scans=np.zeros(3))
    elif damage != "missing":
        file.write_bytes(whole[:2000] if damage == "cut off" else b"no archive")
    monkeypatch.setattr(folders, "FOLDERS", (tmp_path,))
    with pytest.raises(QkitError, match=r"digits\.npz"):
        digits()


def test_digits_are_normalised_rgb_images() -> None:
    images, labels = digits().evaluation.tensors
    assert images.shape[1:] == (3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(images.mean().item()) < 0.1
    assert abs(images.std().item() - 1) < 0.2
    assert torch.equal(images[:, 0], images[:, 2])


def test_a_loader_repeats_itself_and_leaves_the_global_generator_alone() -> None:
    batches = loader(digits().calibration, batch_size=100)
    before = torch.get_rng_state()
    first, second = ([labels for _, labels in batches] for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert [len(labels) for labels in first] == [100, 100, 56]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
