"""Networks as people bring them: each becomes the graph that what it computes asks for, whatever its modules are called.

Small networks of one kind each, then a few families of torchvision and timm, and more of both where the slow tests run. The whole
list is ``python -m benchmarks.networks``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.networks.byhand import fold
from benchmarks.networks.catalogue import networks
from benchmarks.networks.forms import FORMS
from benchmarks.networks.measure import Row, codes_of, measure
from benchmarks.networks.report import DEVIATION, MACS
from benchmarks.networks.weights import noise, norms_of, settle
from qkit import Study, zoo
from qkit.graph import Graph, build, deviation, run_float

SHAPE = (3, 16, 16)


class Plain(nn.Module):
    """A stem, the part in question, and a classifier."""

    def __init__(self, part: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.part = part
        self.classify = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.part(F.relu(self.stem(x))).mean((2, 3)))


class OwnConvolution(nn.Conv2d):
    """A subclass that adds nothing."""


class SamePadding(nn.Conv2d):
    """Pads as TensorFlow does, then calls the function."""

    def forward(self, x: Tensor) -> Tensor:
        sides = []
        for size, kernel, stride in zip(reversed(x.shape[-2:]), reversed(self.kernel_size), reversed(self.stride), strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, sides), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardized(nn.Conv2d):
    """Its weight is standardized in every pass, as in networks without norms."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NormAndActivation(nn.BatchNorm2d):
    """As timm's: norm, dropout and activation in one module that calls the function."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps))


class Branches(nn.Module):
    """RepVGG's block: two convolutions with norms, and a norm of the input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.narrow = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.skip = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.wide(x) + self.narrow(x) + self.skip(x))


class BehindConcatenation(nn.Module):
    """A norm that no layer takes: two of them write what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))


class ReadTwice(nn.Module):
    """A convolution whose output is read beside its norm: folding would change what the other reader gets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(self.norm(y)) + y


class AsWrittenByHand(nn.Module):
    """Activations of which no module speaks: hard swish, SiLU, GELU, and a layer norm over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 1) for _ in range(3))
        self.gain, self.shift = nn.Parameter(torch.ones(8, 1, 1)), nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(x * F.relu6(x + 3) / 6)
        x = self.c(x * torch.sigmoid(x))
        x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-6) * self.gain + self.shift


class Attention(nn.Module):
    """Tokens of the image through `nn.MultiheadAttention`, with a position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.1 * torch.randn(1, 16, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 4)
        tokens = self.norm(x.flatten(2).transpose(1, 2) + self.positions)
        return (tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]).transpose(1, 2).reshape(x.shape)


class Gate(nn.Module):
    """Squeeze and excitation, with an argument that the batch leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return x * gate if mask is None else x * gate * mask


class TokenNorm(nn.Module):
    """A linear layer over tokens with a norm of one dimension behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.linear(x.mean((2, 3))))
        return x + F.relu(y)[:, :, None, None]


@dataclass(frozen=True)
class Small:
    """A small network: how to make the part in question, and how many of its norms stand as steps of their own."""

    name: str
    make: Callable[[], nn.Module]
    standing: int = 0


SMALL = [
    Small("subclass of a convolution", lambda: nn.Sequential(OwnConvolution(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())),
    Small("same padding", lambda: nn.Sequential(SamePadding(8, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU6())),
    Small("depthwise", lambda: nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), NormAndActivation(8))),
    Small("transposed", lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 2, stride=2), nn.BatchNorm2d(8), nn.ReLU())),
    Small("grouped transposed", lambda: nn.Sequential(nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2), nn.BatchNorm2d(8))),
    Small("linear and norm", TokenNorm),
    Small("standardized weight", lambda: nn.Sequential(Standardized(8, 8, 3, padding=1), nn.ReLU())),
    Small("branches", Branches, standing=1),
    Small("norm behind a concatenation", BehindConcatenation, standing=1),
    Small("convolution read twice", ReadTwice, standing=1),
    Small("norm before its convolution", lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)), standing=1),
    Small("written by hand", AsWrittenByHand),
    Small("attention", Attention),
    Small("gate", Gate),
]


def small(case: Small) -> nn.Module:
    return settle(Plain(case.make()), SHAPE)


def standing(graph: Graph) -> int:
    return sum(op.kind == "batchnorm" for op in graph.operations)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_a_small_network_is_all_integers(case: Small) -> None:
    model, x = small(case), noise(SHAPE, 2, seed=1)
    graph = build(model, x)
    assert graph.deviation <= DEVIATION
    assert graph.share.macs == 1.0, graph.notes
    assert standing(graph) == case.standing


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_number_of_images_changes_nothing(case: Small) -> None:
    model = small(case)
    graph = build(model, noise(SHAPE, 2, seed=1))
    for images in (1, 5):
        x = noise(SHAPE, images, seed=7)
        with torch.no_grad():
            assert deviation(run_float(graph, (x,)), model(x)) <= DEVIATION


@pytest.mark.parametrize("case", [case for case in SMALL if norms_of(case.make())], ids=lambda case: case.name)
def test_folded_by_the_kit_equals_folded_by_hand(case: Small) -> None:
    model, x = small(case), noise(SHAPE, 4, seed=1)
    folded = fold(model, x)
    assert len(folded.standing) == case.standing
    kit, hand = (codes_of(Study(subject, [x], scheme="int8-per-tensor")) for subject in (model, folded.model))
    assert kit.keys() == hand.keys()
    for name, codes in kit.items():
        # float32 sums in another order may tip a tie
        assert (codes - hand[name]).abs().max() <= 1, name
        assert (codes != hand[name]).float().mean() <= 0.01, name


class Upscaler(nn.Module):
    """Norms in one branch and in another, both shapes of a transposed convolution."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 12, 3, stride=2, groups=groups)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.up(x))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_fold_by_hand_leaves_the_output_alone(groups: int) -> None:
    model = settle(Upscaler(groups), (8, 6, 6))
    x = noise((8, 6, 6), 2, seed=1)
    folded = fold(model, x)
    assert folded.layers == {"norm": "up"}
    with torch.no_grad():
        assert deviation(folded.model(x), model(x)) <= DEVIATION


def test_the_fold_by_hand_leaves_a_layer_alone_that_others_read() -> None:
    model = settle(Plain(ReadTwice()), SHAPE)
    folded = fold(model, noise(SHAPE, 2, seed=1))
    assert not folded.layers
    assert folded.standing == ("part.norm",)


@pytest.mark.slow
def test_a_norm_scores_the_same_in_every_form() -> None:
    need("torchvision")
    case = zoo.load("mobilenet_v2_hostile")
    found: dict[str, tuple[Any, ...]] = {}
    for name, convert in FORMS.items():
        study = Study(convert(case.model), case.calibration, case.evaluation, scheme="int8-per-tensor")
        scores = study.evaluate(batches=4, progress=False)
        found[name] = (scores[study.narrow].value, study.verdict(batches=4, progress=False).name)
    assert len(set(found.values())) == 1, found
    score, verdict = found["BatchNorm2d"]
    assert score < 0.5
    assert verdict == "quantization"


# Families: a network's row of the benchmark, without the engine

QUICK = [
    "timm/vit_tiny_patch16_224",
    "transformers/vit",
    "transformers/detr_backbone",
]
WIDER = [
    "timm/efficientnet_lite0",
    "timm/repvgg_a0",
    "timm/nf_resnet26",
    "torchvision/lraspp_mobilenet_v3_large",
    "timm/mobilevit_xxs",
    "timm/convnextv2_atto",
    "transformers/mobilevit",
    "transformers/segformer",
    "transformers/detr_encoder",
]
FAMILIES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in WIDER)]


def need(package: str) -> None:
    """Skip without the package; it is not imported here, since torchvision may need help with that."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def row_of(name: str, **options: Any) -> Row:
    need(name.split("/", maxsplit=1)[0])
    (network,) = (network for network in networks() if network.name == name)
    return measure(network, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_becomes_the_graph_of_what_it_computes(name: str) -> None:
    row = row_of(name, engine=False, timed=False)
    assert row.made, row.refused
    assert not row.troubles
    assert row.deviation is not None
    # or twice the network's own error in float32, which some have more of
    assert row.deviation <= max(DEVIATION, 2.0 * (row.own_error or 0.0))
    assert row.macs_share is not None
    assert row.macs_share >= MACS[row.kind], row.notes
    if row.compared is not None:
        assert row.compared > 0
        assert not row.unmatched
        assert row.far == 0
        assert row.apart is not None
        assert row.apart <= 0.001 * row.compared


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision/mobilenet_v2", "timm/repvgg_a0", "timm/vit_tiny_patch16_224"])
def test_the_engine_computes_what_the_graph_says(name: str) -> None:
    pytest.importorskip("onnxruntime")
    row = row_of(name, timed=False)
    assert row.engine_within is not None, row.troubles
    assert row.engine_within >= 0.999
