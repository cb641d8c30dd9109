"""What cannot be traced is refused with the user's own file and line, a reason and a cure."""

from __future__ import annotations

import inspect
import json
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from untraceable import (
    Asserting,
    AssertingOverLines,
    Branching,
    CallingInt,
    Iterating,
    Looping,
    Measuring,
    Outer,
    Ranging,
    line_of,
)

from qkit.errors import GraphError
from qkit.graph import build, run_float
from qkit.graph.door.explaining import REASONS
from qkit.graph.fronts.tracing import trace


class UnpackingAProxy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, *_ = x  # BLAME
        return first


class CallingNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(np.linspace(0.0, x, 3))  # BLAME


class CallingTheStandardLibrary(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        json.dumps({"x": x})  # BLAME
        return x


class WritingAnElement(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0  # BLAME
        return x


def helper(x: Tensor) -> Tensor:
    return x if x.mean() > 0 else -x  # BLAME


class CallingAHelper(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return helper(x)


UNTRACEABLE = {
    Asserting: "an assert on a traced value",
    AssertingOverLines: "an assert on a traced value",
    Branching: "branch or loop that depends on a tensor's data",
    Looping: "branch or loop that depends on a tensor's data",
    Iterating: "iterated or unpacked",
    UnpackingAProxy: "iterated or unpacked",
    Measuring: "len() of a traced value",
    CallingInt: "a call that takes concrete values only",
    Ranging: "a call that takes concrete values only",
    CallingNumpy: "",
    CallingTheStandardLibrary: "",
    WritingAnElement: "does not support item assignment",
}


@pytest.mark.parametrize("kind", UNTRACEABLE, ids=lambda kind: kind.__name__)
def test_error_points_at_the_users_line(kind: type[nn.Module]) -> None:
    with pytest.raises(GraphError) as caught:
        trace(kind())
    # of a statement over several lines, that of the expression at which the trace ends
    file, line = inspect.getfile(kind), line_of(kind, "ENDS" if kind is AssertingOverLines else "BLAME")
    assert (caught.value.file, caught.value.line) == (file, line)
    assert f"{file}:{line}" in str(caught.value)


@pytest.mark.parametrize("kind", UNTRACEABLE, ids=lambda kind: kind.__name__)
def test_error_says_why_and_what_to_do(kind: type[nn.Module]) -> None:
    with pytest.raises(GraphError) as caught:
        trace(kind())
    message = str(caught.value)
    assert UNTRACEABLE[kind] in message
    assert kind.__name__ in message
    assert "torch.fx.wrap" in message
    assert "leaf_modules" in message
    assert caught.value.__cause__ is not None


def test_error_points_into_a_helper_function() -> None:
    with pytest.raises(GraphError) as caught:
        trace(CallingAHelper())
    assert caught.value.line == line_of(helper)


def test_error_points_into_a_nested_module() -> None:
    with pytest.raises(GraphError) as caught:
        build(Outer(Branching()), torch.randn(1, 3, 4, 4))
    assert caught.value.line == line_of(Branching)


@pytest.mark.parametrize("leaf", [Branching, "body.1"], ids=["by type", "by path"])
def test_leaf_module_is_left_out_of_the_trace_and_said_to_stay_float(leaf: type[nn.Module] | str) -> None:
    model, x = Outer(Branching()).eval(), torch.randn(2, 3, 4, 4)
    graph = build(model, x, leaf_modules=[leaf])
    assert graph.deviation < 1e-6
    assert graph.taps == ("input", "stem")
    assert list(graph.notes) == ["body.1"]
    assert graph.notes["body.1"].startswith("Branching ")
    assert graph.operation("body.1").kind == "float"


def test_leaf_by_type_takes_subclasses() -> None:
    class Special(Branching):
        pass

    graph = build(Outer(Special()), torch.randn(2, 3, 4, 4), leaf_modules=[Branching])
    assert "Special" in graph.notes["body.1"]


def test_leaf_path_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(GraphError, match=r"leaf_modules names 'body.7'.*body\.1"):
        build(Outer(Branching()), torch.randn(2, 3, 4, 4), leaf_modules=["body.7"])


def test_leaf_that_is_neither_class_nor_path_is_an_error() -> None:
    with pytest.raises(GraphError, match=r"^leaf_modules .*Branching\(\)"):
        build(Outer(Branching()), torch.randn(2, 3, 4, 4), leaf_modules=[Branching()])  # type: ignore[list-item]


def test_nodes_know_the_module_they_come_from() -> None:
    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x)

    traced = trace(Outer(Functional()))
    paths = {node.name: node.meta["path"] for node in traced.graph.nodes}
    assert paths["gelu"] == "body.1"
    assert paths["stem"] == "stem"


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb"])
def test_names_that_torch_fx_would_run_as_code_are_refused(name):
    model = nn.Sequential()
    model.add_module(name, nn.ReLU())
    with pytest.raises(GraphError, match=re.escape(repr(name))):
        trace(model)


@torch.fx.wrap
def rescaled(x: Tensor) -> Tensor:
    """A data-dependent branch, moved out of the trace as the errors say."""
    assert x.shape[1] == 3
    return x / 2 if x.abs().max() > 1 else x


def test_torch_fx_wrap_cures_an_assert_and_a_branch() -> None:
    class Cured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(rescaled(x))

    model = Outer(Cured()).eval()
    for factor in (0.01, 100.0):
        x = factor * torch.randn(2, 3, 4, 4)
        graph = build(model, x)
        assert graph.taps == ("input", "stem", "body.1.conv")
        assert graph.notes["body.1:rescaled"].startswith("rescaled ")
        assert graph.operation("body.1:rescaled").kind == "float"
        with torch.no_grad():
            torch.testing.assert_close(run_float(graph, (x,)), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Asserting, Branching, Looping, Measuring, CallingInt], ids=lambda k: k.__name__)
def test_leaf_modules_cure_whatever_cannot_be_traced(kind: type[nn.Module]) -> None:
    model, x = Outer(kind()).eval(), torch.randn(2, 3, 4, 4)
    graph = build(model, x, leaf_modules=[kind])
    with torch.no_grad():
        torch.testing.assert_close(run_float(graph, (x,)), model(x))
    assert kind.__name__ in graph.notes["body.1"]


def test_leaf_that_holds_layers_takes_them_out_of_the_plan() -> None:
    graph = build(Outer(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())), torch.randn(1, 3, 4, 4), leaf_modules=["body"])
    assert graph.taps == ("input", "stem")
    assert set(graph.weights) == {"stem.weight"}


def test_a_failed_trace_leaves_the_model_and_later_traces_alone() -> None:
    model = Outer(Branching())
    modes = [m.training for m in model.modules()]
    for _ in range(2):
        with pytest.raises(GraphError):
            build(model, torch.randn(1, 3, 4, 4))
    assert [m.training for m in model.modules()] == modes
    assert model(torch.randn(1, 3, 4, 4)).shape == (1, 3, 4, 4)
    assert build(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4)).taps[0] == "input"


def test_a_model_from_a_notebook_cell_is_blamed_by_line() -> None:
    """Code that was compiled from a string has no file to show; the number of its line is all there is."""
    source = (
        "class Cell(nn.Module):\n    def forward(self, x):\n        if x.sum() > 0:\n            return x\n        return -x\n"
    )
    scope = {"nn": nn, "__name__": __name__}
    exec(compile(source, "/tmp/ipykernel_1/cell.py", "exec"), scope)
    with pytest.raises(GraphError, match=rf"ipykernel_1/cell\.py:3\b.*{REASONS['traced-branch']}") as caught:
        trace(scope["Cell"]())
    assert caught.value.line == 3


def test_error_of_a_users_own_exception() -> None:
    class Raising(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not today")  # BLAME

    with pytest.raises(GraphError, match=r"test_tracing\.py:\d+: .*: ValueError: not today") as caught:
        trace(Raising())
    assert caught.value.line == line_of(Raising)
