"""Samples are found by their number in the data, and look as they did before they were normalized."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from qkit import DataError, QkitError, Study
from qkit.execution.pictures import Look, class_names, images_of, look_of

NAMES = ["plane", "boat", "cat", "dog", "frog"]


class Normalize:
    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.mean, self.std = mean, std


class Compose:
    def __init__(self, *transforms: Any) -> None:
        self.transforms = list(transforms)


class Photos(Dataset[tuple[torch.Tensor, int]]):
    """Pixels from 0 to 255, normalized where they are read; counts what was read."""

    classes = NAMES

    def __init__(self, count: int = 40) -> None:
        self.pixels = torch.randint(0, 256, (count, 3, 9, 9), generator=torch.Generator().manual_seed(0))
        self.transform = Compose(object(), Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
        if at >= len(self):
            raise IndexError
        self.read.append(at)
        mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)))
        return (self.pixels[at] / 255 - mean) / std, at % 5


def loader(data: Any, size: int = 8) -> DataLoader[Any]:
    return DataLoader(data, batch_size=size, generator=torch.Generator())


def test_pictures_are_the_pixels_again() -> None:
    photos = Photos()
    data = loader(Subset(photos, range(5, 40)))
    found = images_of(data, [30, 3, 3], look_of(data), progress=False)
    assert sorted(found) == [3, 30]
    for number, image in found.items():
        assert np.array_equal(image, photos.pixels[number + 5].permute(1, 2, 0).numpy())
    assert class_names(data) == tuple(NAMES)
    assert class_names(data, ["a", "b"]) == ("a", "b")
    assert class_names([photos[0]]) == ()


def test_no_more_is_read_than_up_to_the_last_one() -> None:
    photos = Photos()
    images_of(loader(photos), [9], Look(), progress=False)
    assert max(photos.read) == 15
    photos.read.clear()
    assert images_of(loader(photos), [], Look(), progress=False) == {}
    assert not photos.read


def test_a_number_beyond_the_data_is_an_error() -> None:
    with pytest.raises(DataError, match=r"\b40\b.*\b50\b"):
        images_of(loader(Photos()), [2, 50], Look(), progress=False)


def test_other_looks() -> None:
    sample = torch.tensor([[[-2.0, 0.0], [1.0, 2.0]]])
    assert Look().picture(sample)[..., 0].tolist() == [[0, 128], [191, 255]]  # type: ignore[index]
    # what was normalized in units of 255
    shown = Look((127.0,), (64.0,)).picture(sample)
    assert shown is not None
    assert shown[..., 1].tolist() == [[0, 127], [191, 255]]
    assert np.array_equal(Look().picture(torch.rand(9, 9, 3)).shape, (9, 9, 3))  # type: ignore[union-attr]
    assert max(Look().picture(torch.rand(3, 500, 300)).shape) <= 192  # type: ignore[union-attr]
    assert Look().picture(torch.rand(12)) is None
    for mean, std in ((0.5, None), (None, 0.5)):
        with pytest.raises(QkitError, match="together"):
            look_of([], mean, std)
    with pytest.raises(QkitError, match=r"\b2\b.*\b3\b"):
        look_of([], [0.5, 0.5], [1.0, 1.0]).picture(torch.rand(3, 4, 4))


def classifier() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
        with torch.no_grad():  # so that no class is always the greatest
            model[4].bias -= model(torch.stack([x for x, _ in Photos()])).mean(0)
        return model


@pytest.fixture(scope="module")
def study() -> Study:
    made = Study(classifier(), loader(Photos()), loader(Photos()), metric="top1", scheme="int8-per-tensor")
    made.calibrate(progress=False)
    return made.with_plan(made.plan.with_range("0", 0.0, 0.4))


def test_flips_have_the_images_and_names_of_their_samples(study: Study) -> None:
    found = study.flips("int8", images=3, progress=False)
    listed = study.evaluate(("float", "int8"), progress=False).flips("int8")
    assert len(found) == len(listed) > 3
    assert list(found.images) == list(listed.index[:3])
    photos = Photos()
    for number, image in found.images.items():
        assert np.array_equal(image, photos.pixels[number].permute(1, 2, 0).numpy())
    table = found.table()
    assert list(table["to"]) == [NAMES[c] for c in listed["to"]]
    assert list(table["label"]) == [NAMES[number % 5] for number in listed.index]
    assert json.loads(json.dumps(found.to_dict()))["classes"] == NAMES
    assert study.flips("int8", images=0, progress=False).images == {}


def test_the_page_shows_the_images(study: Study) -> None:
    found = study.flips("int8", images=3, progress=False)
    page = found._repr_html_()
    shown = [base64.b64decode(text) for text in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert len(shown) == 3
    for png, image in zip(shown, found.images.values(), strict=True):
        read = matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]
        assert np.array_equal((255 * read).round().astype(np.uint8), image)
    drawn = [ax.get_images()[0].get_array() for ax in found.plot().figure.axes if ax.get_images()]
    assert all(np.array_equal(a, b) for a, b in zip(drawn, found.images.values(), strict=True))


def test_names_cannot_break_the_page(study: Study) -> None:
    page = study.flips("int8", images=2, classes=["<script>"] * 5, progress=False)._repr_html_()
    assert "<script>" not in page


def test_what_is_no_image_and_what_has_no_classes() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    rows = [torch.randn(30, 6, generator=torch.Generator().manual_seed(0))]
    study = Study(Small().eval(), rows, rows, metric="agreement", scheme="int4-weights")
    found = study.flips(progress=False)
    assert found.images == {}
    assert "<table" in found._repr_html_()
    with pytest.raises(DataError, match="image"):
        found.plot()
    with pytest.raises(QkitError, match="flips of top1"):
        study.with_metric("closeness").flips(progress=False)
