"""torchao's PT2E flow on a plan's grids, against the kit's lanes; and what others quantized, read as a lane."""

from __future__ import annotations

import builtins
import copy
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_networks import NETWORKS, attention_study
from small_networks import mixed_network
from torch import Tensor, nn
from torch.nn import functional as F

import qkit
from qkit import zoo
from qkit.engines import torchao as engine
from qkit.engines.compare import compare
from qkit.errors import DataError, GraphError, MissingExtra, PlanError
from qkit.execution.lanes import Lane, run_lanes
from qkit.quant.grids import quantize
from qkit.quant.plan import Codes, Plan

pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
from qkit.engines.torchao.attention import open_attention  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def quiet(one_thread: None) -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


class Everything(nn.Module):
    """What the small network lacks: repeated blocks, functions on weights, constants, arithmetic with numbers, chunks, resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(inplace=True))
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True))
        self.swish = nn.Hardswish()
        self.up = nn.ConvTranspose2d(4, 6, 2, 2)
        self.weight = nn.Parameter(0.3 * torch.randn(4, 6, 1, 1))
        self.register_buffer("constant", torch.rand(1, 4, 1, 1))
        self.gate = nn.Sigmoid()
        self.classify = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.swish(self.stem(x))
        y = self.block(self.block(x))
        y += x
        a, b = torch.chunk(torch.relu(y), 2, 1)
        x = torch.cat([b, a * 0.5], 1)[:, :4]
        x = F.relu6(F.interpolate(x, scale_factor=2.0))
        x = F.conv2d(self.up(F.max_pool2d(x, 2)), self.weight)
        x = x * self.gate(x.mean((2, 3), keepdim=True)) + self.constant
        x = F.leaky_relu(-(1 - x) / 3.0)
        return self.classify(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def study_of(model: nn.Module, scheme: str = "int8") -> qkit.Study:
    data = [(torch.randn(8, 3, 16, 16), torch.randint(0, 5, (8,))) for _ in range(2)]
    study = qkit.Study(model, data, scheme=scheme)
    study.calibrate(progress=False)
    return study


def own_flow(study: qkit.Study, plan: Plan | None = None) -> tuple[Any, Any]:
    """What a user's code does with torchao."""
    batch = next(iter(study.calibration))
    inputs = batch if isinstance(batch, Tensor) else batch[0]
    program = torch.export.export(copy.deepcopy(study.model).eval(), (inputs,)).module()
    quantizer = engine.quantizer(study.plan if plan is None else plan, study)
    return pt2e.convert_pt2e(pt2e.prepare_pt2e(program, quantizer)), quantizer


def simulated(study: qkit.Study, plan: Plan, x: Tensor) -> dict[str, Tensor]:
    """Codes of the kit's lane at every tap with a grid."""
    codes: dict[str, Tensor] = {}

    def look(op: Any, values: Mapping[str, Tensor]) -> None:
        params = plan.params(op.name)
        if params is not None:
            codes[op.name] = quantize(values["kit"].contiguous(), params)

    run_lanes(study.graph, [Lane("kit", plan)], (x,), observe=look)
    return codes


def shares(study: qkit.Study, plan: Plan, program: Any, x: Tensor) -> tuple[float, float, float, Any]:
    """Shares of equal codes: of all taps, within a step, and of the output; and the batch."""
    batch = next(engine.lane(program, study).run([x]))
    expected = simulated(study, plan, x)
    gaps = {name: (codes.int() - batch.taps[name].codes.int()).abs() for name, codes in expected.items() if name in batch.taps}
    every = torch.cat([gap.flatten() for gap in gaps.values()])
    last = gaps[study.graph.taps[-1]]
    return float((every == 0).float().mean()), float((every <= 1).float().mean()), float((last == 0).float().mean()), batch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("resnet_small", "int8"),
        ("mobilenet_v2_hostile", "int8-per-tensor"),
        pytest.param("resnet_small", "int8-per-tensor", marks=pytest.mark.slow),
        pytest.param("mobilenet_v2_hostile", "int8", marks=pytest.mark.slow),
        pytest.param("inception_small", "int8", marks=pytest.mark.slow),
    ],
)
def test_a_converted_network_has_the_codes_of_the_lane(name: str, scheme: str) -> None:
    case = zoo.load(name)
    study = qkit.Study(case.model, case.calibration, case.evaluation, scheme=scheme)
    study.calibrate(batches=1, progress=False)
    program = engine.converted(study)
    x = next(iter(case.evaluation))[0]
    equal, within, output, batch = shares(study, study.plan, program, x)
    assert output > 0.99
    assert equal > 0.999
    assert within > 0.9999
    assert set(batch.taps) == set(study.graph.taps)
    assert all(tap.params == study.plan.params(name) for name, tap in batch.taps.items())
    # the codes of the weights are in the program, as bytes
    stored = [b for b in program.buffers() if b.dtype == torch.int8]
    for weight, value in study.graph.weights.items():
        codes = quantize(value.contiguous(), study.plan[weight].params)
        assert any(b.shape == codes.shape and torch.equal(b, codes) for b in stored), weight


@pytest.mark.slow
def test_layers_in_sixteen_bits() -> None:
    case = zoo.load("resnet_small")
    study = qkit.Study(case.model, case.calibration, case.evaluation, scheme="int8")
    study.calibrate(batches=1, progress=False)
    wide = study.with_scheme("int16").plan
    layers = ("conv1", "layer2.0.conv1", "layer4.1.conv2", "fc")
    names = [name for layer in layers for name in (layer, f"{layer}.weight")]
    plan = replace(study.plan.with_grids({name: wide[name] for name in names}), bias_bits=64)
    program = engine.converted(study, plan)
    x = next(iter(case.evaluation))[0]
    equal, within, output, batch = shares(study, plan, program, x)
    assert batch.taps["layer2.0.conv1"].codes.dtype == torch.int16
    assert batch.taps["layer2.0.conv2"].codes.dtype == torch.int8
    assert equal > 0.99
    assert within > 0.999
    assert output > 0.95


@pytest.mark.parametrize("scheme", ["int8", "int16", "int8-power-of-two", "int4-weights"])
def test_every_kind_of_operation(scheme: str) -> None:
    study = study_of(Everything(), scheme)
    x = torch.randn(8, 3, 16, 16)
    program = engine.converted(study)
    equal, within, output, batch = shares(study, study.plan, program, x)
    assert output > 0.99
    assert equal > 0.999
    assert within == 1.0
    # a constant's codes are folded into the program, where no operation makes them
    assert set(study.graph.taps) - set(batch.taps) == {"constant"}


class LoneNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.block = nn.Sequential(self.conv, nn.BatchNorm2d(3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        # a layer that is read without its norm too keeps it apart
        return self.block(self.block(self.norm(x))) + self.conv(x)


def test_batch_norms_that_no_convolution_takes_up(caplog: pytest.LogCaptureFixture) -> None:
    model = LoneNorm().train()
    for _ in range(3):
        model(2.0 + torch.randn(8, 3, 16, 16))
    study = study_of(model.eval())
    logging.disable(logging.NOTSET)
    with caplog.at_level(logging.WARNING, "qkit.engines.torchao"):
        program = engine.converted(study)
    _, within, output, _ = shares(study, study.plan, program, torch.randn(8, 3, 16, 16))
    # their scales are in the model as the lane has them, their offsets are not rounded
    assert re.search(r"\bbatch norm\b.*: \w", caplog.text)
    assert within > 0.99
    assert output > 0.9
    # torchao folds the repeated one into its convolution, which the kit does not
    with pytest.raises(GraphError, match=r"block\.1.*torchao folds"):
        own_flow(study)


def test_the_users_own_export() -> None:
    study = study_of(mixed_network())
    program, quantizer = own_flow(study)
    _, within, output, batch = shares(study, study.plan, program, torch.randn(8, 3, 16, 16))
    assert output == within == 1.0
    assert quantizer.notes == ()
    assert set(batch.taps) == set(study.graph.taps)


def test_operations_that_move_numbers_share_their_inputs_grid() -> None:
    study = study_of(mixed_network())
    program, _ = own_flow(study)
    pool = next(n for n in program.graph.nodes if "max_pool" in n.name)
    behind = next(iter(pool.users))
    assert "quantize_per_tensor" in str(behind.target)
    assert behind.args[1] == float(study.plan[":add"].params.scale)


def test_biases_are_integers_at_the_scale_of_the_sums() -> None:
    study = study_of(mixed_network())
    program, _ = own_flow(study)
    codes = [b for b in program.buffers() if b.dtype == torch.int32 and b.shape == (5,) and bool(b.any())]
    scale = study.plan["average"].params.scale.double() * study.plan["classify.weight"].params.scale.double()
    expected = torch.round(study.model.classify.bias.double() / scale)
    assert any(bool(((b - expected).abs() <= 1).all()) for b in codes)


def test_biases_that_32_bits_do_not_hold_stay_float() -> None:
    study = study_of(mixed_network(), "int16")
    with torch.no_grad():
        study.graph.biases["classify.bias"].fill_(1e6)
    quantizer = engine.quantizer(study.plan, study)
    program = torch.export.export(copy.deepcopy(study.model), (torch.randn(8, 3, 16, 16),)).module()
    pt2e.prepare_pt2e(program, quantizer)
    assert any("bias" in note and "32 bits" in note and "classify" in note for note in quantizer.notes)


def treated(study: qkit.Study) -> Plan:
    """A plan with codes that are not the nearest, and corrected biases."""
    plan = study.plan
    for name in ("side.weight", "stem.weight"):
        params = plan[name].params
        codes = quantize(study.graph.weights[name].contiguous(), params).int()
        moved = (codes + torch.randint_like(codes, -1, 2)).clamp(params.qmin, params.qmax).to(params.dtype)
        plan = plan.with_grid(name, replace(plan[name], codes=Codes(moved)))
    return replace(plan, corrections={"side": tuple(torch.linspace(-0.3, 0.3, 4).tolist()), "stem": (0.1,) * 8})


def test_chosen_codes_and_corrections_are_in_the_model() -> None:
    study = study_of(mixed_network())
    plan = treated(study)
    before = copy.deepcopy(study.model.state_dict())
    program = engine.converted(study, plan)
    _, within, output, _ = shares(study, plan, program, torch.randn(8, 3, 16, 16))
    assert within == output == 1.0
    stored = [b for b in program.buffers() if b.dtype == torch.int8]
    assert any(b.shape == (4, 8, 3, 3) and torch.equal(b, plan["side.weight"].codes.tensor) for b in stored)
    after = study.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_observers_that_cannot_carry_a_plan_refuse() -> None:
    study = study_of(mixed_network())
    with pytest.raises(PlanError, match=r"codes .* for (side|stem)\.weight.*torchao\.model"):
        own_flow(study, replace(treated(study), corrections={}))
    with pytest.raises(PlanError, match=r"\bbias\b.* side\b.*torchao\.model"):
        own_flow(study, replace(study.plan, corrections={"side": (0.5, 0.0, 0.0, 0.0)}))


def test_the_model_computes_the_lane_in_float() -> None:
    study = study_of(mixed_network())
    plan = treated(study)
    model = engine.model(study, plan)
    x = torch.randn(8, 3, 16, 16)
    only_weights = replace(plan.weights_only(), bias_bits=None)
    expected = run_lanes(study.graph, [Lane("kit", only_weights)], (x,))["kit"]
    assert torch.allclose(model(x), expected, atol=1e-3)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in study.model.named_modules()]


@pytest.mark.slow
def test_training_on_the_grids() -> None:
    study = study_of(mixed_network())
    training = study.model.training
    program = engine.prepared(study, qat=True)
    grids = {name: buffer.clone() for name, buffer in program.named_buffers() if name.endswith((".scale", ".zero_point"))}
    optimizer = torch.optim.SGD(program.parameters(), lr=1e-2)
    x, y = next(iter(study.calibration))
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(program(x), y)
        loss.backward()
        losses.append(float(loss))
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in program.parameters())
        optimizer.step()
    assert losses[-1] < losses[0]
    assert len(grids) == 2 * len(study.plan.grids)
    buffers = dict(program.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in grids.items())
    assert study.model.training == training


@pytest.mark.slow
def test_a_trained_network_converts_to_the_plans_grids() -> None:
    study = study_of(mixed_network())
    program = engine.prepared(study, qat=True)
    x, y = next(iter(study.calibration))
    optimizer = torch.optim.SGD(program.parameters(), lr=1e-3)
    F.cross_entropy(program(x), y).backward()
    optimizer.step()
    lane = engine.lane(pt2e.convert_pt2e(program), study)
    batch = next(lane.run([x]))
    assert {name: tap.params for name, tap in batch.taps.items()} == {name: study.plan.params(name) for name in study.graph.taps}


def test_the_prepared_program_computes_on_the_grids() -> None:
    study = study_of(mixed_network())
    x = torch.randn(8, 3, 16, 16)
    prepared, converted = engine.prepared(study), engine.converted(study)
    step = float(study.plan["classify"].params.scale)
    assert float((prepared(x) - converted(x)).abs().max()) < 1.01 * step


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_other_batch_sizes(batch: int) -> None:
    study = study_of(mixed_network())
    lane = engine.lane(engine.converted(study), study)
    assert next(lane.run([torch.randn(batch, 3, 16, 16)])).outputs.shape == (batch, 5)


class OneSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("noise", torch.randn(8, 4, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.noise


def test_a_program_of_one_batch_size_says_so() -> None:
    study = study_of(OneSize())
    lane = engine.lane(engine.converted(study), study)
    assert next(lane.run([torch.randn(8, 3, 16, 16)])).outputs.shape == (8, 4, 16, 16)
    with pytest.raises(DataError, match=r"\(3, 3, 16, 16\).*\bbatch size\b"):
        next(lane.run([torch.randn(3, 3, 16, 16)]))


def fx_quantized(model: nn.Module, x: Tensor, *, reference: bool = False) -> Any:
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = quantize_fx.prepare_fx(copy.deepcopy(model).eval(), get_default_qconfig_mapping("x86"), (x,))
        prepared(x)
        return (quantize_fx.convert_to_reference_fx if reference else quantize_fx.convert_fx)(prepared)


@pytest.mark.parametrize("name", ["vgg_small", "resnet_small", pytest.param("mobilenet_v2_lite", marks=pytest.mark.slow)])
def test_a_network_that_torch_fx_quantized(name: str) -> None:
    case = zoo.load(name)
    study = qkit.Study(case.model, case.calibration, case.evaluation)
    x = next(iter(case.evaluation))[0]
    program = fx_quantized(case.model, x)
    seen: dict[str, Tensor] = {}
    for path, module in program.named_modules():
        if path in study.graph.taps and hasattr(module, "zero_point"):
            module.register_forward_hook(lambda _m, _i, output, path=path: seen.update({path: output}))
    lane = engine.lane(program, study, name="fx")
    batch = next(lane.run([x]))
    assert (lane.name, lane.bits, lane.notes) == ("fx", 8, ())
    assert set(batch.taps) == set(study.graph.taps)
    assert len(seen) > 8
    for path, output in seen.items():
        assert torch.equal(batch.taps[path].codes, output.int_repr())
        assert torch.allclose(batch.taps[path].values, output.dequantize())


def test_a_reference_network_of_torch_fx() -> None:
    case = zoo.load("resnet_small")
    study = qkit.Study(case.model, case.calibration, case.evaluation)
    x = next(iter(case.evaluation))[0]
    batch = next(engine.lane(fx_quantized(case.model, x, reference=True), study).run([x]))
    assert set(batch.taps) == set(study.graph.taps)
    assert all(tap.codes is not None for tap in batch.taps.values())


@pytest.mark.slow
def test_a_network_that_another_quantizer_converted() -> None:
    x86 = pytest.importorskip("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    case = zoo.load("mobilenet_v2_lite")
    study = qkit.Study(case.model, case.calibration, case.evaluation)
    x = next(iter(case.evaluation))[0]
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = pt2e.prepare_pt2e(torch.export.export(copy.deepcopy(case.model).eval(), (x,)).module(), quantizer)
    prepared(x)
    lane = engine.lane(pt2e.convert_pt2e(prepared), study)
    batch = next(lane.run([x]))
    assert set(batch.taps) == set(study.graph.taps)
    assert any("float" in note for note in lane.notes)
    floats: dict[str, Tensor] = {}
    run_lanes(study.graph, [Lane("f")], (x,), observe=lambda op, values: floats.update({op.name: values["f"].clone()}))
    for name, tap in batch.taps.items():
        noise = (tap.values - floats[name]).square().sum() / floats[name].square().sum()
        assert float(noise) < 0.01, name  # 20 dB at the least: the right tensor, 8 bits


class Overwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.swish = nn.Hardswish(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.swish(self.norm(self.conv(x)))


def test_nothing_that_is_overwritten_in_place_reaches_the_lane() -> None:
    study = study_of(Overwritten().eval())
    plan = study.plan.only(["input"])
    x = torch.randn(4, 3, 16, 16)
    lane = engine.lane(engine.converted(study, plan), study)
    tap = next(lane.run([x])).taps["conv"]
    floats: dict[str, Tensor] = {}
    lanes = [Lane("kit", plan)]
    run_lanes(study.graph, lanes, (x,), observe=lambda op, values: floats.update({op.name: values["kit"].clone()}))
    assert tap.codes is None
    assert torch.allclose(tap.values, floats["conv"], atol=1e-5)


class ReadLater(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = y * 2
        y.relu_()
        return y + z


def test_a_tensor_that_is_overwritten_and_read_again_is_refused() -> None:
    study = study_of(ReadLater().eval())
    with pytest.raises(GraphError, match=r"^conv .*\brelu_\b.*inplace=False"):
        own_flow(study)


def test_what_is_no_converted_program() -> None:
    study = study_of(mixed_network())
    with pytest.raises(GraphError, match="GraphModule"):
        engine.lane(study.model, study)
    program = torch.export.export(study.model, (torch.randn(8, 3, 16, 16),)).module()
    with pytest.raises(GraphError, match="convert_pt2e"):
        engine.lane(program, study)
    other = study_of(Everything())
    with pytest.raises(PlanError, match="another model"):
        engine.quantizer(other.plan, study)
    with pytest.raises(GraphError, match=r"torch\.export\.export\(model, inputs\)"):
        pt2e.prepare_pt2e(program, engine.quantizer(other.plan, other))


def test_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(mixed_network())
    found = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torchao"):
            raise ImportError("No module named 'torchao'")
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"'\.\[torchao\]'"):
        engine.quantizer(study.plan, study)
    with pytest.raises(MissingExtra, match=r"'\.\[torchao\]'"):
        engine.converted(study)
    assert engine.lane(fx_quantized(study.model, torch.randn(8, 3, 16, 16)), study).bits == 8


ATTENTION = [
    pytest.param(name, scheme, marks=() if (name, scheme) == ("multihead", "int8") else pytest.mark.slow)
    for name in NETWORKS
    if name != "convnext"
    for scheme in ("int8", "int8-per-tensor", "int8-symmetric", "int16")
]


@pytest.mark.parametrize(("name", "scheme"), ATTENTION)
def test_attention_and_norms_have_the_codes_of_the_lane(name: str, scheme: str) -> None:
    study = attention_study(name, scheme)
    found = compare(study, engine.lane(engine.converted(study), study), plan=study.plan, progress=False)
    assert found.first is None, repr(found)
    counted = [sums.local for sums in found.taps.values()]
    assert sum(s.same + s.one for s in counted) >= 0.999 * sum(s.count for s in counted)
    assert min(steps.within_one for steps in counted) >= 0.999
    assert not found.grids
    # constants are folded into the codes that what reads them holds
    kinds = {op.name: op.kind for op in study.graph.operations}
    assert {kinds[tap] for tap in found.missing} <= {"constant"}


@pytest.mark.slow
def test_a_users_own_flow_opens_attention_too() -> None:
    study = attention_study("masks")
    program, _ = own_flow(study)
    found = compare(study, engine.lane(program, study), plan=study.plan, progress=False)
    assert found.first is None
    assert {op.name for op in study.graph.operations if op.kind == "matmul"} <= set(found.taps)


@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_opened_attention_computes_what_torch_does(mask: str | None) -> None:
    class Attend(nn.Module):
        def forward(self, q: Tensor, k: Tensor, m: Tensor | None) -> Tensor:
            return F.scaled_dot_product_attention(q, k, k, attn_mask=m, is_causal=mask is None, scale=0.3)

    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 5, 8, generator=draw) for _ in range(2))
    given = None if mask is None else torch.rand(5, 5, generator=draw) > 0.5
    if given is not None:
        given[2] = False
        given[0] = True
    if mask == "float":
        given = torch.zeros(5, 5).masked_fill(~given, -torch.inf)
    program = torch.export.export(Attend(), (q, k, given)).module()
    opened = open_attention(copy.deepcopy(program))
    assert not any("scaled_dot" in str(node.target) for node in opened.graph.nodes)
    torch.testing.assert_close(opened(q, k, given), program(q, k, given), rtol=1e-5, atol=1e-6)
