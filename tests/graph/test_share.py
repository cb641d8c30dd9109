"""How much of a network is computed on integers, by multiply-accumulates that are counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import Parts
from torch import Tensor, nn
from torch.nn import functional as F

import qkit
from qkit.graph import Graph, build


class Inner(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.l = nn.Conv2d(4, 6, 3), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.c(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def made(function: Callable[..., Tensor], shape: tuple[int, ...], **parts: Any) -> Graph:
    return build(Parts(function, **parts).eval(), torch.randn(2, *shape))


def macs(graph: Graph) -> dict[str, int]:
    return {op.name: op.macs for op in graph.operations if op.macs}


IMAGE, TOKENS = (4, 8, 8), (5, 8)


def weight_of_the_image(n: Any, x: Tensor) -> Tensor:
    """A convolution for each image, as groups of one."""
    weights = n.l(x.mean((2, 3))).view(-1, 4, 3, 3)
    return F.conv2d(x.reshape(1, -1, 8, 8), weights, groups=len(x)).view(len(x), 6, 6, 6)


def windows(n: Any, x: Tensor) -> Tensor:
    """Four windows of an image as images of their own."""
    y = x.reshape(len(x), 4, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(len(x) * 4, 16, 4)
    return n.l(y)


def attention(n: Any, x: Tensor) -> Tensor:
    result: Tensor = n.a(x, x, x, need_weights=False)[0]
    return result


COUNTS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], Callable[[], dict[str, Any]], list[int], float]] = {
    "groups": (lambda n, x: n.c(x), IMAGE, lambda: {"c": nn.Conv2d(4, 6, 3, 2, groups=2)}, [6 * 9 * 18], 1.0),
    "transposed": (lambda n, x: n.c(x), IMAGE, lambda: {"c": nn.ConvTranspose2d(4, 6, 3, 2)}, [256 * 6 * 9], 1.0),
    "transposed, groups": (
        lambda n, x: n.c(x), IMAGE, lambda: {"c": nn.ConvTranspose2d(4, 6, 3, 2, groups=2)}, [256 * 3 * 9], 1.0,
    ),
    "tokens": (lambda n, x: n.l(x), TOKENS, lambda: {"l": nn.Linear(8, 3)}, [5 * 8 * 3], 1.0),
    "tokens first": (lambda n, x: n.l(x.transpose(0, 1)), TOKENS, lambda: {"l": nn.Linear(8, 3)}, [5 * 8 * 3], 1.0),
    "windows": (windows, IMAGE, lambda: {"l": nn.Linear(4, 3)}, [64 * 4 * 3], 1.0),
    "attention": (
        attention, TOKENS, lambda: {"a": nn.MultiheadAttention(8, 2, batch_first=True)},
        [5 * 8 * 24, 5 * 5 * 8, 5 * 5 * 8, 5 * 8 * 8], 1.0,
    ),
    "products": (lambda n, x: torch.bmm(x, x.mT), TOKENS, dict, [5 * 5 * 8], 1.0),
    "products and a sum": (lambda n, x: torch.baddbmm(x[..., :5], x, x.mT), TOKENS, dict, [5 * 5 * 8], 1.0),
    "einsum": (lambda n, x: torch.einsum("bic,bjc->bij", x, x * 2), TOKENS, dict, [5 * 5 * 8], 1.0),
    "einsum with dots": (lambda n, x: torch.einsum("...ic,...jc->...ij", x, x * 2), TOKENS, dict, [5 * 5 * 8], 1.0),
    "a matrix from the left": (lambda n, x: n.w @ x, TOKENS, lambda: {"w": torch.randn(7, 5)}, [7 * 5 * 8], 1.0),
    "weights of the image": (
        weight_of_the_image, IMAGE, lambda: {"l": nn.Linear(4, 216)}, [864, 36 * 216], 864 / (864 + 36 * 216),
    ),
    "two ways, two layers, in front of a linear one": (
        lambda n, x: n.h(n.r(x)[0]), TOKENS,
        lambda: {"r": nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True), "h": nn.Linear(12, 4)},
        [5 * 2 * 24 * (8 + 6 + 12 + 6), 5 * 12 * 4], 0.0,
    ),
    "projected": (
        lambda n, x: n.r(x)[0], TOKENS, lambda: {"r": nn.LSTM(8, 6, proj_size=3, batch_first=True)},
        [5 * (24 * 8 + 24 * 3 + 3 * 6)], 0.0,
    ),
    "gru": (lambda n, x: n.r(x)[0], TOKENS, lambda: {"r": nn.GRU(8, 6, batch_first=True)}, [5 * 18 * (8 + 6)], 0.0),
    "cell": (lambda n, x: n.r(x)[0], (8,), lambda: {"r": nn.LSTMCell(8, 6)}, [24 * (8 + 6)], 0.0),
    "bilinear": (lambda n, x: n.b(x, x), TOKENS, lambda: {"b": nn.Bilinear(8, 8, 3)}, [5 * 3 * 8 * 8], 0.0),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_multiply_accumulates(name: str) -> None:
    function, shape, parts, counts, share = COUNTS[name]
    graph = made(function, shape, **parts())
    assert list(macs(graph).values()) == counts
    assert graph.share.macs == pytest.approx(share)


def test_a_module_kept_out_counts_what_is_in_it() -> None:
    model = Parts(lambda n, x: n.d(n.a(x)), a=Inner(), d=nn.Conv2d(6, 2, 1)).eval()
    graph = build(model, torch.randn(2, *IMAGE), leaf_modules=["a"])
    assert macs(graph) == {"a": 36 * 6 * 36 + 36 * 6 * 6, "d": 36 * 2 * 6}
    assert graph.share.macs == 0.0  # the convolution behind it reads a float tensor


def test_without_products_the_elements_tell() -> None:
    assert made(lambda n, x: torch.relu(x), TOKENS).share.macs == 1.0
    assert made(lambda n, x: torch.special.bessel_j0(x), TOKENS).share.macs == 0.0
    half = made(lambda n, x: torch.relu(torch.special.bessel_j0(x)), TOKENS).share
    assert (half.macs, half.elements) == (0.5, 0.5)


def test_complex_numbers_are_float_operations() -> None:
    model = Parts(lambda n, x: n.l(torch.fft.rfft(x).abs()), l=nn.Linear(5, 3)).eval()
    x = torch.randn(4, *TOKENS)
    study = qkit.Study(model, calibration=[x], evaluation=[x], scheme="int8")
    (op,) = (s for s in study.graph.operations if s.kind == "float")
    assert op.name in study.graph.notes
    assert study.graph.share.elements < 1.0
    study.capture().table()
    study.diagnose()


@pytest.mark.parametrize("last", [False, True])
def test_bytes_of_an_image_are_integers(last: bool) -> None:
    model = Parts(lambda n, x: n.c((x.permute(0, 3, 1, 2) if last else x).float()), c=nn.Conv2d(4, 3, 3)).eval()
    shape = (2, 8, 8, 4) if last else (2, *IMAGE)
    study = qkit.Study(model, [torch.randint(0, 256, shape, dtype=torch.uint8)])
    assert study.graph.share.macs == 1.0
    study.calibrate("minmax", progress=False)
    grid = study.plan.grids[study.graph.taps[0]].params
    assert 0.9 < float(grid.scale) <= 1.0, "256 codes for 256 numbers"
