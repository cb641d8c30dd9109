"""Norms in every form that they are written in: what folds, to which numbers, and what stands alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import Parts
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

import qkit
from qkit.execution.lanes import Lane, run_lanes
from qkit.graph import Graph, build

IMAGE, SIGNAL, VOLUME, ROWS, TOKENS = (2, 4, 8, 8), (2, 4, 9), (2, 4, 4, 5, 6), (3, 4), (2, 5, 4)


def net(function: Callable[[Any, Tensor], Tensor], **parts: Any) -> Parts:
    """A forward function with parts, and with the four numbers of a norm of six channels as buffers."""
    numbers = torch.Generator().manual_seed(7)
    buffers = {name: torch.randn(6, generator=numbers) for name in ("mean", "weight", "bias")}
    return Parts(function, **{**buffers, "variance": torch.rand(6, generator=numbers) * 2 + 0.3, **parts})


@torch.no_grad()
def norm(channels: int = 6, kind: Callable[..., nn.Module] = nn.BatchNorm2d, **options: Any) -> Any:
    """A batch norm with statistics and parameters far from their defaults."""
    made: Any = kind(channels, **options)
    if made.running_mean is not None:
        made.running_mean.normal_()
        made.running_var.uniform_(0.3, 2.3)
    if made.weight is not None:
        made.weight.normal_()
        made.bias.normal_()
    return made.eval()


def conv(inputs: int = 4, outputs: int = 6, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **options)


def wide(numbers: Tensor) -> Tensor:
    return numbers.view(1, -1, 1, 1)


@dataclass(frozen=True)
class Case:
    """A network, its input's shape, and the steps between input and output as "name kind"."""

    function: Callable[[Any, Tensor], Tensor]
    parts: Callable[[], dict[str, Any]]
    operations: tuple[str, ...]
    shape: tuple[int, ...] = IMAGE


def plain_conv() -> dict[str, Any]:
    return {"c": conv()}


def by_hand(n: Any, y: Tensor) -> Tensor:
    return (y - wide(n.mean)) / torch.sqrt(wide(n.variance) + 1e-5) * wide(n.weight) + wide(n.bias)


def frozen(n: Any, y: Tensor) -> Tensor:
    scale = wide(n.weight) * (wide(n.variance) + 1e-5).rsqrt()
    return y * scale + (wide(n.bias) - wide(n.mean) * scale)


def levit(n: Any, x: Tensor) -> Tensor:
    y = n.c(x)
    return n.norm(y.flatten(0, 1)).reshape_as(y)


def tied() -> dict[str, Any]:
    first, second = conv(), conv()
    second.weight = first.weight
    return {"c": first, "d": second, "norm": norm(), "other": norm()}


FOLDED = ("c conv",)
TURNED = ("c conv-transpose",)
CASES: dict[str, Case] = {
    "scale": Case(lambda n, x: n.c(x) * wide(n.weight), plain_conv, FOLDED),
    "scale of three axes, first": Case(lambda n, x: n.weight.view(-1, 1, 1) * n.c(x), plain_conv, FOLDED),
    "number": Case(lambda n, x: n.c(x) * 3 + 1, plain_conv, FOLDED),
    "shift of a convolution without bias": Case(lambda n, x: n.c(x) + wide(n.bias), lambda: {"c": conv(bias=False)}, FOLDED),
    "subtracted": Case(lambda n, x: n.c(x) - wide(n.mean), plain_conv, FOLDED),
    "subtracted from numbers": Case(lambda n, x: wide(n.mean) - n.c(x), plain_conv, FOLDED),
    "one less it": Case(lambda n, x: 1 - n.c(x), plain_conv, FOLDED),
    "divided": Case(lambda n, x: n.c(x) / wide(n.variance), plain_conv, FOLDED),
    "divided by a number": Case(lambda n, x: n.c(x) / 3, plain_conv, FOLDED),
    "a number divided by it": Case(
        lambda n, x: 3 / (n.c(x).abs() + 10),
        plain_conv,
        ("c conv", ":abs activation", ":add add", ":rdiv activation", ":rdiv#2 mul"),
    ),
    "by hand": Case(lambda n, x: by_hand(n, n.c(x)), plain_conv, FOLDED),
    "frozen, written out": Case(lambda n, x: frozen(n, n.c(x)), plain_conv, FOLDED),
    "numbers of double precision": Case(lambda n, x: n.c(x) * wide(n.weight.double()), plain_conv, FOLDED),
    "two norms": Case(lambda n, x: n.b(n.a(n.c(x))), lambda: {"c": conv(), "a": norm(), "b": norm()}, FOLDED),
    "norm and layer scale": Case(lambda n, x: n.a(n.c(x)) * wide(n.weight), lambda: {"c": conv(), "a": norm()}, FOLDED),
    "a number for each column": Case(lambda n, x: n.c(x) * n.weight, plain_conv, ("c conv", "weight constant", ":mul mul")),
    "a number for each place": Case(
        lambda n, x: n.c(x) + n.map,
        lambda: {"c": conv(), "map": torch.randn(6, 6, 6)},
        ("c conv", "map constant", ":add add"),
    ),
    "activation between": Case(
        lambda n, x: F.relu(n.c(x)) * wide(n.weight),
        plain_conv,
        ("c conv", ":view constant", ":mul mul"),
    ),
    "layer scale behind linear, dropout and permute": Case(
        lambda n, x: F.dropout(n.c(x), 0.1, n.training).permute(0, 3, 1, 2) * wide(n.weight),
        lambda: {"c": nn.Linear(8, 6)},
        ("c linear", ":permute keep"),
    ),
    "layer scale, then tokens": Case(
        lambda n, x: (n.c(x) * wide(n.weight)).flatten(2).transpose(1, 2) * n.variance,
        plain_conv,
        ("c conv", ":flatten keep", ":transpose keep"),
    ),
    "linear, flat, norm, back": Case(
        levit,
        lambda: {"c": nn.Linear(4, 6), "norm": norm(6, nn.BatchNorm1d)},
        ("c linear", ":flatten keep", ":reshape_as keep"),
        TOKENS,
    ),
    "linear, norm": Case(
        lambda n, x: n.norm(n.c(x)),
        lambda: {"c": nn.Linear(4, 6), "norm": norm(6, nn.BatchNorm1d)},
        ("c linear",),
        ROWS,
    ),
    "linear on tokens, norm over the tokens": Case(
        lambda n, x: n.norm(n.c(x)),
        lambda: {"c": nn.Linear(4, 5), "norm": norm(5, nn.BatchNorm1d)},
        ("c linear", "norm batchnorm"),
        TOKENS,
    ),
    "product with a matrix": Case(
        lambda n, x: (x @ n.matrix) * n.weight + n.bias,
        lambda: {"matrix": torch.randn(4, 6)},
        (":linear linear",),
        TOKENS,
    ),
    "addmm": Case(
        lambda n, x: torch.addmm(n.bias, x, n.matrix) * n.weight,
        lambda: {"matrix": torch.randn(4, 6)},
        (":linear linear",),
        ROWS,
    ),
    "addmm with factors": Case(
        lambda n, x: torch.addmm(n.bias, x, n.matrix, beta=2, alpha=0.5),
        lambda: {"matrix": torch.randn(4, 6)},
        ("bias constant", "matrix constant", ":addmm matmul"),
        ROWS,
    ),
    "conv1d": Case(
        lambda n, x: n.norm(n.c(x)),
        lambda: {"c": nn.Conv1d(4, 6, 3), "norm": norm(6, nn.BatchNorm1d)},
        FOLDED,
        SIGNAL,
    ),
    "conv3d": Case(
        lambda n, x: n.norm(n.c(x)),
        lambda: {"c": nn.Conv3d(4, 6, 3), "norm": norm(6, nn.BatchNorm3d)},
        FOLDED,
        VOLUME,
    ),
    "depthwise": Case(lambda n, x: n.norm(n.c(x)), lambda: {"c": conv(4, 8, groups=4), "norm": norm(8)}, FOLDED),
    "no parameters": Case(lambda n, x: n.norm(n.c(x)), lambda: {"c": conv(), "norm": norm(affine=False)}, FOLDED),
    "statistics of the batch": Case(
        lambda n, x: n.norm(n.c(x)),
        lambda: {"c": conv(), "norm": norm(track_running_stats=False)},
        ("c conv", "norm float"),
    ),
    "instance norm with statistics": Case(
        lambda n, x: n.norm(n.c(x)),
        lambda: {"c": conv(), "norm": norm(6, nn.InstanceNorm2d, affine=True, track_running_stats=True)},
        FOLDED,
    ),
    "instance norm with statistics, alone": Case(
        lambda n, x: n.c(n.norm(x)),
        lambda: {"c": conv(), "norm": norm(4, nn.InstanceNorm2d, affine=True, track_running_stats=True)},
        ("norm batchnorm", "c conv"),
    ),
    "instance norm": Case(
        lambda n, x: n.norm(n.c(x)),
        lambda: {"c": conv(), "norm": nn.InstanceNorm2d(6, affine=True)},
        ("c conv", "norm norm"),
    ),
    "native batch norm": Case(
        lambda n, x: torch.native_batch_norm(n.c(x), n.weight, n.bias, n.mean, n.variance, False, 0.1, 1e-3)[0],
        plain_conv,
        FOLDED,
    ),
    "addcmul": Case(lambda n, x: torch.addcmul(wide(n.bias), n.c(x), wide(n.weight)), plain_conv, FOLDED),
    "a root as a power": Case(
        lambda n, x: (n.c(x) - wide(n.mean)) * wide((n.variance + 1e-5).pow(-0.5)),
        plain_conv,
        FOLDED,
    ),
    "casts and shapes that change nothing": Case(
        lambda n, x: F.relu(n.norm(n.c(x).float()).type_as(x).view(-1, 6, 6, 6)),
        lambda: {"c": conv(), "norm": norm()},
        FOLDED,
    ),
    "a layer and its norm, called twice": Case(
        lambda n, x: n.norm(n.c(F.relu(n.norm(n.c(x))))),
        lambda: {"c": conv(6, padding=1), "norm": norm()},
        ("c conv", "c#2 conv"),
        (2, 6, 8, 8),
    ),
    "addmm with a bias of two axes": Case(
        lambda n, x: torch.addmm(n.bias.unsqueeze(0), x, (n.matrix * 0.3).t()) * n.weight,
        lambda: {"matrix": torch.randn(6, 4)},
        (":linear linear",),
        ROWS,
    ),
    "a normalized weight": Case(
        lambda n, x: F.conv2d(x, wide(n.weight).view(-1, 1, 1, 1) * F.normalize(n.c.weight, dim=(1, 2, 3))),
        plain_conv,
        (":conv2d conv",),
    ),
    "channels-last memory": Case(
        lambda n, x: n.norm(n.c(x.contiguous(memory_format=torch.channels_last))),
        lambda: {"c": conv(), "norm": norm()},
        (":contiguous keep", "c conv"),
    ),
    "a layer that two calls share": Case(
        lambda n, x: n.a(n.c(x)) + n.b(n.c(x + 1)),
        lambda: {"c": conv(), "a": norm(), "b": norm()},
        ("c conv", "a batchnorm", ":add add", "c#2 conv", "b batchnorm", ":add#2 add"),
    ),
    "a norm that two layers share": Case(
        lambda n, x: n.norm(n.c(x)) + n.norm(n.d(x)),
        lambda: {"c": conv(), "d": conv(), "norm": norm()},
        ("c conv", "d conv", ":add add"),
    ),
    "a weight of two layers": Case(
        lambda n, x: n.norm(n.c(x)) + n.other(n.d(x)),
        tied,
        ("c conv", "norm batchnorm", "d conv", "other batchnorm", ":add add"),
    ),
    "before": Case(lambda n, x: n.c(n.norm(x)), lambda: {"c": conv(), "norm": norm(4)}, ("norm batchnorm", "c conv")),
    "behind a concatenation": Case(
        lambda n, x: F.relu(n.norm(torch.cat([n.c(x), n.d(x)], 1))),
        lambda: {"c": conv(), "d": conv(), "norm": norm(12)},
        ("c conv", "d conv", ":cat concat", "norm batchnorm"),
    ),
    "behind a sum": Case(
        lambda n, x: n.norm(n.c(x) + n.d(x)),
        lambda: {"c": conv(), "d": conv(), "norm": norm()},
        ("c conv", "d conv", ":add add", "norm batchnorm"),
    ),
    "behind a pool": Case(
        lambda n, x: n.norm(F.max_pool2d(n.c(x), 2)),
        lambda: {"c": conv(), "norm": norm()},
        ("c conv", ":max_pool2d keep", "norm batchnorm"),
    ),
    "by hand, alone": Case(
        lambda n, x: n.c(by_hand(n, F.relu(x))),
        lambda: {"c": conv(6)},
        (":relu activation", ":sub batchnorm", "c conv"),
        (2, 6, 8, 8),
    ),
    "frozen, alone": Case(
        lambda n, x: n.c(frozen(n, F.relu(x))),
        lambda: {"c": conv(6)},
        (":relu activation", ":mul batchnorm", "c conv"),
        (2, 6, 8, 8),
    ),
    "read by two": Case(
        lambda n, x: n.norm(y := n.c(x)) + y,
        lambda: {"c": conv(), "norm": norm()},
        ("c conv", "norm batchnorm", ":add add"),
    ),
    "one channel that becomes many": Case(
        lambda n, x: n.c(x).reshape(len(x), 6, 6, 1) * wide(n.weight),
        lambda: {"c": conv(4, 1)},
        ("c conv", ":reshape keep", ":view constant", ":mul mul"),
    ),
}


def floats(graph: Graph, x: Tensor) -> Tensor:
    result: Tensor = run_lanes(graph, [Lane("float")], (x,))["float"]
    return result


def outline(graph: Graph) -> tuple[str, ...]:
    return tuple(f"{s.name} {s.kind}" for s in graph.operations[1:-1] if s.kind != "meta")


@pytest.mark.parametrize("name", CASES)
def test_steps_and_values(name: str) -> None:
    case = CASES[name]
    model = net(case.function, **case.parts()).eval()
    graph = build(model, torch.randn(*case.shape))
    assert outline(graph) == case.operations
    x = torch.randn(5, *case.shape[1:])
    with torch.no_grad():
        wanted = model(x)
    assert float((floats(graph, x) - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.mark.slow
def test_decomposed_programs_fold_like_all_others() -> None:
    model = nn.Sequential(
        conv(), norm(), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, groups=2), norm(4), nn.Flatten(), nn.Linear(256, 3)
    )
    x = torch.randn(*IMAGE)
    program = torch.export.export(model.eval(), (x,)).run_decompositions()
    graph = build(program, x)
    assert [s.kind for s in graph.operations[1:-1]] == ["conv", "conv-transpose", "keep", "linear"]
    assert graph.share.elements == 1.0
    torch.testing.assert_close(floats(graph, x), model(x), rtol=1e-4, atol=1e-5)


def test_a_shared_layer_with_its_norm_has_one_weight() -> None:
    case = CASES["a layer and its norm, called twice"]
    model = net(case.function, **case.parts()).eval()
    graph = build(model, torch.randn(*case.shape))
    assert list(graph.weights) == ["c.weight"]
    weight, bias = fuse_conv_bn_weights(
        model.c.weight,
        model.c.bias,
        model.norm.running_mean,
        model.norm.running_var,
        model.norm.eps,
        model.norm.weight,
        model.norm.bias,
    )
    assert torch.equal(graph.weights["c.weight"], weight)
    assert torch.equal(graph.biases["c.bias"], bias)


def test_statistics_of_the_batch_are_said() -> None:
    case = CASES["statistics of the batch"]
    graph = build(net(case.function, **case.parts()).eval(), torch.randn(*case.shape))
    assert "norm" in graph.notes


LAYERS: dict[str, tuple[Callable[[], nn.Module], int, Any, tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), 6, nn.BatchNorm1d, SIGNAL),
    "conv2d": (conv, 6, nn.BatchNorm2d, IMAGE),
    "without bias": (lambda: conv(bias=False), 6, nn.BatchNorm2d, IMAGE),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), 6, nn.BatchNorm3d, VOLUME),
    "groups": (lambda: conv(4, 6, groups=2), 6, nn.BatchNorm2d, IMAGE),
    "linear": (lambda: nn.Linear(4, 6), 6, nn.BatchNorm1d, ROWS),
    "transposed 1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2), 6, nn.BatchNorm1d, SIGNAL),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, 2), 6, nn.BatchNorm2d, IMAGE),
    "transposed, groups": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False), 6, nn.BatchNorm2d, IMAGE),
    "transposed, depthwise": (lambda: nn.ConvTranspose2d(4, 8, 3, 2, groups=4), 8, nn.BatchNorm2d, IMAGE),
    "transposed 3d, groups": (lambda: nn.ConvTranspose3d(4, 6, 3, 2, groups=2), 6, nn.BatchNorm3d, VOLUME),
}


@pytest.mark.parametrize("name", LAYERS)
def test_folded_weights_are_those_of_torch(name: str) -> None:
    make, channels, kind, shape = LAYERS[name]
    layer: Any = make()
    bn = norm(channels, kind)
    model = nn.Sequential(layer, bn).eval()
    graph = build(model, torch.randn(*shape))
    (op,) = (s for s in graph.operations if s.weight is not None)
    assert op.norm == "1"
    statistics = (bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
    with torch.no_grad():
        if name == "linear":
            weight, bias = fuse_linear_bn_weights(layer.weight, layer.bias, *statistics)
        elif layer.transposed and layer.groups > 1:
            # torch's own fold takes no groups: one by one
            parts = layer.weight.chunk(layer.groups)
            numbers = [[n if isinstance(n, float) else n.chunk(layer.groups)[i] for n in statistics] for i in range(len(parts))]
            biases = [None] * len(parts) if layer.bias is None else layer.bias.chunk(layer.groups)
            made = [fuse_conv_bn_weights(p, b, *n, transpose=True) for p, b, n in zip(parts, biases, numbers, strict=True)]
            # as the graph keeps it: output channels along the first axis
            weight = torch.cat([part.transpose(0, 1) for part, _ in made])
            bias = torch.cat([part for _, part in made])
        else:
            weight, bias = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics, transpose=layer.transposed)
    assert op.weight is not None
    assert op.bias is not None
    assert op.weight_axis is not None
    assert graph.weights[op.weight].shape[op.weight_axis] == channels
    assert torch.equal(graph.weights[op.weight], weight)
    assert torch.equal(graph.biases[op.bias], bias)


class Functional(nn.BatchNorm2d):
    """A subclass whose forward calls the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)


class Frozen(nn.Module):
    """What torchvision has for detection (``FrozenBatchNorm2d``), of a batch norm's numbers."""

    def __init__(self, bn: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = bn.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(bn, name).detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        w, b, rv, rm = (wide(n) for n in (self.weight, self.bias, self.running_var, self.running_mean))
        scale = w * (rv + self.eps).rsqrt()
        return x * scale + (b - rm * scale)


class Written(nn.Module):
    """The formula with the numbers that an exporter leaves: a scale and an offset."""

    def __init__(self, bn: nn.BatchNorm2d) -> None:
        super().__init__()
        scale = bn.weight.detach() * torch.rsqrt(bn.running_var + bn.eps)
        self.register_buffer("scale", wide(scale))
        self.register_buffer("shift", wide(bn.bias.detach() - bn.running_mean * scale))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(torch.mul(x, self.scale), self.shift)


def as_kind(kind: Callable[..., nn.Module]) -> Callable[[nn.BatchNorm2d], nn.Module]:
    def make(bn: nn.BatchNorm2d) -> nn.Module:
        made = kind(bn.num_features, eps=bn.eps)
        made.load_state_dict(bn.state_dict())
        return made

    return make


FORMS: dict[str, Callable[[nn.BatchNorm2d], nn.Module]] = {
    "SyncBatchNorm": as_kind(nn.SyncBatchNorm),
    "subclass": as_kind(Functional),
    "frozen": Frozen,
    "written": Written,
}


def network(form: Callable[[nn.BatchNorm2d], nn.Module] | None) -> nn.Module:
    """Plain, depthwise and grouped transposed convolutions with norms in that form."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers: list[nn.Module] = [
            nn.Conv2d(3, 6, 3, bias=False), norm(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), norm(6), nn.ReLU6(),
            nn.ConvTranspose2d(6, 4, 2, 2, groups=2), norm(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
        ]  # fmt: skip
    return nn.Sequential(*(form(m) if form and isinstance(m, nn.BatchNorm2d) else m for m in layers)).eval()


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return list(torch.randn(2, 8, 3, 10, 10, generator=torch.Generator().manual_seed(5)))


@pytest.fixture(scope="module")
def reference(images: list[Tensor]) -> tuple[qkit.Study, Any]:
    study = qkit.Study(network(None), calibration=images, evaluation=images, scheme="int8")
    return study, study.capture(lanes=("int8",))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_codes(form: str, reference: tuple[qkit.Study, Any], images: list[Tensor]) -> None:
    study, capture = reference
    other = qkit.Study(network(FORMS[form]), calibration=images, evaluation=images, scheme="int8")
    assert other.graph.taps == study.graph.taps == ("input", "0", "3", "6", "8", "10")
    for name, weight in study.graph.weights.items():
        if form == "written":
            torch.testing.assert_close(other.graph.weights[name], weight, rtol=3e-7, atol=0)
        else:
            assert torch.equal(other.graph.weights[name], weight)
    codes = other.capture(lanes=("int8",))
    differ = total = 0
    for tap in study.graph.taps:
        a, b = codes[tap].int8.codes, capture[tap].int8.codes
        differ += int((a != b).sum())
        total += a.numel()
    assert differ <= (total // 1000 if form == "written" else 0)


def test_a_grouped_transposed_convolution_has_a_scale_for_every_output_channel(reference: tuple[qkit.Study, Any]) -> None:
    study, _ = reference
    weight, scale = study.graph.weights["6.weight"], study.plan.grids["6.weight"].params.scale
    assert weight.shape == (4, 3, 2, 2)
    peaks = weight.abs().flatten(1).amax(1).double()
    assert scale.shape == (4,)
    assert bool((scale * 127 <= peaks * 1.01).all())
    model = network(None)
    with torch.no_grad():
        alone = model[7](model[6](x := torch.randn(2, 6, 4, 4)))
    op = study.graph.operation("6")
    torch.testing.assert_close(op.call(x, weight, study.graph.biases[op.bias]), alone)


def test_torchvisions_frozen_norm_folds_like_a_batch_norm(torchvision_models: Any) -> None:
    from torchvision.ops.misc import FrozenBatchNorm2d

    bn = norm()
    still = FrozenBatchNorm2d(6)
    still.load_state_dict({key: value for key, value in bn.state_dict().items() if "tracked" not in key})
    layer = conv()
    plain, other = (build(nn.Sequential(layer, n).eval(), torch.randn(*IMAGE)) for n in (bn, still))
    assert outline(other) == ("0 conv",)
    assert torch.equal(plain.weights["0.weight"], other.weights["0.weight"])
    assert torch.equal(plain.biases["0.bias"], other.biases["0.bias"])


# every part of the kit takes norms that stand alone


class Standing(nn.Module):
    """Norms before a convolution, behind a concatenation and a pool, and written by hand behind an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.last = norm(3), norm(12), norm(4)
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(12, 4, 3)
        self.head = nn.Linear(4, 5)
        self.register_buffer("scale", wide(torch.logspace(-1, 1, 4)))
        self.register_buffer("shift", wide(torch.randn(4)))
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([0.02, 1.0, 20.0]))
            self.wide.weight.mul_(torch.logspace(-1, 1, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = F.relu(self.wide(torch.cat([self.a(x), self.b(x)], 1)))
        x = F.relu(self.last(F.max_pool2d(self.c(x), 2)))
        return self.head((x * self.scale + self.shift).mean((2, 3)))


@pytest.fixture(scope="module")
def standing() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = Standing().eval()
        with torch.no_grad():
            return model, [(x, model(x)) for x in torch.randn(2, 16, 3, 10, 10)]


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(outputs - targets).square().mean(-1)


def study_of(standing: tuple[nn.Module, Any], scheme: str) -> qkit.Study:
    model, data = standing
    return qkit.Study(model, calibration=data, evaluation=data, scheme=scheme, metric=loss)


@pytest.mark.parametrize("scheme", ["int8", "int8-per-tensor", "int8-power-of-two", "int8-symmetric"])
def test_standing_norms_are_diagnosed(scheme: str, standing: tuple[nn.Module, Any]) -> None:
    study = study_of(standing, scheme)
    kinds = {op.name: op.kind for op in study.graph.operations}
    assert [name for name, kind in kinds.items() if kind == "batchnorm"] == ["first", "wide", "last", ":mul"]
    assert study.graph.share.elements == 1.0
    for name in ("first.weight", "wide.weight", "last.weight", ":mul.weight"):
        assert study.plan.params(name) is not None
    diagnosis = study.diagnose(tolerance=1e-7)
    assert diagnosis.causes
    study.apply(diagnosis.causes[0].remedy).score()


@pytest.mark.slow
def test_standing_norms_everywhere_else(standing: tuple[nn.Module, Any], tmp_path: Path) -> None:
    study = study_of(standing, "int8-per-tensor")
    table = study.capture(lanes=("float", "int16", "int8")).table()
    assert {"first", "wide", "last", ":mul"} <= set(table.index)
    for mode in ("only", "except"):
        study.sensitivity(mode=mode)
    study.report(tmp_path / "report.json")
    study.mixed()
    study.ptc()


@pytest.mark.slow
def test_standing_norms_in_onnx_runtime(standing: tuple[nn.Module, Any], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    data = standing[1]
    study = study_of(standing, "int8")
    study.export(tmp_path / "net.onnx")
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # processors without VNNI saturate otherwise
    session = runtime.InferenceSession(tmp_path / "net.onnx", options, providers=["CPUExecutionProvider"])
    x = data[0][0]
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    wanted = study.capture(lanes=("int8",))["head"].int8
    step = float(np.max(np.asarray(wanted.scale)))
    assert float(np.abs(result - np.asarray(wanted.values)).max()) <= 1.01 * step


def test_standing_norms_are_trained(standing: tuple[nn.Module, Any]) -> None:
    from qkit import qat

    study = study_of(standing, "int8")
    trained = qat.wrap(study, total_epochs=1)
    x, target = standing[1][0]
    with torch.no_grad():
        lanes = run_lanes(study.graph, [Lane("int8", study.plan)], (x,))["int8"]
        torch.testing.assert_close(trained.eval()(x), lanes, rtol=1e-4, atol=1e-4)
    trained.train()
    for x, target in standing[1]:
        F.mse_loss(trained(x), target).backward()
    gradients = {name: p.grad for name, p in trained.named_parameters()}
    assert any("first.weight" in name and g is not None and bool(g.abs().sum() > 0) for name, g in gradients.items())
