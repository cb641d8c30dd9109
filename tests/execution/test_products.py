"""Integer products: exact against int64 and float64 arithmetic, on layers of every kind and, on a GPU, of whole networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from qkit.execution.products import digits, integer_product, on_integers, product
from qkit.graph import Graph, build
from qkit.graph.operation import Operation
from qkit.graph.running import execution
from qkit.quant.grids import QuantSpec, as_integers
from qkit.vision import load_torchvision
from qkit.zoo import models as bundled

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here")
_LIMIT = 1 << 24


class Layers(nn.Module):
    """One layer of each kind that adds up products."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(6, 12, 3, padding=1)
        self.strided = nn.Conv2d(12, 16, 3, stride=2, padding=1, bias=False)
        self.dilated = nn.Conv2d(16, 16, 3, dilation=2, padding=2)
        self.grouped = nn.Conv2d(16, 24, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(24, 24, 5, padding=2, groups=24)
        self.pointwise = nn.Conv2d(24, 20, 1)
        self.pointwise_strided = nn.Conv2d(20, 20, 1, stride=2)
        self.padded = nn.Conv2d(20, 20, 1, padding=1)
        self.transposed = nn.ConvTranspose2d(20, 12, 3, stride=2, padding=1)
        self.transposed_grouped = nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4)
        self.classify = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self.children())[:-1]:
            x = layer(x)
        return self.classify(x.mean((2, 3)))


def weighted(graph: Graph) -> Iterator[tuple[Operation, Tensor]]:
    """Operations that multiply by a weight, with its codes to 8 bits."""
    for op in graph.operations:
        if op.weight is not None and op.kind in {"conv", "conv-transpose", "linear"}:
            weight = graph.weights[op.weight]
            rows = weight.movedim(op.weight_axis or 0, 0).flatten(1)
            params = QuantSpec(8, symmetric=True, per_channel=True).params(rows.amin(1), rows.amax(1), axis=op.weight_axis)
            yield op, as_integers(weight, params).clamp(-127, 127)


def wrong_sums(op: Operation, weight: Tensor, x: Tensor) -> int:
    """How many sums differ from those of float64 arithmetic, which is exact far beyond, rounded to float32 once."""
    parts = digits(weight, op.weight_axis, 255)
    assert parts is not None
    with execution(x.device):
        found = integer_product(op, x, parts)
        exact = op.call(x[:2].double(), weight.double(), None)
    return int((found[:2] != exact.float()).sum())


def inputs_of(model: nn.Module, graph: Graph, x: Tensor, paths: list[str]) -> dict[str, torch.Size]:
    """Shapes that the layers read."""
    found: dict[str, torch.Size] = {}
    handles = [
        model.get_submodule(path).register_forward_hook(lambda _m, args, _y, path=path: found.update({path: args[0].shape}))
        for path in paths
    ]
    with torch.inference_mode():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def check(model: nn.Module, x: Tensor) -> None:
    model = model.eval().to(x.device)
    graph = build(model, x)
    layers = [(op, weight) for op, weight in weighted(graph) if op.layer and hasattr(model.get_submodule(op.layer), "weight")]
    shapes = inputs_of(model, graph, x, [op.layer for op, _ in layers])
    assert layers
    draw = torch.Generator().manual_seed(0)
    tried = set()
    for op, weight in layers:
        key = shapes[op.layer], weight.shape, str(getattr(op.call, "settings", ""))
        if key in tried:
            continue
        tried.add(key)
        codes = torch.randint(0, 256, shapes[op.layer], generator=draw).float().to(x.device)
        if codes.ndim == 4:
            codes = codes.contiguous(memory_format=torch.channels_last)
        assert wrong_sums(op, weight, codes) == 0, op.name


def test_layers_of_every_kind() -> None:
    check(Layers(), torch.randn(4, 6, 17, 17, generator=torch.Generator().manual_seed(1)))


def test_pointwise_products_are_those_of_the_convolution() -> None:
    graph = build(Layers().eval(), torch.randn(2, 6, 17, 17))
    for name, size in (("pointwise", 24), ("pointwise_strided", 20), ("padded", 20)):
        op = graph.operation(name)
        weight = graph.weights[op.weight or ""]
        for x in (torch.randn(3, size, 9, 9), torch.randn(3, size, 1, 1)):
            for layout in (torch.contiguous_format, torch.channels_last):
                found = product(op, x.contiguous(memory_format=layout), weight)
                torch.testing.assert_close(found, op.call(x, weight, None), rtol=1e-5, atol=1e-6)


@given(st.integers(1, 40_000), st.integers(1, 255), st.integers(0, 2**32 - 1))
def test_digits_are_the_weight_and_stay_below(terms: int, reach: int, seed: int) -> None:
    weight = torch.randint(-128, 128, (3, terms), generator=torch.Generator().manual_seed(seed)).float()
    parts = digits(weight, 0, reach)
    assert parts is not None
    total, base = parts[0], {1: 256, 2: 16, 4: 4}[len(parts)]
    for part in parts[1:]:
        total = base * total + part
        assert part.min() >= -base // 2
        assert part.max() < base // 2
    assert torch.equal(total, weight)
    assert all(float(part.abs().double().sum(1).max()) * reach < _LIMIT for part in parts)
    whole = float(weight.abs().double().sum(1).max()) * reach < _LIMIT
    assert (len(parts) == 1) == whole


def test_a_weight_that_reaches_too_far_is_not_taken() -> None:
    assert digits(torch.full((1, 70_000), 127.0), 0, 255) is None
    assert digits(torch.full((4, 5_000), 1.0), None, 255) is not None


@pytest.mark.parametrize(("terms", "count"), [(6000, 2), (25_000, 4)])
def test_sums_beyond_what_float32_holds_are_rounded_once(terms: int, count: int) -> None:
    op = build(nn.Sequential(nn.Linear(terms, 4)).eval(), torch.randn(2, terms)).operation("0")
    draw = torch.Generator().manual_seed(2)
    weight = torch.randint(60, 128, (4, terms), generator=draw).float()
    x = torch.randint(128, 256, (8, terms), generator=draw).float()
    exact = x.long() @ weight.long().T
    assert int(exact.min()) > _LIMIT
    parts = digits(weight, 0, 255)
    assert parts is not None
    assert len(parts) == count
    assert torch.equal(integer_product(op, x, parts), exact.float())


def test_only_integers_that_fit() -> None:
    op = build(Layers().eval(), torch.randn(2, 6, 17, 17)).operation("plain")
    wide, narrow = (QuantSpec(bits, symmetric=True).params(-1.0, 1.0) for bits in (16, 8))
    by_channel = QuantSpec(8, symmetric=True, per_channel=True).params(-torch.ones(12), torch.ones(12), axis=0)
    assert on_integers(op, narrow, by_channel)
    assert on_integers(op, narrow, narrow)
    pairs: list[tuple[Any, Any]] = [(wide, narrow), (narrow, wide), (None, narrow), (narrow, None), (by_channel, narrow)]
    for source, weight in pairs:
        assert not on_integers(op, source, weight)


@needs_cuda
@pytest.mark.parametrize("name", ["mobilenet_v2_lite", "resnet_small", "vgg_small", "inception_small"])
def test_bundled_networks_on_tensor_cores(name: str) -> None:
    check(getattr(bundled, name)(), torch.randn(64, 3, 32, 32).cuda())


@needs_cuda
@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", "mobilenet_v3_large", "resnet50", "resnext50_32x4d", "densenet121", "shufflenet_v2_x1_0", "googlenet",
     "inception_v3", "efficientnet_b0", "regnet_y_400mf", "squeezenet1_0", "mnasnet1_0", "vgg11_bn"],
)  # fmt: skip
def test_torchvision_networks_on_tensor_cores(name: str) -> None:
    torch.manual_seed(0)
    model = load_torchvision().models.get_model(name, weights=None)
    size = 299 if name == "inception_v3" else 224
    check(model, torch.randn(16, 3, size, size).cuda())


@needs_cuda
def test_no_setting_of_torch_is_left_changed() -> None:
    settings = torch.backends.cuda.matmul
    switch = "fp32_precision" if hasattr(settings, "fp32_precision") else "allow_tf32"
    before = torch.backends.cudnn.allow_tf32, getattr(settings, switch)
    check(Layers(), torch.randn(4, 6, 17, 17).cuda())
    assert (torch.backends.cudnn.allow_tf32, getattr(settings, switch)) == before
