"""Operations written out by hand become the one that engines have, near misses stay, and numbers are eager torch's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import Parts
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.execution.lanes import Lane, run_lanes
from qkit.graph import Graph, build
from qkit.graph.normal_form.patterns import attention_weights


def checked(function: Callable[[Any, Tensor], Tensor], shape: tuple[int, ...], tolerance: float = 1e-6, **parts: Any) -> Graph:
    """The graph, which gives what the network gives, at another batch and with values three times as large."""
    model = Parts(function, **parts).eval()
    graph = build(model, torch.randn(2, *shape))
    x = 3 * torch.randn(3, *shape)
    with torch.no_grad():
        wanted = model(x)
    got = run_lanes(graph, [Lane("float")], (x,))["float"]
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) <= tolerance * float(wanted.abs().max())
    return graph


def operations(graph: Graph) -> list[str]:
    """What the steps between input and output do, without what only moves elements."""
    return [s.name.rsplit(":", 1)[-1].split("#")[0] for s in graph.operations[1:-1] if s.kind not in {"keep", "meta", "constant"}]


ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "y * relu6(y + 3) / 6": ("hardswish", lambda y: y * F.relu6(y + 3) / 6),
    "y * (relu6(y + 3) / 6)": ("hardswish", lambda y: y * (F.relu6(y + 3) / 6)),
    "relu6(3 + y) * y * (1 / 6)": ("hardswish", lambda y: F.relu6(3 + y) * y * (1 / 6)),
    "clamp": ("hardswish", lambda y: y * torch.clamp(3 + y, 0, 6).mul(1 / 6)),
    "clamp twice": ("hardswish", lambda y: y * torch.clamp_min(torch.clamp_max(y + 3, 6), 0) / 6),
    "hardsigmoid": ("hardswish", lambda y: y * F.hardsigmoid(y)),
    "hardtanh": ("hardswish", lambda y: F.hardtanh(y / 6 + 0.5, 0, 1) * y),
    "in place": ("hardswish", lambda y: y.mul(F.relu6(y.add(3.0), inplace=True).div_(6.0))),
    "relu6(y + 3) / 6": ("hardsigmoid", lambda y: F.relu6(y + 3) / 6),
    "clamp(y / 6 + .5)": ("hardsigmoid", lambda y: (y / 6 + 0.5).clamp(0, 1)),
    "y * sigmoid(y)": ("silu", lambda y: y * torch.sigmoid(y)),
    "y / (1 + exp(-y))": ("silu", lambda y: y / (1 + torch.exp(-y))),
    "1 / (1 + exp(-y))": ("sigmoid", lambda y: 1 / (1 + torch.exp(-y))),
    "erf": ("gelu", lambda y: 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))),
    "erf, other order": ("gelu", lambda y: y * 0.5 * (torch.erf(y * 0.7071067811865476) + 1)),
    "tanh": ("gelu", lambda y: 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))),
    "tanh, multiplied out": ("gelu", lambda y: 0.5 * y * (1 + torch.tanh(0.79788456 * y * (1 + 0.044715 * y * y)))),
    "y * sigmoid(1.702 y)": ("quick_gelu", lambda y: y * torch.sigmoid(1.702 * y)),
    "y * tanh(softplus(y))": ("mish", lambda y: y * torch.tanh(F.softplus(y))),
    "y * tanh(log1p(exp(y)))": ("mish", lambda y: y * torch.tanh(torch.log1p(torch.exp(y)))),
    "where": ("leaky_relu", lambda y: torch.where(y > 0, y, 0.1 * y)),
    "the greater of y and a tenth": ("leaky_relu", lambda y: torch.maximum(y, 0.1 * y)),
    "parts by sign": ("leaky_relu", lambda y: F.relu(y) - 0.25 * F.relu(-y)),
    "e^y over its sum": ("softmax", lambda y: torch.exp(y) / torch.exp(y).sum(-1, keepdim=True)),
    "e^y over its sum, shifted": ("softmax", lambda y: (e := torch.exp(y - y.amax(1, keepdim=True))) / e.sum(1, keepdim=True)),
    "e^y over its sum, shifted by max": ("softmax", lambda y: (e := (y - y.max(1, True)[0]).exp()) / e.sum(1, keepdim=True)),
    "e^y over another sum": ("exp sum div", lambda y: (e := torch.exp(y)) / e.sum((1, 2), keepdim=True)),
    "SiLU and more": ("silu add", lambda y: y * torch.sigmoid(y) + 1e-3),
    "twice SiLU": ("silu mul", lambda y: y * torch.sigmoid(y) * 2),
}


def convolution() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 3)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_hand(name: str) -> None:
    what, function = ACTIVATIONS[name]
    graph = checked(lambda n, x: function(n.c(x)), (4, 6, 6), c=convolution())
    assert operations(graph) == ["c", *what.split()]


CLAMPS: dict[str, tuple[tuple[float, float], Callable[[Tensor], Tensor]]] = {
    "half of y + |y|": ((0.0, math.inf), lambda y: (y + y.abs()) / 2),
    "clamp": ((0.0, 6.0), lambda y: y.clamp(0, 6)),
    "minimum of relu": ((0.0, 6.0), lambda y: torch.minimum(torch.relu(y), torch.tensor(6.0))),
    "maximum": ((0.0, math.inf), lambda y: torch.maximum(y, torch.zeros_like(y))),
    "max with a number": ((0.0, math.inf), lambda y: torch.max(torch.tensor(0.0), y)),
    "where": ((0.0, math.inf), lambda y: torch.where(y > 0, y, 0.0)),
    "a mask": ((0.0, math.inf), lambda y: y * (y > 0)),
    "maximum of minimum": ((-1.0, 4.0), lambda y: torch.maximum(torch.minimum(y, torch.full_like(y, 4.0)), -torch.ones(1))),
    "clamp to 5": ((0.0, 5.0), lambda y: y.clamp(0, 5)),
}


@pytest.mark.parametrize("name", CLAMPS)
def test_clamps_by_hand_are_in_the_layer(name: str) -> None:
    bounds, function = CLAMPS[name]
    graph = checked(lambda n, x: function(n.c(x)), (4, 6, 6), c=convolution())
    assert operations(graph) == ["c"]
    assert graph.operation("c").act == bounds


NEAR_MISSES: dict[str, Callable[[Tensor], Tensor]] = {
    "y * sigmoid(1.5 y)": lambda y: y * torch.sigmoid(1.5 * y),
    "y * relu6(y + 3) / 5": lambda y: y * F.relu6(y + 3) / 5,
    "y * relu6(y + 2) / 6": lambda y: y * F.relu6(y + 2) / 6,
    "sigmoid of something else": lambda y: y * torch.sigmoid(y + 1),
    "its own sigmoid, read again": lambda y: y * (s := torch.sigmoid(y)) + s,
    "tanh with another number": lambda y: 0.5 * y * (1 + torch.tanh(0.79788456 * (y + 0.05 * y**3))),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay_as_they_are(name: str) -> None:
    function = NEAR_MISSES[name]
    graph = checked(lambda n, x: function(n.c(x)), (4, 6, 6), c=convolution())
    known = {"hardswish", "hardsigmoid", "silu", "gelu", "quick_gelu", "mish"}
    assert not known & set(operations(graph))


def test_a_clamp_beyond_all_usual_values_is_no_relu() -> None:
    graph = checked(lambda n, x: torch.relu(n.c(x)).clamp(max=900.0), (4, 6, 6), c=convolution())
    x = torch.full((1, 4, 6, 6), 1e5)
    result = run_lanes(graph, [Lane("float")], (x,))["float"]
    assert float(result.max()) <= 900.0


def by_hand(x: Tensor, dims: Any, eps: float = 1e-5) -> Tensor:
    return (x - x.mean(dims, keepdim=True)) / torch.sqrt(x.var(dims, unbiased=False, keepdim=True) + eps)


def convnext(n: Any, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    spread = (x - mean).pow(2).mean(1, keepdim=True)
    return n.w[:, None, None] * ((x - mean) / torch.sqrt(spread + 1e-6)) + n.b[:, None, None]


def response_of_timm(n: Any, x: Tensor) -> Tensor:
    g = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x + torch.addcmul(n.b.view(1, -1, 1, 1), n.w.view(1, -1, 1, 1), x * (g / (g.mean(dim=1, keepdim=True) + 1e-6)))


def response_of_transformers(n: Any, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    g = torch.linalg.vector_norm(x, ord=2, dim=(1, 2), keepdim=True)
    return n.w.view(1, 1, 1, -1) * (x * (g / (g.mean(dim=-1, keepdim=True) + 1e-6))) + n.b.view(1, 1, 1, -1) + x


def again(n: Any, x: Tensor) -> Tensor:
    return (x - x.mean(-1, True)) * torch.rsqrt(((x - x.mean(-1, True)) ** 2).mean(-1, True) + 1e-5)


NORMS: dict[str, tuple[str, tuple[int, ...], Callable[[Any, Tensor], Tensor]]] = {
    "last axis": ("channel_norm", (5, 4), lambda n, x: by_hand(x, -1)),
    "two axes": ("channel_norm", (5, 4), lambda n, x: by_hand(x, (1, 2))),
    "with weight and bias": ("channel_norm", (5, 4), lambda n, x: by_hand(x, -1) * n.w + n.b),
    "weight first": ("channel_norm", (5, 4), lambda n, x: n.w * by_hand(x, (2,)) + n.b),
    "channels of an image": ("channel_norm", (4, 6, 6), convnext),
    "everything twice": ("channel_norm", (5, 4), again),
    "timm's response norm": ("response_norm", (4, 6, 6), response_of_timm),
    "transformers' response norm": ("response_norm", (4, 6, 6), response_of_transformers),
    "normalize": ("normalize", (4, 6, 6), lambda n, x: F.normalize(x, dim=1)),
    "normalize, sum of magnitudes": ("normalize", (4, 6, 6), lambda n, x: F.normalize(x, p=1.0, dim=1)),
    "normalize over two axes": ("normalize", (4, 6, 6), lambda n, x: F.normalize(x, dim=(2, 3))),
    "by its norm": ("normalize", (5, 4), lambda n, x: x / x.norm(dim=-1, keepdim=True)),
    "by its norm and a number": ("normalize", (5, 4), lambda n, x: x / (x.norm(dim=-1, keepdim=True) + 0.5)),
    "by its norm, at least 2.5": ("normalize", (5, 4), lambda n, x: x / x.norm(dim=-1, keepdim=True).clamp(min=2.5)),
    "by its norm, within bounds": ("norm clamp div", (5, 4), lambda n, x: x / x.norm(dim=-1, keepdim=True).clamp(1.0, 2.5)),
    "deviation and a number": ("channel_norm", (5, 4), lambda n, x: (x - x.mean(-1, True)) / (x.std(-1, keepdim=True) + 1e-6) * n.w),
    "biased deviation and a number": (
        "channel_norm", (5, 4), lambda n, x: (x - x.mean(-1, True)) / (x.std(-1, unbiased=False, keepdim=True) + 0.3) + n.b,
    ),
    "root mean square": ("rms_norm", (5, 4), lambda n, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * n.w),
    "root mean square, divided": ("rms_norm", (5, 4), lambda n, x: n.w * (x / ((x * x).mean(-1, keepdim=True) + 1e-6).sqrt())),
    "root mean square, cast": (
        "rms_norm", (5, 4), lambda n, x: (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).type_as(x),
    ),
    "root mean square of something else": (
        "mul pow mean add rsqrt mul", (5, 4), lambda n, x: x * torch.rsqrt((2 * x).pow(2).mean(-1, keepdim=True) + 1e-6),
    ),
    "unbiased variance": (
        "mean sub var add sqrt div", (5, 4),
        lambda n, x: (x - x.mean(-1, True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5),
    ),
    "variance over other axes": (
        "mean sub var add sqrt div", (5, 4),
        lambda n, x: (x - x.mean(-1, True)) / torch.sqrt(x.var((1, 2), unbiased=False, keepdim=True) + 1e-5),
    ),
    "variance of something else": (
        "mean sub mul var add sqrt div", (5, 4),
        lambda n, x: (x - x.mean(-1, True)) / torch.sqrt((2 * x).var(-1, unbiased=False, keepdim=True) + 1e-5),
    ),
    "half of the mean": (
        "mean sub var add sqrt div", (5, 4),
        lambda n, x: torch.sub(x, x.mean(-1, True), alpha=0.5) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
def test_norms_by_hand(name: str) -> None:
    what, shape, function = NORMS[name]
    graph = checked(function, shape, w=torch.randn(4), b=torch.randn(4))
    assert operations(graph) == what.split()


def heads(x: Tensor) -> Tensor:
    return x.view(len(x), 5, 4, 2).transpose(1, 2)


def few_heads(x: Tensor) -> Tensor:
    return x[..., :4].reshape(len(x), 5, 2, 2).transpose(1, 2)


sdpa = F.scaled_dot_product_attention
ATTENTION: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any]]] = {
    "plain": (lambda n, x: sdpa(x, x * 0.5, x + 1), {}),
    "mask of numbers": (lambda n, x: sdpa(x, x * 0.5, x + 1, attn_mask=n.m), {"m": torch.randn(5, 5)}),
    "mask": (lambda n, x: sdpa(x, x * 0.5, x + 1, attn_mask=n.m), {"m": torch.ones(5, 5).triu(-1).bool()}),
    "mask with an empty row": (
        lambda n, x: sdpa(x, x * 0.5, x + 1, attn_mask=n.m), {"m": torch.tensor([[False] * 5] + [[True] * 5] * 4)},
    ),
    "mask of the values": (
        lambda n, x: sdpa(x, x * 0.5, x + 1, attn_mask=(x[..., :5] > -1) | n.m), {"m": torch.eye(5, dtype=torch.bool)},
    ),
    "causal, scaled": (lambda n, x: sdpa(x, x * 0.5, x + 1, is_causal=True, scale=0.3), {}),
    "causal, fewer queries": (lambda n, x: sdpa(x[:, :3], x * 0.5, x + 1, is_causal=True), {}),
    "groups of queries": (
        lambda n, x: sdpa(heads(x), few_heads(x), few_heads(x) * 2, enable_gqa=True, is_causal=True), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_two_products_and_a_softmax(name: str) -> None:
    function, parts = ATTENTION[name]
    graph = checked(function, (5, 8), 3e-6, **parts)
    assert operations(graph)[-3:] == ["matmul", "softmax", "matmul"]
    assert all(op.quantized or op.kind in {"keep", "meta", "output"} for op in graph.operations)


def multihead(**options: Any) -> Callable[[], nn.MultiheadAttention]:
    return lambda: nn.MultiheadAttention(8, 2, **options)


FIRST = multihead(batch_first=True)
MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor], int]] = {
    "self": (FIRST, lambda n, x: n.a(x, x, x, need_weights=False)[0], 2),
    "with weights": (FIRST, lambda n, x: n.a(x, x, x)[0], 2),
    "the weights": (FIRST, lambda n, x: n.a(x, x, x)[1], 1),
    "the weights of all heads": (FIRST, lambda n, x: n.a(x, x, x, average_attn_weights=False)[1], 1),
    "cross": (FIRST, lambda n, x: n.a(x[:, :2], x, x * 2, need_weights=False)[0], 4),
    "padding": (FIRST, lambda n, x: n.a(x, x, x, key_padding_mask=x[..., 0] > 2.0)[0], 2),
    "mask": (FIRST, lambda n, x: n.a(x, x, x, attn_mask=torch.ones(5, 5).triu(1).bool(), need_weights=False)[0], 2),
    "mask of numbers": (FIRST, lambda n, x: n.a(x, x, x, attn_mask=torch.arange(25.0).view(5, 5))[0], 2),
    "tokens first": (multihead(), lambda n, x: n.a(y := x.transpose(0, 1), y, y)[0].transpose(0, 1), 2),
    "more keys": (multihead(batch_first=True, add_bias_kv=True, add_zero_attn=True), lambda n, x: n.a(x, x, x)[0], 2),
    "other widths": (
        multihead(batch_first=True, kdim=3, vdim=5), lambda n, x: n.a(x, x[..., :3], x[..., :5], need_weights=False)[0], 4,
    ),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda n, x: n.a(x), 4),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_multihead_attention(name: str) -> None:
    make, function, layers = MODULES[name]
    graph = checked(function, (5, 8), 3e-6, a=make())
    kinds = [op.kind for op in graph.operations]
    assert kinds.count("linear") == layers
    assert kinds.count("matmul") == (1 if "the weights" in name else 2)
    assert "float" not in kinds
    assert graph.share.macs == 1.0


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_attention_weights_against_torch(kind: torch.dtype) -> None:
    scores = torch.randn(2, 4, 4, dtype=torch.float64)
    seen = torch.rand(4, 4) > 0.4
    seen[1] = False
    seen[:, 0] |= ~seen.any(1)
    seen[2] = False  # nothing to be seen
    mask = seen if kind == torch.bool else torch.zeros(4, 4).masked_fill(~seen, -math.inf)
    wanted = sdpa(scores, torch.eye(4, dtype=torch.float64).expand(2, 4, 4), torch.eye(4, dtype=torch.float64).expand(2, 4, 4),
                  attn_mask=seen, scale=0.7)  # fmt: skip
    torch.testing.assert_close(attention_weights(scores, mask, 0.7), wanted)


def einsum(equation: str) -> Callable[[Any, Tensor], Tensor]:
    return lambda n, x: torch.einsum(equation, x, n.w)


MATRIX, TURNED = (8, 3), (3, 8)
PRODUCTS: dict[str, tuple[str, tuple[int, ...], Callable[[Any, Tensor], Tensor]]] = {
    "x @ w": ("linear", MATRIX, lambda n, x: x @ n.w),
    "x @ w.t()": ("linear", TURNED, lambda n, x: x @ n.w.t()),
    "x @ w.T, bias": ("linear", TURNED, lambda n, x: x @ n.w.T + n.b),
    "x @ w.mT": ("linear", TURNED, lambda n, x: torch.matmul(x, n.w.mT)),
    "einsum": ("linear", MATRIX, einsum("btc,cd->btd")),
    "einsum, turned": ("linear", TURNED, einsum("...c,dc->...d")),
    "einsum, moved": ("matmul", TURNED, einsum("btc,dc->bdt")),
    "einsum over tokens": ("matmul", (5, 3), einsum("btc,td->bcd")),
    "a stack of one": ("matmul", (1, 8, 3), lambda n, x: x @ n.w),
    "from the left": ("matmul", (3, 5), lambda n, x: n.w @ x),
    "computed weight": ("linear", TURNED, lambda n, x: F.linear(x, n.w * 2 + n.w.mean(), n.b / 2)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_constants(name: str) -> None:
    kind, shape, function = PRODUCTS[name]
    graph = checked(function, (5, 8), w=torch.randn(*shape), b=torch.randn(3))
    assert [s.kind for s in graph.operations[1:-1] if s.kind not in {"constant", "keep"}] == [kind]
    assert graph.share.macs == 1.0
    assert sum(s.macs for s in graph.operations) == 5 * 8 * 3


QUOTIENTS: dict[str, tuple[str, Callable[[Any, Tensor], Tensor]]] = {
    "plus a little": ("square div", lambda n, x: x / (x.square() + 1e-6)),
    "at least a little": ("square div", lambda n, x: x / x.square().clamp(min=1e-4)),
    "part of a tensor": ("div", lambda n, x: x[..., :-1] / (x[..., -1:].expand(-1, -1, 7) + 1e-5)),
    "a number that counts": ("square add div", lambda n, x: x / (x.square() + 0.5)),
    "a difference": ("square sub div", lambda n, x: x / (x.square() - -1.0)),
}


@pytest.mark.parametrize("name", QUOTIENTS)
def test_what_keeps_a_divisor_from_zero_is_part_of_the_division(name: str) -> None:
    what, function = QUOTIENTS[name]
    assert operations(checked(function, (5, 8))) == what.split()


def test_a_division_by_a_constant_is_a_product() -> None:
    """On one grid with 1000, 0.001 would be zero, and what it divides no number."""
    divisor = torch.logspace(-3, 3, 40).view(5, 8)
    for function in (lambda n, x: x / n.c, lambda n, x: x / (n.c + 1e-8)):
        graph = checked(function, (5, 8), c=divisor)
        (constant,) = (op for op in graph.operations if op.kind == "constant")
        torch.testing.assert_close(constant.call(), 1 / divisor, rtol=2e-5, atol=0.0)
        assert all(op.divisor is None for op in graph.operations)


def standardized(n: Any, x: Tensor) -> Tensor:
    weight = F.batch_norm(n.w.reshape(1, 6, -1), None, None, training=True).reshape_as(n.w)
    return F.conv2d(x, weight, n.b, padding=1)


def branches(n: Any, x: Tensor) -> Tensor:
    return torch.relu(n.n1(n.c1(x)) + n.n2(n.c2(x)) + n.n3(x))


WEIGHTS: dict[str, tuple[list[str], Callable[[], dict[str, Any]], Callable[[Any, Tensor], Tensor]]] = {
    "standardized": ([":conv2d conv"], lambda: {"w": torch.randn(6, 4, 3, 3), "b": torch.randn(6)}, standardized),
    "normalized": (["c conv"], lambda: {"c": nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 6, 3))}, lambda n, x: n.c(x)),
    "branches": (
        ["c1 conv", "c2 conv", ":add add", "n3 batchnorm", ":add#2 add"],
        lambda: {
            "c1": nn.Conv2d(4, 4, 3, padding=1, bias=False), "c2": nn.Conv2d(4, 4, 1, bias=False),
            **{f"n{i}": nn.BatchNorm2d(4) for i in (1, 2, 3)},
        },
        branches,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_computed(name: str) -> None:
    operations, parts, function = WEIGHTS[name]
    graph = checked(function, (4, 6, 6), **parts())
    assert [f"{s.name} {s.kind}" for s in graph.operations[1:-1]] == operations
