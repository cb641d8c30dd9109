"""Vectors add up to the covariance of a drawn label, and draws are shared out as a search over all shares finds best."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from qkit.execution.directions import class_vectors, shared_out, square_vectors, uncertainty


def scores(classes: int) -> torch.Tensor:
    drawn = 3.0 * torch.randn(5, classes, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    drawn[0] *= 20  # one that is sure
    return drawn


def covariance(y: torch.Tensor) -> np.ndarray:
    p = np.exp(y.numpy() - y.numpy().max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return np.stack([np.diag(row) - np.outer(row, row) for row in p])


def summed(vectors: list[torch.Tensor]) -> np.ndarray:
    return sum(np.einsum("ni,nj->nij", v.numpy(), v.numpy()) for v in vectors)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_as_many_vectors_as_classes_leave_nothing_to_chance(classes: int) -> None:
    y = scores(classes)
    vectors = class_vectors(y, 50, torch.Generator())
    assert len(vectors) == classes - 1
    np.testing.assert_allclose(summed(vectors), covariance(y), atol=1e-12)


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_add_up_to_it_on_average(count: int) -> None:
    y = scores(6)
    generator = torch.Generator().manual_seed(0)
    draws = [class_vectors(y, count, generator) for _ in range(1500)]
    assert {len(vectors) for vectors in draws} == {count}
    np.testing.assert_allclose(np.mean([summed(vectors) for vectors in draws], 0), covariance(y), atol=0.015)


def test_dense_scores_have_a_label_at_every_position() -> None:
    y = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    flat = np.mean([summed([v.flatten(1) for v in class_vectors(y, 2, generator)]) for _ in range(1500)], 0)
    found = flat.reshape(2, 3, 4, 3, 4)
    for n, at in product(range(2), range(4)):
        exact = covariance(y[n].reshape(3, 4)[:, at][None])[0] / 4
        np.testing.assert_allclose(found[n, :, at, :, at], exact, atol=0.01)
    np.testing.assert_allclose(found[:, :, 0, :, 1], 0.0, atol=0.01)


def test_square_vectors_add_up_to_the_mean_square_over_the_variance() -> None:
    y = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    found = np.mean([summed(square_vectors(y, 2, generator)) for _ in range(1500)], 0)
    np.testing.assert_allclose(found, np.broadcast_to(np.eye(5) / 5 / y.numpy().var(), found.shape), atol=0.02)


def test_uncertainty_is_the_chance_that_two_labels_differ() -> None:
    y = scores(4)
    np.testing.assert_allclose(uncertainty(y), np.trace(covariance(y), axis1=1, axis2=2), atol=1e-12)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [9.0, 1.0, 0.0], [1.0, 4.0, 2.0], [0.0, 0.0, 0.0], [5.0]])
def test_draws_are_shared_out_for_the_least_variance(weights: list[float]) -> None:
    def variance(draws: tuple[int, ...]) -> float:
        return sum(w * w / d for w, d in zip(weights, draws, strict=True))

    total = 3 * len(weights)
    shares = [d for d in product(range(1, total + 1), repeat=len(weights)) if sum(d) == total]
    found = shared_out(weights, 3)
    assert sum(found) == total
    assert min(found) >= 1
    assert variance(tuple(found)) == pytest.approx(min(map(variance, shares)))
