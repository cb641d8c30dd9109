"""Names of operations are those of torch's operators, and the ways of writing one operation are one thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.graph import build, table
from qkit.graph.normal_form.purify import _without_writing, written_argument


class Net(nn.Module):
    """A forward function with a convolution."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.c = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Subclass(nn.Conv2d):
    """A convolution by another name."""


WAYS: dict[str, list[Callable[..., Tensor]]] = {
    "add": [
        lambda n, x: n.c(x) + n.c(x * 2), lambda n, x: torch.add(n.c(x), n.c(x * 2)), lambda n, x: n.c(x).add(n.c(x * 2)),
        lambda n, x: n.c(x).add_(n.c(x * 2)), lambda n, x: torch.ops.aten.add.Tensor(n.c(x), n.c(x * 2)),
    ],
    "mul": [
        lambda n, x: n.c(x) * n.c(x), lambda n, x: torch.multiply(n.c(x), n.c(x)), lambda n, x: n.c(x).mul_(n.c(x)),
    ],
    "activation": [
        lambda n, x: torch.tanh(n.c(x)), lambda n, x: n.c(x).tanh(), lambda n, x: n.c(x).tanh_(), lambda n, x: F.tanh(n.c(x)),
        lambda n, x: nn.Tanh()(n.c(x)), lambda n, x: torch.ops.aten.tanh.default(n.c(x)),
    ],
    "concat": [
        lambda n, x: torch.cat([n.c(x), n.c(x)], 1), lambda n, x: torch.concat([n.c(x), n.c(x)], 1),
        lambda n, x: torch.hstack([n.c(x), n.c(x)]),
    ],
    "pool": [lambda n, x: n.c(x).mean((2, 3)), lambda n, x: F.adaptive_avg_pool2d(n.c(x), 1), lambda n, x: F.avg_pool2d(n.c(x), 2)],
    "norm": [lambda n, x: F.layer_norm(n.c(x), (4, 4)), lambda n, x: F.group_norm(n.c(x), 2), lambda n, x: F.instance_norm(n.c(x))],
    "matmul": [lambda n, x: n.c(x) @ n.c(x), lambda n, x: torch.matmul(n.c(x), n.c(x))],
    "resize": [lambda n, x: F.interpolate(n.c(x), size=7, mode="bilinear")],
    "keep": [
        lambda n, x: n.c(x).flatten(1), lambda n, x: F.max_pool2d(n.c(x), 2), lambda n, x: n.c(x)[:, 1:],
        lambda n, x: n.c(x).amax((2, 3)), lambda n, x: F.interpolate(n.c(x), scale_factor=2.0), lambda n, x: F.pad(n.c(x), (1, 1)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", WAYS)
def test_ways_of_writing_one_operation(kind: str) -> None:
    for function in WAYS[kind]:
        model = Net(function).eval()
        graph = build(model, torch.randn(2, 4, 6, 6))
        assert graph.deviation < 1e-5
        assert graph.operations[-2].kind == kind


@pytest.mark.parametrize(
    "layer",
    [
        lambda n, x: n.c(x), lambda n, x: F.conv2d(x, n.c.weight, n.c.bias), lambda n, x: torch.conv2d(x, n.c.weight, n.c.bias),
        lambda n, x: torch.ops.aten.convolution.default(x, n.c.weight, n.c.bias, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
        lambda n, x: F.conv2d(x, n.c.weight, n.c.bias, padding="valid"),
    ],
)  # fmt: skip
def test_a_convolution_in_any_form(layer: Callable[..., Tensor]) -> None:
    graph = build(Net(layer).eval(), torch.randn(2, 4, 6, 6))
    assert [op.kind for op in graph.operations] == ["input", "conv", "output"]
    assert graph.operations[1].weight == "c.weight"


def test_a_subclass_is_its_base() -> None:
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
    graph = build(nn.Sequential(Subclass(4, 4, 3), norm, nn.ReLU()).eval(), torch.randn(2, 4, 6, 6))
    assert [op.kind for op in graph.operations] == ["input", "conv", "output"]
    assert table.module_operation(Subclass) == "conv2d"


@pytest.mark.parametrize(
    ("target", "position", "pure"),
    [
        (torch.ops.aten.add_.Tensor, 0, torch.ops.aten.add.Tensor),
        (torch.ops.aten.add.out, 2, torch.ops.aten.add.Tensor),
        (torch.ops.aten.clamp_.default, 0, torch.ops.aten.clamp.default),
        (torch.ops.aten.masked_fill_.Scalar, 0, torch.ops.aten.masked_fill.Scalar),
        (torch.ops.aten.index_put_.default, 0, torch.ops.aten.index_put.default),
        (torch.ops.aten.relu_.default, 0, torch.ops.aten.relu.default),
        (torch.ops.aten.dropout_.default, 0, torch.ops.aten.dropout.default),
        (torch.ops.aten.feature_dropout_.default, 0, torch.ops.aten.feature_dropout.default),
        (torch.ops.aten.scatter_.src, 0, torch.ops.aten.scatter.src),
    ],
)
def test_operators_that_write_have_one_that_does_not(target: Any, position: int, pure: Any) -> None:
    graph = torch.fx.Graph()
    names = [a.name for a in target._schema.arguments]
    places = {name: graph.placeholder(f"x_{name}") for name in names if name != "out"}
    if "out" in names:
        node = graph.call_function(target, tuple(places.values())[:2], {"out": (written := graph.placeholder("written"))})
    else:
        node = graph.call_function(target, tuple(places.values()))
        written = list(places.values())[position]
    assert written_argument(node) is written
    assert _without_writing(node) is pure
