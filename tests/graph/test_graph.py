"""What becomes of each operation: its step, its tap, and the float value that the model itself gives."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.errors import DataError, GraphError
from qkit.execution.lanes import Lane, run_lanes
from qkit.graph import Graph, build, deviation


class Empty(nn.Module):
    """A model to which `net` gives a forward function and parts."""


def net(forward: Callable[..., Any], **parts: Any) -> nn.Module:
    """A model with that forward function, ``forward(self, x)``, whose parts are modules, parameters and buffers by name."""
    model = type("Net", (Empty,), {"forward": forward})()
    for name, part in parts.items():
        if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
            model.register_buffer(name, part)
        else:
            setattr(model, name, part)
    return model


def conv(inputs: int = 4, outputs: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, **{"kernel_size": 3, "padding": 1, **options})


@torch.no_grad()
def trained_looking(model: nn.Module) -> nn.Module:
    """Batch norms with statistics and parameters of both signs, far from their defaults."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.3, 3.0)
            if module.affine:
                module.weight.normal_()
                module.bias.normal_()
    return model.eval()


def float_lane(graph: Graph, *inputs: Any) -> Any:
    return run_lanes(graph, [Lane("float")], inputs)["float"]


def outline(graph: Graph) -> list[str]:
    """Steps between the first input and the output as ``name kind`` or, where they keep a grid, ``name =tap``."""
    return [f"{s.name} ={s.tap}" if s.kind == "keep" else f"{s.name} {s.kind}" for s in graph.operations[1:-1]]


def sequential(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


BN, RELU, RELU6 = nn.BatchNorm2d, nn.ReLU, nn.ReLU6
IMAGE, SIGNAL, VOLUME = (2, 4, 8, 8), (2, 4, 16), (2, 4, 4, 6, 6)

# id -> (model, shape of the input, steps)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "conv, norm, relu": (lambda: sequential(conv(), BN(4), RELU()), IMAGE, ["0 conv"]),
    "conv without bias, norm, relu6": (lambda: sequential(conv(bias=False), BN(4), RELU6()), IMAGE, ["0 conv"]),
    "norm without parameters": (lambda: sequential(conv(), BN(4, affine=False)), IMAGE, ["0 conv"]),
    "norm past identities": (
        lambda: sequential(conv(), nn.Identity(), nn.Dropout(), BN(4), nn.Identity(), RELU()), IMAGE, ["0 conv"],
    ),
    "depthwise": (lambda: sequential(conv(4, 8, groups=4, bias=False), BN(8), RELU()), IMAGE, ["0 conv"]),
    "reflected": (lambda: sequential(conv(padding_mode="reflect"), BN(4)), IMAGE, ["0:pad =input", "0 conv"]),
    "same, even kernel, circular": (
        lambda: sequential(nn.Conv2d(4, 4, 4, padding="same", padding_mode="circular"), BN(4)), IMAGE,
        ["0:pad =input", "0 conv"],
    ),
    "uneven padding, replicated": (
        lambda: sequential(nn.Conv2d(4, 4, 3, padding=(2, 1), padding_mode="replicate"), BN(4)), IMAGE,
        ["0:pad =input", "0 conv"],
    ),
    "1d": (
        lambda: sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), RELU(), nn.MaxPool1d(2)), SIGNAL, ["0 conv", "3 =0"],
    ),
    "3d": (
        lambda: sequential(nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), RELU(), nn.AvgPool3d(2)), VOLUME, ["0 conv", "3 pool"],
    ),
    "transposed": (
        lambda: sequential(nn.ConvTranspose2d(4, 6, 3, 2, dilation=2, output_padding=1), BN(6), RELU6()), IMAGE,
        ["0 conv-transpose"],
    ),
    "transposed in groups": (
        lambda: sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=2), BN(6), RELU()), IMAGE, ["0 conv-transpose"],
    ),
    "transposed to a size": (
        lambda: net(lambda n, x: n.up(x, output_size=[17, 17]), up=nn.ConvTranspose2d(4, 6, 3, 2)), IMAGE,
        ["up conv-transpose"],
    ),
    "linear, norm, relu": (
        lambda: sequential(nn.Flatten(), nn.Linear(256, 6), nn.BatchNorm1d(6), RELU()), IMAGE, ["0 =input", "1 linear"],
    ),
    "linear over images keeps its norm": (
        lambda: sequential(nn.Linear(8, 6), BN(4), RELU()), IMAGE, ["0 linear", "1 batchnorm"],
    ),
    "norm first": (lambda: sequential(BN(4), RELU(), conv()), IMAGE, ["0 batchnorm", "2 conv"]),
    "norm without statistics": (
        lambda: sequential(conv(), BN(4, track_running_stats=False)), IMAGE, ["0 conv", "1 float"],
    ),
    "norm of a value that is read again": (
        lambda: net(lambda n, x: n.norm(y := n.conv(x)) + y, conv=conv(), norm=BN(4)), IMAGE,
        ["conv conv", "norm batchnorm", ":add add"],
    ),
    "norm used twice": (
        lambda: net(lambda n, x: n.norm(n.conv(x)) + n.norm(x), conv=conv(), norm=BN(4)), IMAGE,
        ["conv conv", "norm batchnorm", ":add add"],
    ),
    "modules used twice": (
        lambda: net(lambda n, x: n.relu(n.conv(n.relu(n.conv(x)))), conv=conv(), relu=RELU()), IMAGE,
        ["conv conv", "conv#2 conv"],
    ),
    "relu of a value that is read again": (
        lambda: net(lambda n, x: n.relu(y := n.conv(x)) * y, conv=conv(), relu=RELU()), IMAGE,
        ["conv conv", "relu activation", ":mul mul"],
    ),
    "relu in place of a value that is read again": (
        lambda: net(lambda n, x: n.relu(y := n.conv(x)) * y, conv=conv(), relu=RELU(inplace=True)), IMAGE,
        ["conv conv", ":mul mul"],
    ),
    "residual in place": (
        lambda: net(lambda n, x: n.conv(x).add_(x).relu_(), conv=conv()), IMAGE, ["conv conv", ":add add"],
    ),
    "clamp with bounds": (lambda: net(lambda n, x: n.c(x).clamp(-0.3, 0.4), c=conv()), IMAGE, ["c conv"]),
    "clamp below only": (lambda: net(lambda n, x: torch.clamp(n.c(x), min=-0.1), c=conv()), IMAGE, ["c conv"]),
    "clamp above only, in place": (lambda: net(lambda n, x: n.c(x).clamp_(max=0.2), c=conv()), IMAGE, ["c conv"]),
    "hardtanh": (lambda: net(lambda n, x: F.hardtanh(n.c(x), min_val=-0.2), c=conv()), IMAGE, ["c conv"]),
    "clamp to tensors": (
        lambda: net(lambda n, x: n.c(x).clamp(n.low, n.high), c=conv(), low=torch.tensor(-0.2), high=torch.tensor(0.3)), IMAGE,
        ["c conv", ":clamp activation"],
    ),
    "clamp of the input": (lambda: net(lambda n, x: F.relu(x)), IMAGE, [":relu activation"]),
    "curved activations": (
        lambda: sequential(conv(), nn.SiLU(), conv(), nn.PReLU(4), nn.Softmax(1)), IMAGE,
        ["0 conv", "1 activation", "2 conv", "3 activation", "4 activation"],
    ),
    "pools": (
        lambda: sequential(nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, 1, count_include_pad=False), nn.Flatten()),
        IMAGE, ["0 =input", "1 pool", "2 =1"],
    ),
    "adaptive pool and mean": (
        lambda: net(lambda n, x: F.adaptive_avg_pool2d(x, (3, 2)).mean((2, 3))), IMAGE,
        [":adaptive_avg_pool2d pool", ":mean pool"],
    ),
    "chunks, cat": (
        lambda: net(lambda n, x: torch.cat([F.relu((p := n.c(x).chunk(2, 1))[0]), p[1]], 1), c=conv()), IMAGE,
        ["c conv", ":chunk =c", ":getitem =c", ":getitem#2 =c", ":relu activation", ":cat concat"],
    ),
    "stack": (
        lambda: net(lambda n, x: torch.stack([x, n.c(x)]).sum(0), c=conv()), IMAGE, ["c conv", ":stack concat", ":sum pool"],
    ),
    "moving axes": (
        lambda: net(lambda n, x: n.c(x).permute(0, 2, 3, 1).contiguous().view(x.size(0), -1, 4), c=conv()), IMAGE,
        ["c conv", ":permute =c", ":contiguous =c", ":view =c"],
    ),
    "dropout, said to be off": (
        lambda: net(lambda n, x: F.dropout(n.c(x), 0.5, n.training), c=conv()), IMAGE, ["c conv"],
    ),
    "scaled add": (lambda: net(lambda n, x: torch.add(n.c(x), x, alpha=2), c=conv()), IMAGE, ["c conv", ":add add"]),
    "constants and numbers": (
        lambda: net(lambda n, x: 1 - (x * n.k - 3), k=torch.randn(4, 1, 1)), IMAGE,
        [":mul batchnorm"],
    ),
    "functional conv": (
        lambda: net(lambda n, x: F.conv2d(x, n.w, n.b, padding=1, groups=2).relu(),
                    w=nn.Parameter(torch.randn(4, 2, 3, 3)), b=nn.Parameter(torch.randn(4))),
        IMAGE, [":conv2d conv"],
    ),
    "functional linear": (
        lambda: net(lambda n, x: F.linear(x, weight=n.w), w=nn.Parameter(torch.randn(5, 8))), IMAGE, [":linear linear"],
    ),
    "computed weight": (
        lambda: net(lambda n, x: F.conv2d(x, n.w * 2), w=nn.Parameter(torch.randn(4, 4, 3, 3))), IMAGE,
        [":conv2d conv"],
    ),
    "upsampling": (
        lambda: net(lambda n, x: F.interpolate(F.interpolate(x, scale_factor=2), scale_factor=2, mode="bilinear")), IMAGE,
        [":interpolate =input", ":interpolate#2 resize"],
    ),
    "padding": (
        lambda: net(lambda n, x: F.pad(F.pad(x, (1, 1)), (1, 1, 0, 0), value=-5.0)), IMAGE,
        [":pad =input", ":pad#2 activation"],
    ),
    "a choice": (
        lambda: net(lambda n, x: torch.where(x > 0, n.c(x), x), c=conv()), IMAGE, [":gt meta", "c conv", ":where concat"],
    ),
    "unknown": (
        lambda: net(lambda n, x: torch.special.i0e(n.c(x)), c=conv()), IMAGE, ["c conv", ":special_i0e float"],
    ),
    "nothing at all": (lambda: nn.Identity(), IMAGE, []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_steps_and_float_values(case: str) -> None:
    make, shape, operations = CASES[case]
    model = trained_looking(make())
    x = torch.randn(shape)
    graph = build(model, x)
    assert outline(graph) == operations
    with torch.no_grad():
        expected = model(x.clone())
    torch.testing.assert_close(float_lane(graph, x), expected, rtol=1e-4, atol=1e-5)
    another = torch.randn(5, *shape[1:])
    with torch.no_grad():
        expected = model(another.clone())
    torch.testing.assert_close(float_lane(graph, another), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_every_float_step_says_why() -> None:
    for make, shape, _ in CASES.values():
        graph = build(trained_looking(make()), torch.randn(shape))
        floats = [s.name for s in graph.operations if s.kind == "float"]
        assert set(floats) <= set(graph.notes)


def test_fused_bounds() -> None:
    bounds = {
        RELU(): (0.0, math.inf),
        RELU6(): (0.0, 6.0),
        nn.Hardtanh(-2.0, 3.0): (-2.0, 3.0),
        nn.Identity(): (-math.inf, math.inf),
        nn.LeakyReLU(): (-math.inf, math.inf),
    }
    for act, expected in bounds.items():
        assert build(sequential(conv(), act), torch.randn(IMAGE)).operation("0").act == expected


def test_folded_weights_equal_the_formula() -> None:
    model = trained_looking(sequential(conv(4, 6, bias=False), BN(6, eps=0.01)))
    graph = build(model, torch.randn(IMAGE))
    layer, norm = model[0], model[1]
    factor = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = layer.weight.double() * factor.view(-1, 1, 1, 1)
    bias = norm.bias.double() - norm.running_mean.double() * factor
    torch.testing.assert_close(graph.weights["0.weight"].double(), weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(graph.biases["0.bias"].double(), bias, rtol=1e-5, atol=1e-6)


def test_macs_and_channels() -> None:
    graph = build(
        sequential(conv(4, 6, groups=2, stride=2), nn.ConvTranspose2d(6, 5, 2), nn.Flatten(), nn.Linear(125, 3)),
        torch.randn(IMAGE),
    )
    assert [s.macs for s in graph.operations] == [0, 6 * 4 * 4 * 2 * 9, 6 * 4 * 4 * 5 * 4, 0, 125 * 3, 0]
    assert [s.channel_axis for s in graph.operations[:3]] == [1, 1, 1]


def test_channel_axis_follows_the_permutation() -> None:
    model = net(lambda n, x: (n.c(x).permute(0, 2, 3, 1) + 1).transpose(1, 3) + 1, c=conv(4, 6))
    graph = build(model, torch.randn(IMAGE))
    axes = {s.name: (s.shape[s.channel_axis], s.channel_axis) for s in graph.operations[1:-1]}
    assert axes == {"c": (6, 1), ":permute": (6, 3), ":add": (6, 3), ":transpose": (6, 1), ":add#2": (6, 1)}


def test_taps_carry_module_paths() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(x) + x) + 1

    graph = build(sequential(Block(), sequential(Block())), torch.randn(IMAGE))
    assert graph.taps == ("input", "0.conv", "0:add", "0:add#2", "1.0.conv", "1.0:add", "1.0:add#2")
    assert [s.layer for s in graph.operations][1:-1] == ["0.conv", "0", "0", "1.0.conv", "1.0", "1.0"]
    assert graph.operation("1.0.conv.weight").name == "1.0.conv"
    with pytest.raises(GraphError, match=r"no tap '0.con'.*0\.conv"):
        graph.operation("0.con")


def test_several_inputs_and_structured_outputs() -> None:
    model = net(lambda n, x, y, flag=True: {"sum": n.c(x) + y, "rest": (n.c(y), None, 3)}, c=conv())
    x, y = torch.randn(IMAGE), torch.randn(IMAGE)
    graph = build(model, (x, y))
    assert [s.name for s in graph.operations if s.argument is not None] == ["input", "input:y"]
    output = float_lane(graph, x, y)
    expected = model(x, y)
    torch.testing.assert_close(output["sum"], expected["sum"])
    torch.testing.assert_close(output["rest"][0], expected["rest"][0])
    assert output["rest"][1:] == (None, 3)


def test_deviation_is_relative_to_the_peak() -> None:
    assert deviation(torch.tensor([2.0, -7.5]), torch.tensor([2.0, -8.0])) == 0.0625
    assert deviation((torch.zeros(2), {"a": torch.ones(1)}), (torch.zeros(2), {"a": torch.ones(1)})) == 0.0


def legacy_state() -> np.ndarray:
    """What users' own numpy code draws from."""
    return np.random.get_state()[1].copy()  # noqa: NPY002


def fingerprint(model: nn.Module) -> dict[str, Any]:
    hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._backward_hooks)) for m in model.modules()]
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "versions": {k: (id(v), v._version, v.requires_grad) for k, v in (*model.named_parameters(), *model.named_buffers())},
        "modes": [m.training for m in model.modules()],
        "inplace": [getattr(m, "inplace", None) for m in model.modules()],
        "hooks": hooks,
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "forward": [m.forward.__func__ for m in model.modules()],
    }


@pytest.mark.parametrize("training", [True, False])
def test_the_users_model_and_random_state_stay_as_they_were(training: bool) -> None:
    model = trained_looking(sequential(conv(), BN(4), nn.ReLU(inplace=True), nn.Dropout(0.5), conv(), BN(4)))
    model.train(training)
    model[1].eval()
    model[4].weight.requires_grad_(False)
    model[0].register_forward_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: None)
    x = torch.randn(IMAGE)
    kept, before = x.clone(), fingerprint(model)
    random_states = torch.get_rng_state(), random.getstate(), legacy_state()
    graph = build(model, x)
    after = fingerprint(model)
    assert before["state"].keys() == after["state"].keys()
    assert all(torch.equal(before["state"][k], after["state"][k]) for k in before["state"])
    assert {k: v for k, v in before.items() if k != "state"} == {k: v for k, v in after.items() if k != "state"}
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert random.getstate() == random_states[1]
    assert np.array_equal(legacy_state(), random_states[2])
    assert torch.is_grad_enabled()
    # and nothing of the graph is the model's own memory
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {t.data_ptr() for t in (*graph.weights.values(), *graph.biases.values())}


def test_training_mode_is_analysed_in_evaluation_mode() -> None:
    model = trained_looking(sequential(conv(), BN(4), nn.Dropout(0.9))).train()
    x = torch.randn(IMAGE)
    expected = copy.deepcopy(model).eval()(x)
    torch.testing.assert_close(float_lane(build(model, x), x), expected.detach(), rtol=1e-4, atol=1e-5)


@torch.fx.wrap
def adds_one_in_place(x: Tensor) -> Tensor:
    return x.add_(1.0)


def halves(x: Tensor) -> Tensor:
    x[:, :2] = x[:, 2:] * 0.5
    return x


def every_other(n: nn.Module, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[..., ::2] = n.c(x)[..., ::2]
    y[:, 1].mul_(2.0)
    return y


# writes through views, all of which change what is read afterwards
WRITES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a part of a chunk": lambda n, x: torch.cat([F.relu((p := (y := n.c(x)).chunk(2, 1))[0], inplace=True), p[1], y], 1),
    "a function that torch.fx would not look into": lambda n, x: adds_one_in_place(y := n.c(x)) + y,
    "a slice": lambda n, x: halves(y := n.c(x)) + y,
    "slices and a selection of zeros": every_other,
    "a flat view": lambda n, x: (y := n.c(x)).view(len(x), -1).clamp_(-0.1, 0.1).sum() + y,
    "a transposed view, read through another": lambda n, x: (
        (z := (y := n.c(x)).transpose(1, 2))[:, 0], y.permute(0, 2, 1, 3).mul_(3.0), z + y.transpose(1, 2),
    )[-1],
    "a part of an unbound tensor": lambda n, x: ((y := n.c(x)).unbind(1)[1].fill_(2.0), y * 1.5)[-1],
    "twice the same": lambda n, x: ((y := n.c(x))[:, 0].add_(1.0), y[:, 0].add_(1.0), y)[-1],
}  # fmt: skip


@pytest.mark.parametrize("case", WRITES)
def test_writing_through_views_changes_what_is_read_afterwards(case: str) -> None:
    model = net(WRITES[case], c=conv()).eval()
    graph = build(model, torch.randn(IMAGE))
    x = torch.randn(3, *IMAGE[1:])
    with torch.no_grad():
        torch.testing.assert_close(float_lane(graph, x), model(x.clone()), rtol=1e-5, atol=1e-6)


def test_a_module_kept_out_of_the_trace_that_writes_to_its_input_is_refused() -> None:
    class Writer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.add_(1.0)

    with pytest.raises(GraphError, match=r"^Writer\b.*x\.clone\(\)"):
        build(sequential(conv(), Writer()), torch.randn(IMAGE), leaf_modules=[Writer])


def test_what_nothing_reads_is_no_part_of_the_graph() -> None:
    graph = build(net(lambda n, x: (n.side(x) + 1.0, n.head(x))[1], side=conv(), head=conv()), torch.randn(IMAGE))
    assert graph.taps == ("input", "head")


def test_a_model_that_is_not_a_module() -> None:
    with pytest.raises(GraphError, match=r"torch\.nn\.Module .*\btype: .*\bConv2d\b"):
        build(nn.Conv2d, torch.randn(IMAGE))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_another_precision_is_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(DataError, match=rf"^0\.weight .*{dtype} .*model\.float\(\)"):
        build(sequential(conv()).to(dtype), torch.randn(IMAGE))


def test_a_batch_that_does_not_fit_is_an_error_with_its_shape() -> None:
    with pytest.raises(DataError, match=r"^Sequential .*\(2, 3, 8, 8\) torch\.float32"):
        build(sequential(conv()), torch.randn(2, 3, 8, 8))


def test_model_with_tensors_that_cannot_be_copied() -> None:
    model = sequential(conv())
    model[0].cached = model[0].weight * 2
    with pytest.raises(GraphError, match=r"^Sequential .*: 0\.cached .*detach\(\)"):
        build(model, torch.randn(IMAGE))


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_a_parametrized_weight_is_an_ordinary_one(norm) -> None:
    model = nn.Sequential(norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.Flatten(), norm(nn.Linear(4 * 36, 5))).eval()
    x = torch.randn(2, 3, 8, 8)
    graph = build(model, x)
    assert [op.kind for op in graph.operations if op.quantized] == ["input", "conv", "linear"]
    assert torch.equal(graph.weights["0.weight"], model[0].weight)
    assert graph.deviation < 1e-6
    assert nn.utils.parametrize.is_parametrized(model[0]), "the user's model is as it was"
