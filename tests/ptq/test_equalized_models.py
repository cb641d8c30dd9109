"""Equalized models compute what they did, and their layers' channel ranges agree, whatever lies between the layers."""

from __future__ import annotations

import copy
import itertools
import json
import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import mixed_network
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import qkit
from qkit import zoo
from qkit.errors import DataError, GraphError
from qkit.graph import Graph, build
from qkit.graph.weighted import ungrouped
from qkit.ptq.equalization import Equalized, equalize


@torch.no_grad()
def uneven(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with channels of every layer over three orders of magnitude, and batch norms far from their defaults."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0.0, 0.3, generator=draw)
            module.running_var.uniform_(0.5, 2.0, generator=draw)
            if module.affine:
                module.weight.uniform_(0.2, 1.5, generator=draw)
                module.weight[::3] *= -1.0
                module.bias.normal_(0.0, 0.5, generator=draw)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
            size = module.weight.shape[axis]
            shape = [1] * module.weight.ndim
            shape[axis] = size
            module.weight *= torch.exp(torch.empty(size).uniform_(-2.0, 2.0, generator=draw)).view(shape)
    return model.eval()


def checked(model: nn.Module, x: Tensor, **options: Any) -> tuple[Equalized, Graph]:
    """The equalized model, after the outputs of both in float64 and the user's model have been compared."""
    before = copy.deepcopy(model)
    result = equalize(model, build(model, x), **options)
    for (name, a), b in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [m.training for m in result.model.modules()] == [m.training for m in model.modules()]
    wants = {name: p.requires_grad for name, p in model.named_parameters()}
    assert all(p.requires_grad == wants[name] for name, p in result.model.named_parameters() if name in wants)
    with torch.no_grad():
        a, b = copy.deepcopy(result.model).eval().double()(x.double()), before.eval().double()(x.double())
    assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())
    return result, build(result.model, x)


def ranges(weight: Tensor, axis: int) -> np.ndarray:
    return weight.detach().abs().movedim(axis, 0).flatten(1).amax(1).double().numpy()


def test_pair_meets_at_the_geometric_mean() -> None:
    model = uneven(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1)))
    result, graph = checked(model, torch.randn(2, 3, 8, 8), tolerance=1e-9)
    first, second = ranges(model[0].weight, 0), ranges(model[2].weight, 1)
    # Nagel et al. 2019, equation 11
    assert np.allclose(result.factors["0"], np.sqrt(first * second) / second, rtol=1e-6)
    assert np.allclose(ranges(graph.weights["0.weight"], 0), np.sqrt(first * second), rtol=1e-5)
    assert np.allclose(ranges(graph.weights["2.weight"], 1), np.sqrt(first * second), rtol=1e-5)
    assert torch.allclose(
        result.model[0].bias.double(), model[0].bias.double() / torch.from_numpy(result.factors["0"]), rtol=1e-6
    )
    assert result.pairs[0].before[0] == pytest.approx(first.max() / first.min(), rel=1e-5)
    assert result.converged


def test_depthwise_between_two_meets_at_the_cube_root() -> None:
    model = uneven(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 5, 1)))
    result, graph = checked(model, torch.randn(2, 3, 8, 8), tolerance=1e-9)
    three = [ranges(model[i].weight, axis) for i, axis in ((0, 0), (2, 0), (4, 1))]
    root = np.cbrt(three[0] * three[1] * three[2])
    # the three-layer form: s1 = r1 / root, s2 = root / r3
    assert np.allclose(result.factors["0"], three[0] / root, rtol=1e-5)
    assert np.allclose(result.factors["2"], root / three[2], rtol=1e-5)
    for name, axis in (("0.weight", 0), ("2.weight", 0), ("4.weight", 1)):
        assert np.allclose(ranges(graph.weights[name], axis), root, rtol=1e-5)


class Chain(nn.Module):
    """Layers one after the other, as `plan` says: (kind, outputs, batch norm, ReLU)."""

    def __init__(self, plan: list[tuple[str, int, bool, bool]], *, flatten: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 4
        for kind, outputs, norm, relu in plan:
            if kind == "depthwise":
                outputs = inputs
                layers.append(nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=not norm))
            elif kind == "grouped":
                layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, groups=2))
            elif kind == "transposed":
                layers.append(nn.ConvTranspose2d(inputs, outputs, 3, padding=1))
            elif kind == "grouped-transposed":
                layers.append(nn.ConvTranspose2d(inputs, outputs, 3, padding=1, groups=2))
                norm = False
            else:
                layers.append(nn.Conv2d(inputs, outputs, 1))
            layers += [nn.BatchNorm2d(outputs)] if norm else []
            layers += [nn.ReLU(inplace=True)] if relu else []
            inputs = outputs
        if flatten:
            layers += [nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(inputs * 9, 6), nn.ReLU(), nn.Linear(6, 3)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


KINDS = ["plain", "depthwise", "grouped", "transposed", "grouped-transposed"]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    plan=st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from([2, 4, 6, 8]), st.booleans(), st.booleans()), min_size=2, max_size=6
    ),
    flatten=st.booleans(),
    seed=st.integers(0, 100),
)
def test_chains_settle_where_ranges_agree(plan: list[tuple[str, int, bool, bool]], flatten: bool, seed: int) -> None:
    torch.manual_seed(seed)
    result, graph = checked(uneven(Chain(plan, flatten=flatten), seed), torch.randn(2, 4, 6, 6), tolerance=1e-8)
    layers = [op for op in graph.operations if op.weight is not None]
    assert list(result.skipped) == [layers[-1].name]
    assert set(result.factors) == {op.name for op in layers[:-1]}
    assert result.converged
    for first, second in itertools.pairwise(layers):
        written, read = output_ranges(result.model, graph, first), input_ranges(result.model, graph, second)
        read = read.reshape(len(written), -1).max(1)  # a block of columns for each channel behind a flatten
        assert np.allclose(written, read, rtol=1e-4), (first.name, second.name)


def kernels(model: nn.Module, graph: Graph, op: Any) -> tuple[Tensor, int, bool]:
    module = model.get_submodule(op.layer)
    weight = graph.weights[op.weight].abs()
    if op.groups > 1:
        weight = ungrouped(weight, op.groups)
    return (
        weight.flatten(2) if weight.ndim > 2 else weight[:, :, None],
        getattr(module, "groups", 1),
        op.kind == "conv-transpose",
    )


def output_ranges(model: nn.Module, graph: Graph, op: Any) -> np.ndarray:
    weight, groups, transposed = kernels(model, graph, op)
    if not transposed:
        return weight.flatten(1).amax(1).double().numpy()
    parts = weight.chunk(groups, 0)
    return torch.cat([part.movedim(1, 0).flatten(1).amax(1) for part in parts]).double().numpy()


def input_ranges(model: nn.Module, graph: Graph, op: Any) -> np.ndarray:
    weight, groups, transposed = kernels(model, graph, op)
    if transposed:
        return weight.flatten(1).amax(1).double().numpy()
    parts = weight.chunk(groups, 0)
    return torch.cat([part.movedim(1, 0).flatten(1).amax(1) for part in parts]).double().numpy()


class Block(nn.Module):
    """A residual add, a concatenation, an average pool behind a leaky ReLU, and an old-style view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.last = nn.Conv2d(10, 12, 1)
        self.leaky = nn.LeakyReLU(0.1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.one(x)) + x)
        x = torch.cat([F.relu(self.left(x)), F.max_pool2d(self.right(x), 3, 1, 1)], 1)
        x = F.adaptive_avg_pool2d(self.leaky(self.last(x)), 1)
        return self.head(x.view(x.size(0), -1))


def test_joins_are_scaled_alike() -> None:
    result, graph = checked(uneven(Block()), torch.randn(2, 3, 8, 8), tolerance=1e-8)
    assert set(result.factors) == {"stem", "one", "left", "right", "last"}
    assert np.array_equal(result.factors["stem"], result.factors["one"])
    weights = graph.weights
    written = np.maximum(ranges(weights["stem.weight"], 0), ranges(weights["one.weight"], 0))
    read = np.max([ranges(weights[f"{n}.weight"], 1) for n in ("one", "left", "right")], axis=0)
    assert np.allclose(written, read, rtol=1e-4)
    written = np.concatenate([ranges(weights["left.weight"], 0), ranges(weights["right.weight"], 0)])
    assert np.allclose(written, ranges(weights["last.weight"], 1), rtol=1e-4)
    assert np.allclose(ranges(weights["last.weight"], 0), ranges(weights["head.weight"], 1), rtol=1e-4)
    assert "stem and 1 more -> one and 2 more" in result.table().index


def test_joins_can_be_left() -> None:
    result, _ = checked(uneven(Block()), torch.randn(2, 3, 8, 8), joins=False)
    assert set(result.factors) == {"last"}
    assert re.search(r" :add\b.*\bjoins=True\b", result.skipped["stem"])


def test_small_network_with_every_kind_of_step() -> None:
    result, _ = checked(mixed_network(), torch.randn(2, 3, 16, 16))
    # stem ends in ReLU6 and is added to project, so neither may be scaled; both channels of the concatenation go with them
    assert set(result.factors) == {"depthwise", "side"}
    assert "0..6 in stem" in result.skipped["stem"]
    assert "qkit.surgery.lite" in result.skipped["stem"]


@pytest.mark.parametrize("kind", ["weights", "norms"])
def test_partly_dead_channels_stay(kind: str) -> None:
    model = uneven(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    )
    with torch.no_grad():
        if kind == "weights":
            model[0].weight[2] = 0.0
            model[3].weight[:, 5] = 0.0
        else:
            model[1].weight[2] = 0.0
            model[3].weight[:, 5] = 1e-30
    result, _ = checked(model, torch.randn(2, 3, 8, 8), limit=100.0)
    assert result.factors["0"][2] == 1.0
    assert result.factors["0"][5] == (1.0 if kind == "weights" else 100.0)
    assert all(np.isfinite(f).all() and (f <= 100.0).all() and (f >= 0.01).all() for f in result.factors.values())


def test_norm_without_affine_gets_one() -> None:
    model = uneven(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Conv2d(8, 6, 3)))
    result, _ = checked(model, torch.randn(2, 3, 8, 8))
    (note,) = result.notes
    assert re.search(r"^1 .*\bweight\b.*\bbias\b", note)
    assert not model[1].affine
    assert torch.allclose(result.model[1].weight.double(), 1.0 / torch.from_numpy(result.factors["0"]), rtol=1e-6)


class Shuffled(nn.Module):
    """Halves of the channels, one through a convolution, put back in turns, as in ShuffleNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.stem(x)).chunk(2, dim=1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.size()
        return self.last(x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w))


def test_channels_are_followed_through_a_shuffle() -> None:
    result, graph = checked(uneven(Shuffled()), torch.randn(2, 3, 6, 6), tolerance=1e-8)
    assert set(result.factors) == {"stem", "branch"}
    stem, last = ranges(graph.weights["stem.weight"], 0), ranges(graph.weights["last.weight"], 1)
    assert np.allclose(stem[:4], last[::2], rtol=1e-4)
    assert np.allclose(ranges(graph.weights["branch.weight"], 0), last[1::2], rtol=1e-4)
    assert np.allclose(stem[4:], ranges(graph.weights["branch.weight"], 1), rtol=1e-4)


def between(operation: nn.Module | Any) -> nn.Module:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.operation = operation if isinstance(operation, nn.Module) else None

        def forward(self, x: Tensor) -> Tensor:
            return self.b((self.operation or operation)(self.a(x)))

    return uneven(Between())


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (nn.ReLU6(), r"\b0\.\.6\b"),
        (nn.Hardtanh(-2.0, 1000.0), r" -2\.\.1000\b"),
        (lambda x: x.clamp_min(-1e3), r"\bhomogeneous\b"),
        (nn.SiLU(), "qkit.surgery.lite"),
        (lambda x: x * x, r" :mul\b.*\bfactors\b"),
        (lambda x: x + 1.0, r"\bhook\b"),
        (lambda x: x.softmax(1), r"\bhomogeneous\b"),
        (lambda x: x + x.mean(1, keepdim=True), r" :mean\b.*\bfactors\b"),
        (lambda x: x.expand_as(x) * x.sigmoid(), r"\bhomogeneous\b"),
        (lambda x: x + x.argmax(1, keepdim=True), r"\bargmax\b.*\bvalues\b"),
        (lambda x: F.layer_norm(x, x.shape[1:]), r"\(\w+\).*\bfactors\b"),
        (lambda x: x.transpose(1, 2).contiguous()[:, :4], r"\baxis\b"),
    ],
)  # fmt: skip
def test_what_lets_no_factors_through(operation: Any, said: str) -> None:
    model = between(operation)
    result, _ = checked(model, torch.randn(2, 3, 4, 4))
    assert result.factors == {}
    assert re.search(said, result.skipped["a"])
    for (name, a), b in zip(model.state_dict().items(), result.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "operation",
    [nn.ReLU(), nn.PReLU(), nn.LeakyReLU(0.2), nn.AvgPool2d(3, 1, 1), nn.Upsample(scale_factor=2, mode="bilinear"),
     lambda x: x * 0.25, lambda x: x.abs(), lambda x: F.pad(x, (1, 1, 1, 1)), lambda x: x + x.relu(), lambda x: x[:, [3, 1, 0, 2]],
     lambda x: x.flip(1) * 0.5, lambda x: x * torch.sigmoid(torch.ones(4, 1, 1))],
)  # fmt: skip
def test_what_lets_factors_through(operation: Any) -> None:
    result, _ = checked(between(operation), torch.randn(2, 3, 4, 4))
    assert set(result.factors) == {"a"}
    assert not np.allclose(result.factors["a"], 1.0)


def three() -> nn.Sequential:
    return uneven(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)))  # type: ignore[return-value]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = three()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.relu(self.layers[0](x)))


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x


def tied() -> nn.Module:
    model = three()
    model[2].weight = model[0].weight
    return model


def parametrized() -> nn.Module:
    model = three()
    parametrize.register_parametrization(model[2], "weight", Doubling())
    return model


def frozen() -> nn.Module:
    model = three()
    model[2].weight.requires_grad_(False)
    return model


def hooked() -> nn.Module:
    model = three()
    model[2].register_forward_hook(lambda module, args, output: output * 2.0 + 1.0)
    return model


class Odd(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.0


def subclassed() -> nn.Module:
    model = three()
    model[2] = Odd(6, 6)
    return model.eval()


def functional() -> nn.Module:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = three()

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.layers[0](x))
            return self.layers[4](torch.relu(F.linear(x, self.layers[2].weight)))

    return Functional()


@pytest.mark.parametrize(
    ("make", "layer", "said"),
    [
        (Twice, "layers.0", r"\b2 times\b"),
        (tied, "0", r"\bweight\b"),
        (parametrized, "2", "parametrized"),
        (frozen, "2", r"\bfrozen\b"),
        (subclassed, "0", r"\b2, .*\bweights\b"),
        (functional, "layers.0", r"\bfunction\b"),
    ],
)
def test_layers_that_may_not_be_changed(make: Any, layer: str, said: str) -> None:
    result, _ = checked(make(), torch.randn(4, 6))
    assert re.search(said, result.skipped[layer])
    assert layer not in result.factors


def test_a_layer_that_a_hook_alters() -> None:
    model = hooked()
    x = torch.randn(4, 6)
    result = equalize(model, build(model, x))
    assert "hook" in result.skipped["2"]
    assert torch.equal(result.model(x), model(x))


def test_a_model_frozen_as_a_whole_is_equalized() -> None:
    result, _ = checked(three().requires_grad_(False), torch.randn(4, 6))
    assert set(result.factors) == {"0", "2"}
    assert not any(p.requires_grad for p in result.model.parameters())


def test_training_mode_and_gradients_stay() -> None:
    model = uneven(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3))).train()
    model[1].eval()
    result, _ = checked(model, torch.randn(2, 3, 8, 8))
    assert result.model.training
    assert not result.model[1].training
    result.model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in result.model.parameters())


def test_result_in_words_and_numbers() -> None:
    result, _ = checked(three(), torch.randn(4, 6))
    assert re.match(r"Equalized\(Sequential: 2 layers .*\b2 pairs, 1 skipped, deviation \S+\)", repr(result))
    assert re.search(r"^ *4: .*\boutput\b", repr(result), re.MULTILINE)
    table = result.table()
    assert list(table.index) == ["0 -> 2", "2 -> 4"]
    assert (table["rows after"] <= table["rows before"]).all()
    assert json.loads(json.dumps(result.to_dict()))["factors"]["0"] == result.factors["0"].tolist()
    assert "<table" in result._repr_html_()


def test_a_graph_of_another_state_is_an_error() -> None:
    model = three()
    x = torch.randn(4, 6)
    graph = build(model, x)
    with torch.no_grad():
        model[2].weight[3] *= 2.0
    with pytest.raises(GraphError, match=r"\b2 -> 4 .*\bSequential\b.*\b1e-05\b"):
        equalize(model, graph, example=x)
    with pytest.raises(GraphError, match=r"\bgraph\b.*\bSequential\b.*\bleaf_modules\b"):
        equalize(nn.Sequential(*three(), nn.Linear(6, 2)), graph)
    with pytest.raises(GraphError, match=r"limit=0\.5"):
        equalize(model, build(model, x), limit=0.5)


def test_inputs_that_are_no_floats_need_an_example() -> None:
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x = torch.randint(0, 10, (4, 5))
    graph = build(model, x)
    with pytest.raises(DataError, match="example="):
        equalize(model, graph)
    assert set(equalize(model, graph, example=x).factors) == {"1"}


FAMILIES = ["mobilenet_v2", "resnet18"]
SLOW_FAMILIES = ["densenet121", "shufflenet_v2_x0_5", "mobilenet_v3_small"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_FAMILIES)])
def test_torchvision_families(name: str, torchvision_models: ModuleType) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(torchvision_models, name)(**options)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU6):
            model.set_submodule(path, nn.ReLU(inplace=True))
    draw = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0.0, 0.3, generator=draw)
            module.running_var.uniform_(0.5, 2.0, generator=draw)
            module.weight.data.uniform_(0.3, 1.5, generator=draw)
            module.bias.data.normal_(0.0, 0.3, generator=draw)
    result, graph = checked(model.eval(), torch.randn(1, 3, 32, 32), iterations=10)
    layers = {s.name for s in graph.operations if s.kind in {"conv", "linear"}}
    assert set(result.factors) | set(result.skipped) == layers
    if name in {"mobilenet_v2", "resnet18", "shufflenet_v2_x0_5", "regnet_x_400mf", "googlenet"}:
        assert len(result.skipped) == 1  # the classifier


#: Nets of convolutions: of these the classifier alone is left out. Transformers have functions that no scale passes between layers.
CONVOLUTIONAL = ("mobilenet_v2_lite", "mobilenet_v2_hostile", "resnet_small", "vgg_small", "inception_small")


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_zoo(name: str) -> None:
    case = zoo.load(name)
    x = next(iter(case.evaluation))[0][:4]
    result, _ = checked(case.model, x)
    assert result.converged
    if name not in CONVOLUTIONAL:
        return
    assert len(result.skipped) == 1
    table = result.table()
    assert table["rows after"].median() < table["rows before"].median()


@pytest.mark.slow
def test_it_mends_what_one_scale_per_tensor_breaks() -> None:
    case = zoo.load("mobilenet_v2_hostile")
    study = qkit.Study(case.model, case.calibration, case.evaluation, scheme="int8-per-tensor")
    study.calibrate("minmax", progress=False)
    mended = qkit.Study(equalize(case.model, study.graph).model, case.calibration, case.evaluation, scheme="int8-per-tensor")
    mended.calibrate("minmax", progress=False)
    before, after = (s.evaluate(("float", s.narrow), batches=2, progress=False) for s in (study, mended))
    assert after["float"].value == before["float"].value
    assert before[study.narrow].value < 0.5
    assert after[mended.narrow].value > after["float"].value - 0.02
