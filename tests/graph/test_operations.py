"""Operations that keep a grid invent no values; clamps that fuse have torch's own bounds; nothing writes to its input."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qkit.execution.lanes import Lane, run_lanes
from qkit.graph import build, table

Function = Callable[[Tensor], Tensor]


def model_of(function: Function | nn.Module) -> nn.Module:
    if isinstance(function, nn.Module):
        return nn.Sequential(function)
    return type("Model", (nn.Module,), {"forward": lambda self, x: function(x)})()


KEEPING: dict[str, Function | nn.Module] = {
    "max pool": nn.MaxPool2d(3, 2, 1),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 3),
    "amax": lambda x: x.amax((2, 3)),
    "flatten": lambda x: torch.flatten(x, 1),
    "reshape": lambda x: x.reshape(-1, 4),
    "permute": lambda x: torch.permute(x, (0, 2, 3, 1)),
    "transpose": lambda x: x.transpose(1, 2),
    "squeeze": lambda x: x.unsqueeze(2).squeeze(2),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "split": lambda x: torch.split(x, [1, 3], 1)[0],
    "slice": lambda x: x[:, 1:, ::2],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "flip, roll": lambda x: x.flip(2).roll(1, 3),
    "expand, repeat": lambda x: x[:, :1].expand(-1, 3, -1, -1).repeat(1, 2, 1, 1),
    "pixel shuffle": nn.PixelShuffle(2),
    "channel shuffle": nn.ChannelShuffle(2),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest, upsampled": nn.Upsample(scale_factor=2),
    "zero padding": lambda x: F.pad(x, (1, 2, 0, 1)),
    "reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "replication": nn.ReplicationPad2d(2),
    "zero by name": nn.ConstantPad2d(1, 0.0),
}


@pytest.mark.parametrize("name", KEEPING)
def test_what_keeps_its_inputs_grid_has_no_other_values(name: str) -> None:
    x = torch.randint(-9, 10, (2, 4, 6, 6)).float() / 8 + 3
    graph = build(model_of(KEEPING[name]), x)
    assert {s.kind for s in graph.operations[1:-1]} == {"keep"}
    assert {s.tap for s in graph.operations[1:-1]} == {"input"}
    output = run_lanes(graph, [Lane("float")], (x,))["float"]
    assert set(output.flatten().tolist()) <= {0.0, *x.flatten().tolist()}


COMPUTING: dict[str, tuple[str, Function | nn.Module]] = {
    "padding with a value": ("activation", lambda x: F.pad(x, (1, 1), value=0.3)),
    "padding with a value, by module": ("activation", nn.ConstantPad2d(1, 0.3)),
    "bilinear": ("resize", lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
    "bilinear, by module": ("resize", nn.Upsample(scale_factor=2, mode="bilinear")),
    "area": ("pool", lambda x: F.interpolate(x, size=3, mode="area")),
    "average": ("pool", nn.AvgPool2d(2)),
    "mean": ("pool", lambda x: x.mean((2, 3))),
    "sum": ("pool", lambda x: x.sum(1)),
    "subtraction": ("add", lambda x: x.sub(0.2)),
    "division": ("mul", lambda x: x / 3),
    "square": ("mul", lambda x: x.square()),
    "stack": ("concat", lambda x: torch.stack([x, x])),
    "product": ("matmul", lambda x: x @ x),
    "layer norm": ("norm", nn.LayerNorm(6)),
    "sigmoid": ("activation", torch.sigmoid),
    "negation": ("activation", lambda x: -x),
}


@pytest.mark.parametrize("name", COMPUTING)
def test_what_computes_gets_a_tap_of_its_own(name: str) -> None:
    kind, function = COMPUTING[name]
    x = torch.randn(2, 4, 6, 6)
    model = model_of(function)
    graph = build(model, x)
    assert [s.kind for s in graph.operations[1:-1]] == [kind]
    assert len(graph.taps) == 2
    with torch.no_grad():
        torch.testing.assert_close(run_lanes(graph, [Lane("float")], (x,))["float"], model(x))


LIMIT = st.none() | st.floats(-2, 2, width=32)


@given(LIMIT, LIMIT, st.sampled_from(["function", "method", "in place", "by name"]))
@settings(deadline=None, max_examples=40)
def test_bounds_of_a_clamp_are_torchs(low: float | None, high: float | None, way: str) -> None:
    if low is None and high is None:
        return
    forms: dict[str, Function] = {
        "function": lambda x: torch.clamp(x, low, high),
        "method": lambda x: x.clip(low, high),
        "in place": lambda x: x.clamp_(low, high),
        "by name": lambda x: torch.clamp(x, max=high, min=low),
    }
    node = next(n for n in fx.symbolic_trace(model_of(forms[way])).graph.nodes if n.op.startswith("call_"))
    bounds = table.clamp_bounds(node, None)
    assert bounds == (-math.inf if low is None else low, math.inf if high is None else high)
    x = torch.linspace(-3, 3, 101)
    if bounds[0] <= bounds[1]:
        assert torch.equal(x.clamp(*bounds), forms[way](x.clone()))


def augmented(x: Tensor) -> Tensor:
    x += 2
    x *= 0.5
    return x


IN_PLACE: dict[str, Function] = {
    "add_": lambda x: x.add_(1),
    "+=": augmented,
    "relu_": lambda x: x.relu_(),
    "torch.relu_": lambda x: torch.relu_(x),
    "F.relu(inplace)": lambda x: F.relu(x, inplace=True),
    "F.hardtanh_": lambda x: F.hardtanh_(x),
    "F.leaky_relu(inplace)": lambda x: F.leaky_relu(x, 0.1, True),
    "mul_, then sigmoid_": lambda x: x.mul_(2).sigmoid_(),
    "clamp_": lambda x: x.clamp_(-0.1, 0.1),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operations_write_to_nobodys_tensor(name: str) -> None:
    function = IN_PLACE[name]
    model = type("Model", (nn.Module,), {"forward": lambda self, x: function(self.conv(x))})()
    model.conv = nn.Conv2d(3, 4, 1)
    x = torch.randn(2, 3, 5, 5)
    kept = x.clone()
    graph = build(model, x)
    with torch.no_grad():
        expected = model(x)
    for _ in range(2):
        torch.testing.assert_close(run_lanes(graph, [Lane("float")], (x,))["float"], expected)
    assert torch.equal(x, kept)


def test_short_names_are_those_that_people_write() -> None:
    def targets(function: Function) -> list[str]:
        nodes = fx.symbolic_trace(model_of(function)).graph.nodes
        return [table.short_name(n.target) for n in nodes if n.op.startswith("call_")]

    assert targets(lambda x: (x + 1).add_(2) - x) == ["add", "add", "sub"]
    assert targets(lambda x: torch.concat([x / 2, torch.true_divide(x, 3)])) == ["div", "div", "cat"]
    assert targets(lambda x: F.relu(x).relu_()) == ["relu", "relu"]
