"""Lanes whose operations without weights compute on integers: against int64 and float64, compiled and plain, and what they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkit
from qkit.execution import integer_forms
from qkit.execution.form_table import form_table, in_float
from qkit.execution.lanes import Lane, run_lanes
from qkit.graph.normal_form.patterns import attention_weights
from qkit.quant.arithmetic import FLOAT_INSIDE, FULL_INTEGER, Arithmetic
from qkit.quant.grids import QuantSpec, as_integers
from qkit.quant.plan import Plan


class Calls(nn.Module):
    """A function as a network, with the parameters that it wants."""

    def __init__(self, function: Callable[..., Tensor], *parameters: Tensor) -> None:
        super().__init__()
        self.function = function
        for i, parameter in enumerate(parameters):
            self.register_parameter(f"p{i}", nn.Parameter(parameter))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parameters())


class Attention(nn.Module):
    """Attention as people write it, of `heads` heads on (N, T, C)."""

    def __init__(self, width: int = 16, heads: int = 2, *, fused: bool = False) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.fused = heads, fused

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1) @ v
        return x + F.gelu(self.proj(y.transpose(1, 2).reshape(n, t, c)))


def made(model: nn.Module, x: Tensor, scheme: Any = "int8-full-integer") -> tuple[Any, Plan]:
    study = qkit.Study(model.eval(), calibration=[x], evaluation=[x], scheme=scheme)
    return study.graph, study.calibrate("minmax", progress=False)


def lane(graph: Any, plan: Plan, x: Tensor, arithmetic: Arithmetic | None = None) -> Tensor:
    plan = plan if arithmetic is None else replace(plan, arithmetic=arithmetic)
    return run_lanes(graph, [Lane("q", plan)], (x,))["q"]  # type: ignore[no-any-return]


def _weights() -> tuple[Tensor, Tensor]:
    return torch.linspace(0.5, 2.0, 16), torch.linspace(-1.0, 1.0, 16)


def _grn(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    norm = torch.norm(x, p=2, dim=(1,), keepdim=True)
    return gamma * (x * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6))) + beta + x


CHANNELS = torch.linspace(0.5, 2.0, 16).view(1, 16, 1)
CASES: dict[str, tuple[Callable[[], nn.Module], str, float]] = {
    # how it is written, its switch, and by how many steps it may be off the ideal
    "silu": (lambda: Calls(F.silu), "pointwise", 0),
    "gelu": (lambda: Calls(F.gelu), "pointwise", 0),
    "hard swish": (lambda: Calls(F.hardswish), "pointwise", 0),
    "reciprocal": (lambda: Calls(lambda x: 1.0 / (x.abs() + 0.5)), "pointwise", 0),
    "times a number": (lambda: Calls(lambda x: x * 0.3), "pointwise", 0),
    "clamp": (lambda: Calls(lambda x: x.clamp(-0.7, 0.9)), "pointwise", 0),
    "square": (lambda: Calls(lambda x: x * x), "pointwise", 0),
    "softmax": (lambda: Calls(lambda x: x.softmax(-1)), "softmax", 1),
    "softmax over channels": (lambda: Calls(lambda x: x.softmax(1)), "softmax", 1),
    "softmin": (lambda: Calls(lambda x: F.softmin(x, -1)), "softmax", 1),
    "layer norm": (lambda: Calls(lambda x, w, b: F.layer_norm(x, (16,), w, b), *_weights()), "norm", 1),
    "layer norm without weights": (lambda: Calls(lambda x: F.layer_norm(x, (16,))), "norm", 1),
    "group norm": (lambda: nn.GroupNorm(4, 16), "norm", 1),
    "instance norm": (lambda: nn.InstanceNorm1d(16, affine=True), "norm", 1),
    "rms norm": (lambda: Calls(lambda x, w: F.rms_norm(x, (16,), w), _weights()[0]), "norm", 1),
    "norm of channels": (
        lambda: Calls(lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()), "norm", 1,
    ),
    "normalized": (lambda: Calls(lambda x: F.normalize(x, dim=-1)), "norm", 1),
    "response norm": (lambda: Calls(_grn, *(t.view(1, 1, 16) for t in _weights())), "norm", 1),
    "product of matrices": (lambda: Calls(lambda x: x @ x.transpose(-2, -1)), "product", 1),
    "einsum": (lambda: Calls(lambda x: torch.einsum("nij,nkj->nik", x, x * 0.5)), "product", 1),
    "product of elements": (lambda: Calls(lambda x: x * torch.sigmoid(x[:, :1])), "product", 1),
    "sum": (lambda: Calls(lambda x: x + torch.tanh(x)), "rescale", 1),
    "sum of broadcast": (lambda: Calls(lambda x: x + torch.tanh(x[:, :1])), "rescale", 1),
    "difference": (lambda: Calls(lambda x: torch.sub(x, torch.tanh(x), alpha=0.5)), "rescale", 1),
    "sum with a constant": (lambda: Calls(lambda x, p: x + p, CHANNELS), "rescale", 1),
    "concatenation": (lambda: Calls(lambda x: torch.cat([x, torch.tanh(x)], 1)), "rescale", 1),
    "mean": (lambda: Calls(lambda x: x.mean(-1)), "rescale", 1),
    "average pool": (lambda: nn.AvgPool1d(3, 1, 1), "rescale", 1),
    "global pool": (lambda: nn.AdaptiveAvgPool1d(1), "rescale", 1),
    "greater of two": (lambda: Calls(lambda x: torch.maximum(x, torch.tanh(x[:, :1]))), "rescale", 1),
}  # fmt: skip


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 16, 16) * torch.linspace(0.3, 1.5, 16)


def _steps(graph: Any, plan: Plan, a: Tensor, b: Tensor) -> Tensor:
    grid = plan.params(graph.operations[graph.operations[-1].inputs[0]].tap)
    assert grid is not None
    return (as_integers(a, grid) - as_integers(b, grid)).abs()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("bits", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_each_form_is_next_to_float_inside_and_compiled_is_plain(
    name: str, bits: int, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, switch, off = CASES[name]
    scheme = qkit.Scheme("s", None, QuantSpec(bits=bits, symmetric=False), arithmetic=FULL_INTEGER.at_bits(bits))
    graph, plan = made(make(), x, scheme)
    last = graph.operations[graph.operations[-1].inputs[0]]
    form = integer_forms.form_of(last)
    assert form is not None
    assert form.switch == switch
    assert in_float(graph, plan) == {}
    found = lane(graph, plan, x)
    ideal = lane(graph, plan, x, FLOAT_INSIDE)
    # at 16 bits, tables have nodes, and 24 bits inside are a step or two of the grid
    assert float(_steps(graph, plan, found, ideal).max()) <= (
        off if bits == 8 else 24 if switch in ("pointwise", "product") else 4
    )
    alone = lane(graph, plan, x, replace(FLOAT_INSIDE, **{switch: getattr(FULL_INTEGER, switch)}, inside=plan.arithmetic.inside))
    assert alone.shape == found.shape
    monkeypatch.setattr(integer_forms, "integer_kernels", lambda: None)
    assert torch.equal(lane(graph, plan, x), found)


@pytest.mark.parametrize("form", ["table", "polynomial", "shift"])
def test_softmax_forms_differ_by_what_they_state(form: Any, x: Tensor) -> None:
    graph, plan = made(Calls(lambda x: x.softmax(-1)), x)
    found = lane(graph, plan, x, replace(FULL_INTEGER, softmax=form))
    ideal = lane(graph, plan, x, FLOAT_INSIDE)
    off = float(form_table(graph, replace(plan, arithmetic=replace(FULL_INTEGER, softmax=form)))["off"].iloc[-1])
    assert float(_steps(graph, plan, found, ideal).max()) <= math.ceil(off + 0.5)
    assert bool((found != ideal).any()) == (form != "table")


@pytest.mark.parametrize("fused", [False, True])
def test_an_attention_block_is_integers_all_through(fused: bool, x: Tensor) -> None:
    torch.manual_seed(1)
    graph, plan = made(Attention(fused=fused), x)
    assert in_float(graph, plan) == {}
    table = form_table(graph, plan)
    assert set(table["computed"]) == {"weights", "table", "integer", "multiplier"}
    assert float(table["off"].max(skipna=True)) < 0.1
    found, ideal = lane(graph, plan, x), lane(graph, plan, x, FLOAT_INSIDE)
    assert float((_steps(graph, plan, found, ideal) <= 1).float().mean()) > 0.99
    plain = form_table(graph, replace(plan, arithmetic=FLOAT_INSIDE))
    assert plain.loc[table.index[0], "computed"].startswith("float: the scheme has norm")


def test_sums_of_products_are_those_of_int64_and_wrap() -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 24, 300)
    graph, plan = made(Calls(lambda x: x @ torch.tanh(x).transpose(-2, -1)), x)
    op = next(op for op in graph.operations if op.kind == "matmul")
    a, b = plan.params("input"), plan.params(graph.operations[op.inputs[1]].tap)
    target = plan.params(op.name)
    assert a is not None
    assert b is not None
    assert target is not None
    left = as_integers(qkit.quant.grids.fake_quantize(x, a), a).long()
    right = as_integers(qkit.quant.grids.fake_quantize(torch.tanh(qkit.quant.grids.fake_quantize(x, a)), b), b).long()
    sums = left @ right.transpose(-2, -1)
    step = float(a.scale.double() * b.scale.double() / target.scale.double())
    for bits in (None, 32, 18):
        held = sums if bits is None else (sums + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
        low, high = target.qmin - int(target.zero_point), target.qmax - int(target.zero_point)
        exact = (held.double() * step).round().clamp(low, high)
        found = as_integers(lane(graph, replace(plan, accumulator_bits=bits), x), target)
        near_tie = ((held.double() * step).abs() % 1 - 0.5).abs() < 1e-6
        assert bool(((found.double() == exact) | near_tie).all())
    assert bool((held != sums).any())


@pytest.mark.parametrize(
    ("function", "terms"),
    [
        (lambda x: x @ torch.tanh(x).transpose(-2, -1), 300),
        (lambda x: torch.einsum("nij,nik->njk", x, torch.tanh(x)), 24),
        (torch.tanh, 1),
    ],
)
def test_a_product_knows_how_many_terms_it_adds_up(function: Callable[..., Tensor], terms: int) -> None:
    graph, _ = made(Calls(function), torch.randn(3, 24, 300))
    assert graph.operations[graph.operations[-1].inputs[0]].terms == terms


def test_a_scale_for_every_head_is_taken_head_by_head() -> None:
    torch.manual_seed(3)
    x = torch.randn(4, 3, 8, 8) * torch.tensor([0.2, 1.0, 4.0]).view(1, 3, 1, 1)
    spec = QuantSpec(symmetric=False)
    heads = replace(spec, per_channel=True)
    scheme = qkit.Scheme("heads", None, spec, arithmetic=FULL_INTEGER)
    graph, plan = made(Calls(lambda x: (x * 0.5).softmax(-1)), x, scheme)
    names = [op.name for op in graph.operations if op.kind in ("mul", "activation")]
    lows = (x * 0.5).amin((0, 2, 3))
    plan = plan.with_range(names[0], lows, (x * 0.5).amax((0, 2, 3)), spec=heads, axis=1)
    plan = plan.with_range(names[1], torch.zeros(3), torch.ones(3), spec=heads, axis=1)
    assert in_float(graph, plan) == {}
    found = lane(graph, plan, x)
    assert float((found - lane(graph, plan, x, FLOAT_INSIDE)).abs().max()) <= 1.01 / 255


def test_masks_hide_and_shift(x: Tensor) -> None:
    mask = torch.ones(16, 16, dtype=torch.bool).tril()
    shifts = torch.zeros(16, 16).masked_fill(~mask, -1e9) + torch.linspace(-1, 1, 16)
    for given in (mask, shifts, torch.zeros(16, 16).masked_fill(~mask, -math.inf)):
        model = Calls(lambda x, m=given: F.scaled_dot_product_attention(x, x, x, attn_mask=m))
        graph, plan = made(model, x)
        op = next(op for op in graph.operations if integer_forms.form_of(op) and "softmax" in integer_forms.form_of(op).switch)
        assert op.call.function is attention_weights
        found, ideal = lane(graph, plan, x), lane(graph, plan, x, FLOAT_INSIDE)
        assert float(_steps(graph, plan, found, ideal).max()) <= 2


def test_what_has_no_integer_form_is_said() -> None:
    x = torch.randn(4, 8)
    graph, plan = made(Calls(lambda x: x.cumsum(-1)), x)
    assert list(in_float(graph, plan).values()) == ["it has no integer form here"]
    graph, plan = made(Calls(torch.tanh), x)
    bare = plan.without(["input"])
    assert list(in_float(graph, bare).values()) == ["input has no grid"]
    rows = replace(QuantSpec(symmetric=False), per_channel=True)
    graph, plan = made(Calls(lambda x: x.softmax(-1)), x)
    along = plan.with_range("input", x.amin(0), x.amax(0), spec=rows, axis=1)
    assert list(in_float(graph, along).values()) == [
        "its grids have a scale for each channel along an axis that it computes over"
    ]
    assert torch.isfinite(lane(graph, along, x)).all()
    graph, plan = made(Calls(lambda x: torch.tanh(x.t().reshape(4, 8))), x)
    moved = plan.with_range("input", x.amin(0), x.amax(0), spec=rows, axis=1)
    assert "moves a tensor" in next(iter(in_float(graph, moved).values()))
    graph, plan = made(Calls(torch.tanh), x)
    bare = plan.without(["input"])
    assert torch.isfinite(lane(graph, bare, x)).all()


def test_the_arithmetic_is_the_plan_s_and_survives_its_file(tmp_path: Any, x: Tensor) -> None:
    _, plan = made(Attention(), x)
    assert plan.arithmetic == FULL_INTEGER
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.arithmetic == FULL_INTEGER
    other = replace(plan, arithmetic=FLOAT_INSIDE)
    assert other != plan
    assert hash(other) != hash(plan)
    assert "softmax" in repr(plan)


def test_at_sixteen_bits_the_forms_keep_pace(x: Tensor) -> None:
    study = qkit.Study(Attention().eval(), calibration=[x], evaluation=[x], scheme="int8-full-integer")
    study.calibrate(progress=False)
    capture = study.capture(lanes=("float", "int16", "int8"), batches=1, progress=False)
    last = capture.table().iloc[-1]
    assert last["int16", "sqnr"] > last["int8", "sqnr"] + 30


def test_the_study_says_how_everything_is_computed(x: Tensor) -> None:
    study = qkit.Study(Attention().eval(), calibration=[x], evaluation=[x], scheme="int8-full-integer")
    table = study.arithmetic()
    assert list(table.columns) == ["kind", "function", "computed", "off"]
    assert table.loc[table["function"] == "gelu", "computed"].tolist() == ["table"]
    assert "computed" in study.with_scheme("int8").arithmetic()


@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_no_number_stays_so_or_at_least_harms_nothing(compiled: bool, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(integer_forms, "integer_kernels", lambda: None)
    bad = x.clone()
    bad[0, 0, 0], bad[1, 1, 1] = math.nan, math.inf
    for bits in (8, 16):
        spec = QuantSpec(bits=bits, symmetric=False).params(-3.0, 3.0)
        for name in ("gelu", "softmax", "layer norm", "sum", "product of matrices"):
            graph, plan = made(CASES[name][0](), x)
            op = graph.operations[graph.operations[-1].inputs[0]]
            target = plan.params(op.name)
            assert target is not None
            setting = integer_forms.Setting(FULL_INTEGER)
            values = [bad.movedim(-1, -2) if "matri" in name and i else bad for i in range(len(op.inputs))]
            found = integer_forms.run(op, values, [spec] * len(values), target, setting)
            assert found is not None
            assert found.shape == op.shape
            if name == "gelu" and bits == 8:
                assert found[0, 0, 0].isnan()
