"""The number of images in a batch changes nothing: graphs made at one size give at another what the network gives there."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import Parts
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.errors import DataError
from qkit.execution.lanes import Lane, run_lanes
from qkit.graph import Graph, build, deviation

SHAPE = (3, 8)


def floats(graph: Graph, *x: Tensor) -> Tensor:
    result: Tensor = run_lanes(graph, [Lane("float")], x)["float"]
    return result


def assert_same(model: nn.Module, graph: Graph, *x: Tensor) -> None:
    with torch.no_grad():
        wanted = model(*x)
    got = floats(graph, *x)
    assert got.shape == wanted.shape
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def merged_heads(n: Any, x: Tensor) -> Tensor:
    y = x.view(x.shape[0] * 3, 2, 4).transpose(1, 2).reshape(x.shape[0] * 6, 4)
    return y.softmax(-1).view(x.size(0), 3, 8)


def products(n: Any, x: Tensor) -> Tensor:
    y = x.reshape(len(x) * 2, 3, 4)
    return torch.bmm(y, y.transpose(1, 2)).reshape(len(x), 2, 9)


def windows(n: Any, x: Tensor) -> Tensor:
    y = x.view(len(x), 1, 3, 2, 4).permute(0, 3, 1, 2, 4).reshape(len(x) * 2, 3, 4).softmax(-1)
    return y.view(len(x), 2, 1, 3, 4).permute(0, 2, 3, 1, 4).reshape(len(x), 3, 8)


def class_token(n: Any, x: Tensor) -> Tensor:
    return torch.cat([n.token.expand(x.shape[0], -1, -1), x, n.token.repeat(len(x), 1, 1)], 1)


OPEN: dict[str, tuple[Callable[..., Tensor], Callable[[], dict[str, Any]]]] = {
    "class token": (class_token, lambda: {"token": torch.randn(1, 1, 8)}),
    "zeros, ones, full": (
        lambda n, x: torch.cat([torch.zeros(len(x), 1, 8), x, torch.full((x.size(0), 1, 8), 0.5), x.new_ones(len(x), 1, 8)], 1),
        dict,
    ),
    "heads merged with the batch": (merged_heads, dict),
    "products of merged": (products, dict),
    "windows": (windows, dict),
    "numbers of the batch": (lambda n, x: x + torch.arange(x.shape[0]).view(-1, 1, 1), dict),
    "rows picked": (lambda n, x: x[torch.arange(len(x)), x[:, :, 0].argmax(1)], dict),
    "divided by the batch": (lambda n, x: x.sum(0, keepdim=True) / len(x) + x / x.shape[0], dict),
    "less the mean image": (lambda n, x: x - x.mean(0, keepdim=True) - x[-1:], dict),
    "a stack": (lambda n, x: torch.stack([x, x * 2]).view(2, -1, 3, 8).mean(0), dict),
    "flipped and rolled": (lambda n, x: x.flip(0) + x.roll(1, 0), dict),
    "as a matrix": (lambda n, x: torch.tril(torch.ones(len(x), len(x))) @ x.flatten(1) + torch.eye(len(x)) @ x.flatten(1), dict),
    "batch behind": (lambda n, x: (x.transpose(0, 1).reshape(3, -1) * 2).view(3, -1, 8).transpose(0, 1), dict),
    "position embedding": (lambda n, x: x + n.place, lambda: {"place": torch.randn(1, 3, 8)}),
    "recurrent": (lambda n, x: n.r(x)[0], lambda: {"r": nn.LSTM(8, 4, batch_first=True)}),
    "recurrent, its start given": (
        lambda n, x: n.r(x, torch.zeros(1, len(x), 4))[0], lambda: {"r": nn.GRU(8, 4, batch_first=True)},
    ),
    "101 channels": (lambda n, x: n.l(x).view(len(x), 101, 3).sum(2), lambda: {"l": nn.Linear(8, 101)}),
    "202 channels": (
        lambda n, x: n.m(n.l(x).view(len(x), 3, 2, 101).flatten(2)), lambda: {"l": nn.Linear(8, 202), "m": nn.Linear(202, 4)},
    ),
    "101 as a number": (lambda n, x: x * 101 + 202 + F.interpolate(x, size=101).mean(-1, keepdim=True), dict),
    "every prime as a number": (lambda n, x: x.repeat(1, 1, 101)[..., : 103 * 7].mean(-1) * 109 * 107, dict),
}  # fmt: skip


@pytest.mark.parametrize("name", OPEN)
def test_another_batch(name: str) -> None:
    function, parts = OPEN[name]
    model = Parts(function, **parts()).eval()
    graph = build(model, torch.randn(5, *SHAPE))
    assert graph.fixed_batch is None
    assert graph.deviation < 1e-5
    for batch in (1, 3, 7):
        assert_same(model, graph, torch.randn(batch, *SHAPE))


@pytest.mark.parametrize("batch", [1, 2, 101, 202])
@pytest.mark.parametrize("name", ["class token", "heads merged with the batch", "202 channels", "101 as a number"])
def test_any_batch_as_example(name: str, batch: int) -> None:
    function, parts = OPEN[name]
    model = Parts(function, **parts()).eval()
    graph = build(model, torch.randn(batch, *SHAPE))
    assert graph.fixed_batch is None
    for other in (batch, 1, 3):
        assert_same(model, graph, torch.randn(other, *SHAPE))


def a_loop(n: Any, x: Tensor) -> Tensor:
    return torch.stack([x[i] * (1 + i) for i in range(len(x))])


BAKED: dict[str, Callable[..., Tensor]] = {
    "a parameter for each image": lambda n, x: x + n.each,
    "a shape": lambda n, x: x.view(5, -1) * 1.0,
    "a branch": lambda n, x: x * 2 if x.shape[0] == 5 else x * 3,
    "a number of it": lambda n, x: x * (x.shape[0] + 1),
    "a root of it": lambda n, x: x * x.shape[0] ** -0.5,
    "a loop": a_loop,
}


@pytest.mark.parametrize("name", BAKED)
def test_a_network_with_its_batch_baked_in_is_told(name: str) -> None:
    model = Parts(BAKED[name], each=torch.randn(5, 3, 8)).eval()
    graph = build(model, torch.randn(5, *SHAPE))
    assert graph.fixed_batch == 5
    assert any(re.search(r"\bbatch\b.*\b5\b", remark) for remark in graph.remarks)
    assert_same(model, graph, torch.randn(5, *SHAPE))
    for batch in (1, 3, 7):
        with pytest.raises(DataError, match=rf"^Parts .*\b5\b.*\({batch}, 3, 8\)"):
            floats(graph, torch.randn(batch, *SHAPE))


def test_a_baked_batch_of_101_is_told() -> None:
    model = Parts(lambda n, x: x + n.each, each=torch.randn(101, 3, 8)).eval()
    graph = build(model, torch.randn(101, *SHAPE))
    assert graph.fixed_batch == 101
    with pytest.raises(DataError):
        floats(graph, torch.randn(3, *SHAPE))


def pair(n: Any, a: Tensor, b: Tensor) -> Tensor:
    return a.mean((1, 2))[:, None] * b.view(len(a), -1)


TWO: dict[str, tuple[Callable[..., Tensor], Callable[[int], tuple[Tensor, Tensor]]]] = {
    "a matrix beside": (lambda n, a, b: a @ b, lambda n: (torch.randn(n, 3, 8), torch.randn(8, 5))),
    "integers beside": (
        lambda n, a, b: a[torch.arange(len(a)), b], lambda n: (torch.randn(n, 3, 8), torch.randint(0, 3, (n,))),
    ),
    "integers first": (
        lambda n, a, b: F.one_hot(a, 5).float() + b, lambda n: (torch.randint(0, 5, (n,)), torch.randn(n, 5)),
    ),
    "boxes": (
        lambda n, a, b: a[b[:, 0].long()] * b[:, 1:2, None],
        lambda n: (torch.randn(n, 3, 8), torch.cat([torch.arange(6.0)[:, None] % n, torch.rand(6, 2)], 1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TWO)
def test_two_inputs(name: str) -> None:
    function, inputs = TWO[name]
    model = Parts(function).eval()
    graph = build(model, inputs(5))
    assert graph.fixed_batch is None
    for batch in (5, 1, 3):
        assert_same(model, graph, *inputs(batch))


def test_two_inputs_of_other_lengths_stay_at_theirs() -> None:
    model = Parts(pair).eval()
    for batch in (1, 2):
        given = torch.randn(batch, 3, 8), torch.randn(4 * batch, 2)
        graph = build(model, given)
        assert graph.fixed_batch == batch
        assert_same(model, graph, *given)
        with pytest.raises(DataError):
            floats(graph, torch.randn(3, 3, 8), torch.randn(12, 2))


def test_tokens_as_only_input() -> None:
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 4)).eval()
    graph = build(model, torch.randint(0, 11, (2, 6)))
    for batch in (1, 3):
        assert_same(model, graph, torch.randint(0, 11, (batch, 6)))


def test_other_shapes_are_no_small_deviation() -> None:
    assert deviation(torch.ones(1, 1), torch.ones(1, 7)) == float("inf")


def test_a_trace_that_fails_is_not_logged(capfd: pytest.CaptureFixture[str]) -> None:
    model = Parts(lambda n, x: x + n.each, each=torch.randn(5, 3, 8)).eval()
    build(model, torch.randn(5, *SHAPE))
    assert "failed while attempting" not in capfd.readouterr().err
