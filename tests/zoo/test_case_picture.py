"""The picture of a case's images: as they are after the preprocessing, with classes and the range of values."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from qkit.errors import DataError
from qkit.execution.scores import Scores
from qkit.execution.statistics import Samples
from qkit.zoo import Case


def case(images: torch.Tensor) -> Case:
    labels = torch.arange(len(images)) % 2
    data = [(images, labels)] if len(images) else []
    return Case("toy", nn.Identity(), data, data, None, ("cat", "dog"), "")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_with_their_classes_on_one_scale(channels: int) -> None:
    images = torch.linspace(-1.0, 3.0, 3 * channels * 4).reshape(3, channels, 2, 2)
    figure = case(images).plot(3).figure
    assert [ax.get_title() for ax in figure.axes] == ["cat", "dog", "cat"]
    assert re.findall(r"\S+ \(\w+\)", figure.get_supxlabel()) == ["-1.00 (black)", "3.00 (white)"]
    first = np.asarray(figure.axes[0].images[0].get_array())
    assert first.min() == 0.0
    if channels >= 3:
        torch.testing.assert_close(torch.from_numpy(first), ((images[0, :3] + 1) / 4).movedim(0, -1).double())


def test_without_images_it_says_so() -> None:
    with pytest.raises(DataError, match="evaluation"):
        case(torch.zeros(0, 3, 2, 2)).plot()


def scored(chosen: list[int], labels: list[int]) -> Scores:
    samples = Samples(
        np.equal(chosen, labels).astype(float),
        np.zeros(len(labels)),
        np.ones(len(labels)),
        np.asarray(chosen),
        np.asarray(labels),
    )
    return Scores("top1", {"int8": samples.values}, {"int8": samples})


def test_what_lanes_answer_stands_below_each_image_and_a_wrong_answer_is_marked_by_more_than_its_colour() -> None:
    scores = scored([0, 0, 0, 1], [0, 1, 0, 1])
    picture = case(torch.zeros(4, 1, 2, 2)).plot(3, scores=scores)
    said = [ax.texts[0] for ax in picture.figure.axes]
    assert [re.findall(r"cat|dog", each.get_text()) for each in said] == [["cat"]] * 3
    assert [each.get_fontweight() == "bold" for each in said] == [False, True, False]
    assert "✗" in said[1].get_text()
    assert re.search(r"int8 .*cat, cat, cat", repr(picture))


def test_answers_to_other_images_are_an_error() -> None:
    with pytest.raises(DataError, match="labels"):
        case(torch.zeros(2, 1, 2, 2)).plot(scores=scored([1, 1], [1, 1]))
    with pytest.raises(DataError, match="top1"):
        case(torch.zeros(2, 1, 2, 2)).plot(scores=Scores("psnr", {}, {"int8": Samples(np.zeros(2))}))
