"""The fake-quantized network against torch's own fake-quantize modules, placed by hand, and against the kit's lanes."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from small_networks import Mixed, fake_quantized, plain_run
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

import qkit
from qkit.execution.lanes import Lane, run_lanes
from qkit.graph import build
from qkit.qat import QatModule, wrap
from qkit.quant.grids import QuantParams, QuantSpec, quantize
from qkit.quant.plan import FLOAT, Plan
from qkit.quant.schemes import PRESETS, Scheme

MIXED_WIDTHS = replace(
    PRESETS["int8"], name="mixed widths", bias_bits=64,
    overrides={"side": QuantSpec(16, symmetric=False), "side.weight": QuantSpec(16, per_channel=True, narrow=True)},
)  # fmt: skip
SOME_FLOAT = replace(PRESETS["int8"], name="some float", overrides={"depthwise": None, "project.weight": None, "input": None})
NARROW_SUMS = replace(PRESETS["int8-per-tensor"], name="18-bit sums", accumulator_bits=18)
CHANNELS = replace(PRESETS["int8"], name="activations per channel", activation=QuantSpec(symmetric=False, per_channel=True))

#: Schemes, and whether their steps are learned.
FOLLOWED = [(scheme, False) for scheme in (*PRESETS, MIXED_WIDTHS, SOME_FLOAT, CHANNELS)]
LEARNED = [("int8", True), ("int8-per-channel-power-of-two", True), (MIXED_WIDTHS, True), (CHANNELS, True)]
ROUND_TRIPS = [
    (scheme, False) for scheme in ("int8", "int8-per-tensor", "int8-power-of-two", "int16", "int4-weights", NARROW_SUMS)
]


def scheme_id(value: object) -> str | None:
    return value.name if isinstance(value, Scheme) else {True: "learned", False: "followed"}.get(value)  # type: ignore[call-overload]


def torch_module(p: QuantParams) -> nn.Module:
    """torch's FakeQuantize of that grid, switched on, its observer off."""
    from torch.ao.quantization import FakeQuantize, MinMaxObserver, PerChannelMinMaxObserver

    kind = torch.per_tensor_affine if p.axis is None else torch.per_channel_affine
    observer = MinMaxObserver if p.axis is None else PerChannelMinMaxObserver
    options = {} if p.axis is None else {"ch_axis": p.axis}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization is announced for removal
        module = FakeQuantize(observer, p.qmin, p.qmax, qscheme=kind, dtype=torch.qint32, **options)
    module.disable_observer()
    module.scale = p.scale.reshape(-1)
    module.zero_point = p.zero_point.reshape(-1)
    return module


@pytest.mark.parametrize(("scheme", "learned"), FOLLOWED + LEARNED, ids=scheme_id)
def test_evaluation_is_torchs_operators_by_hand(
    mixed: Mixed, images: Tensor, plan_for, scheme: str | Scheme, learned: bool
) -> None:
    plan = plan_for(mixed, scheme, method="mse", weight_method="mse")
    module = wrap(mixed, images, total_epochs=4, plan=plan, learn_steps=learned).eval()
    assert torch.equal(module(images), plain_run(mixed, images, plan)["classify"])
    assert module.plan() == plan
    assert list(module.plan().grids) == list(plan.grids)
    assert {name: (g.spec, g.weight) for name, g in module.plan().grids.items()} == {
        name: (g.spec, g.weight) for name, g in plan.grids.items()
    }


class ByHand(nn.Module):
    """`Mixed` with batch norm folded and torch's FakeQuantize modules where an integer engine holds tensors; float biases."""

    def __init__(self, model: Mixed, plan: Plan) -> None:
        super().__init__()
        self.stem = fuse_conv_bn_eval(model.stem, model.stem_norm)
        self.depthwise = fuse_conv_bn_eval(model.depthwise, model.depthwise_norm)
        self.project, self.side, self.classify = model.project, model.side, model.classify
        self.requires_grad_(True)
        self.q = nn.ModuleDict({name.replace(".", "/"): torch_module(grid.params) for name, grid in plan.grids.items()})

    def conv(self, name: str, x: Tensor) -> Tensor:
        layer = getattr(self, name)
        weight = self.q[f"{name}/weight"](layer.weight)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, 1, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.q["stem"](F.relu6(self.conv("stem", self.q["input"](x))))
        y = self.q["depthwise"](F.relu(self.conv("depthwise", x)))
        x = self.q[":add"](F.relu(self.q["project"](self.conv("project", y)) + x))
        x = self.q[":cat"](torch.cat([F.max_pool2d(x, 2), self.q["side"](self.conv("side", x))], 1))
        x = self.q["average"](F.avg_pool2d(x, 2))
        weight = self.q["classify/weight"](self.classify.weight)
        return self.q["classify"](F.linear(torch.flatten(x, 1), weight, self.classify.bias))


@pytest.mark.parametrize("scheme", ["int8", "int8-per-tensor", "int8-power-of-two", "int16"])
def test_outputs_and_gradients_are_those_of_torchs_modules(mixed: Mixed, images: Tensor, plan_for, scheme: str) -> None:
    """With frozen norms and grids, in training mode but for dropout."""
    plan = plan_for(mixed, replace(PRESETS[scheme], bias_bits=None), method="percentile", percentile=99.0)
    truth = ByHand(mixed, plan)
    module = wrap(mixed, images, total_epochs=4, plan=plan, freeze_norms_at=0, freeze_ranges_at=0)
    module.train()
    module.model.drop.p = 0.0
    grad = torch.randn(8, 5)
    ours, theirs = module(images), truth(images)
    assert torch.equal(ours, theirs)
    ours.backward(grad)
    theirs.backward(grad)
    for name in ("project", "side", "classify"):
        for ours_p, theirs_p in zip(getattr(module.model, name).parameters(), getattr(truth, name).parameters(), strict=True):
            torch.testing.assert_close(ours_p.grad, theirs_p.grad, rtol=1e-5, atol=1e-6)
    for conv, norm in (("stem", "stem_norm"), ("depthwise", "depthwise_norm")):
        # by the chain rule through the fold: d/dw = scale * d/dfolded
        bn, fused = getattr(module.model, norm), getattr(truth, conv)
        scale = (bn.weight * torch.rsqrt(bn.running_var + bn.eps)).detach()
        found = getattr(module.model, conv).weight.grad
        torch.testing.assert_close(found, fused.weight.grad * scale.view(-1, 1, 1, 1), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(bn.bias.grad, fused.bias.grad, rtol=1e-5, atol=1e-6)


def test_taps_and_names_are_the_kits(mixed: Mixed, images: Tensor) -> None:
    module = wrap(mixed, images, total_epochs=2)
    graph = build(mixed, images)
    module(images)
    plan = module.plan()
    assert [name for name, grid in plan.grids.items() if not grid.weight] == list(graph.taps)
    assert {name for name, grid in plan.grids.items() if grid.weight} == set(graph.weights)


def trained(module: QatModule, images: Tensor, batches: int = 6) -> QatModule:
    optimizer = torch.optim.SGD(module.parameters(), 0.02, momentum=0.9)
    targets = torch.arange(len(images)) % 5
    for _ in range(batches):
        module.train()
        optimizer.zero_grad()
        F.cross_entropy(module(images), targets).backward()
        optimizer.step()
    return module.eval()


@pytest.mark.parametrize(("scheme", "learned"), ROUND_TRIPS + LEARNED[:3], ids=scheme_id)
def test_the_study_of_the_trained_network_has_its_codes(
    mixed: Mixed, images: Tensor, plan_for, scheme: str | Scheme, learned: bool
) -> None:
    plan = plan_for(mixed, scheme, weight_method="mse")
    module = trained(wrap(mixed, images, total_epochs=4, plan=plan, learn_steps=learned), images)
    study = module.study(calibration=[images], metric="agreement")
    assert study.plan == module.plan() != plan
    for name, weight in module._folded_weights().items():
        with torch.no_grad():
            rounded = module._quantizer(name)(weight)
        params = study.plan[name].params
        assert torch.equal(study.graph.weights[name], weight)
        assert torch.equal(quantize(rounded, params), quantize(study.graph.weights[name], params))
    with torch.no_grad():
        ours = module(images)
    lane = run_lanes(study.graph, [Lane("lane", study.plan)], (images,))["lane"]
    p = study.plan["classify"].params
    apart = ((ours - lane) / p.scale).abs().round()
    if p.bits <= 8:
        assert float((apart > 1).double().mean()) <= 0.001
        assert torch.equal(ours.argmax(1), lane.argmax(1))
    # sums in another order end on the other side of a tie, and later layers amplify that
    assert float((ours - lane).abs().max()) < 0.02 * float(lane.abs().max())


def test_a_layer_called_twice_has_a_grid_for_each_call_and_one_weight(images: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.conv(self.norm(self.conv(x))))

    module = trained(wrap(Twice(), images, total_epochs=2, learn_steps=True, plan=None), images[:, :, :5, :1], 0)
    module.train()
    module(images).square().sum().backward()
    assert module.model.conv.weight.grad is not None
    plan = module.eval().plan()
    assert list(plan.grids) == ["input", "conv.weight", "conv", "norm.weight", "norm", "conv#2"]
    lane = run_lanes(build(module.float_model(), images), [Lane("lane", plan)], (images,))["lane"]
    with torch.no_grad():
        ours = module(images)
    assert float(((ours - lane) / plan["conv#2"].params.scale).abs().max().round()) <= 1


def test_functional_layers_join_and_transposed_ones(images: Tensor) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3, 3, 3) * 0.3)
            self.bias = nn.Parameter(torch.randn(6))
            self.up = nn.ConvTranspose2d(6, 4, 2, stride=2, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.grouped = nn.ConvTranspose2d(4, 4, 2, groups=2)
            self.shift = nn.Parameter(torch.randn(4, 1, 1))
            self.linear = nn.Linear(4, 6, bias=False)
            self.norm1 = nn.BatchNorm1d(6)
            self.prelu = nn.PReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d(x, self.weight, self.bias, padding=1).relu_()
            x = self.grouped(self.norm(self.up(x))) + self.shift
            x = F.dropout(x, 0.5, self.training)
            return self.prelu(self.norm1(self.linear(x.mean((2, 3))))).view(x.shape[0], 2, -1).transpose(1, 2)[:, 1:]

    model = Odd()
    module = wrap(model, images, total_epochs=2)
    module.train()
    module(images).sum().backward()
    assert not [name for name, p in module.named_parameters() if p.grad is None]
    a, b = module(images), module(images)
    assert not torch.equal(a, b), "dropout has to be active in training"
    module.eval()
    with torch.no_grad():
        ours = module(images)
        assert torch.equal(ours, module(images))
    graph = build(module.float_model(), images)
    lane = run_lanes(graph, [Lane("lane", module.plan())], (images,))["lane"]
    step = module.plan()["prelu"].params.scale
    assert float(((ours - lane) / step).abs().max().round()) <= 1


def test_a_plan_without_grids_is_the_float_network(mixed: Mixed, images: Tensor) -> None:
    module = wrap(mixed, images, total_epochs=2, plan=FLOAT).eval()
    torch.testing.assert_close(module(images), mixed(images))
    assert module.plan() == FLOAT


def test_weights_alone(mixed: Mixed, images: Tensor, plan_for) -> None:
    plan = plan_for(mixed, "int8").weights_only()
    module = wrap(mixed, images, total_epochs=2, plan=plan).eval()
    assert torch.equal(module(images), plain_run(mixed, images, plan)["classify"])


def test_parametrized_weights_are_trained_behind_their_parametrization(images: Tensor) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU())
    module = wrap(model, images, total_epochs=2)
    module.train()
    module(images).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    study = trained(module, images[:, :, :4, :4], 0).study([images], metric="agreement")
    conv, norm, _ = module.float_model()
    with torch.no_grad():
        by_hand = conv.weight * (norm.weight * torch.rsqrt(norm.running_var + norm.eps)).view(-1, 1, 1, 1)
    assert torch.equal(study.graph.weights["0.weight"], by_hand)


def test_fake_quantization_helper_agrees_with_the_kit() -> None:
    """`fake_quantized`, the truth of these tests, is what `qkit.fake_quantize` computes."""
    x = torch.randn(4, 5)
    p = QuantSpec().params(-1.0, 1.0)
    plan = Plan({"x": qkit.quant.plan.Grid(QuantSpec(), p, "manual")})
    assert torch.equal(fake_quantized(x, plan, "x"), qkit.fake_quantize(x, p))
