"""Programs that write to tensors and to views of them: the graph gives what eager torch gives, at another batch size too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.errors import GraphError
from qkit.execution.lanes import Lane, run_lanes
from qkit.graph import Graph, build


class Program(nn.Module):
    """A function of one tensor as a network."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def outputs(value: Any) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def floats(graph: Graph, x: Tensor) -> tuple[Tensor, ...]:
    return outputs(run_lanes(graph, [Lane("float")], (x,))["float"])


def assert_as_eager(function: Callable[[Tensor], Any], shape: tuple[int, ...] = (2, 3, 4)) -> Graph:
    """Build at a batch of 4, run at 4, 1 and 3."""
    model = Program(function).eval()
    graph = build(model, torch.randn(4, *shape))
    assert graph.deviation <= 1e-6, graph.deviation
    assert graph.fixed_batch is None
    for batch in (4, 1, 3):
        x = torch.randn(batch, *shape)
        wanted, got = outputs(model(x.clone())), floats(graph, x)
        assert len(wanted) == len(got)
        for a, b in zip(wanted, got, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    return graph


def reads_old_view_of_unread_view(x: Tensor) -> Tensor:
    y = x.clone()
    a = y[:, :1]
    b = a[:, 0]
    y.add_(1)
    return b * 2


def writes_twice_to_the_base(x: Tensor) -> Tensor:
    y = x.clone()
    v = y[:, 0]
    y.add_(1)
    y.mul_(2)
    return v + 1


def reshape_that_copies(x: Tensor) -> Any:
    y = x * 1.0
    z = y.transpose(1, 2).reshape(len(x), -1)
    z.add_(10)
    return y + 1, z


def reshape_that_views(x: Tensor) -> Any:
    y = x * 1.0
    z = y.reshape(len(x), -1)
    z[:, ::2] = 0
    return y + 1, z


def contiguous_both_ways(x: Tensor) -> Any:
    y, w = x * 1.0, x * 2.0
    y.contiguous().mul_(3)  # y itself
    w.permute(0, 2, 3, 1).contiguous().mul_(3)  # a copy
    return y + 1, w + 1


def parts_of_chunks(x: Tensor) -> Any:
    y = x * 1.0
    a, b = y.chunk(2, 1)
    b.add_(a)
    a.mul_(b)
    return y + 1, a, b


def parts_of_splits(x: Tensor) -> Any:
    y = x * 1.0
    a, b, c = y.split([1, 1, 2], dim=-1)
    c.zero_()
    a += c[..., :1] + b
    return y * 2


def parts_unbound(x: Tensor) -> Any:
    y = x * 1.0
    first, *_, last = y.unbind(2)
    first.copy_(last)
    last.fill_(0.25)
    return y * 2, first


def reshaped_in_place(x: Tensor) -> Tensor:
    y = x * 1.0
    y.unsqueeze_(1)
    y.add_(2)
    y[:, 0, 1] = 0
    y.squeeze_(1)
    return y * 2


def turned_in_place(x: Tensor) -> Any:
    y = x * 1.0
    v = y[:, 0]
    y.transpose_(1, 2)
    y[:, 0] = 5.0
    return y * 1.0, v * 2.0


def diagonals(x: Tensor) -> Tensor:
    y = x * 1.0
    y.diagonal(0, 1, 2).zero_()
    torch.diagonal(y, 1, 1, 2).mul_(3)
    return y + 1


def masks_and_lists(x: Tensor) -> Tensor:
    y = x * 1.0
    y[y > 0.5] = 0.0
    y[:, :, [0, 2]] = 3.0
    y[:, 1, torch.tensor([1, 2])] += 1.0
    y.masked_fill_(y < -1, -1.0)
    return y + 1


def moved_axes(x: Tensor) -> Tensor:
    y = x * 1.0
    y.movedim(1, 2).mul_(2)
    y.mT.add_(1)
    y.narrow(1, 1, 1).copy_(torch.arange(4))
    y.flatten(1).relu_()
    y.unflatten(3, (2, 2)).select(3, 1).neg_()
    return y + 1


def every_operator(x: Tensor) -> Tensor:
    y = x.clone()
    y += 1
    y *= 2
    y -= x
    y /= 3
    y **= 2
    y.clamp_(0, 1).sub_(0.5).abs_()
    return y + x


def written_to_an_output_argument(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    torch.add(x, 1, out=y)
    torch.mul(y, 2, out=y)
    return y


def filled_by_copies_of_other_types(x: Tensor) -> Tensor:
    y = x > 0
    y.logical_not_()
    z = torch.zeros(x.shape[0], 2, 3, 4)
    z.copy_(y)
    z.masked_fill_(y, 2)
    z[:, 0] = (x > 1)[:, 0]
    return z + 1


def a_tensor_kept_by_dropout(x: Tensor) -> Any:
    y = x * 1.0
    z = F.dropout(y, 0.5, training=False)
    z.add_(1)
    return y * 2, z


def dropped_in_place(x: Tensor) -> Any:
    y = x * 1.0
    z = F.dropout(F.dropout2d(y, 0.5, training=False, inplace=True), 0.5, training=False, inplace=True)
    z.add_(1)
    return y * 2, F.relu(z, inplace=True)


def own_values_swapped(x: Tensor) -> Tensor:
    y = x * 1.0
    kept = y[:, 0].clone()
    y[:, 0] = y[:, 1]
    y[:, 1] = kept
    return y * 2


def a_list_of_views_is_filled(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i, row in enumerate(x.unbind(1)):
        out[:, i] = row.cumsum(-1)
    return out * 2


def the_input_itself(x: Tensor) -> Tensor:
    return x.add_(1) * 2 + x


def written_after_it_was_read(x: Tensor) -> Any:
    y = x * 1.0
    z = y + 1
    y.relu_()
    return z, y, y + z


EXAMPLES = [value for value in list(globals().values()) if callable(value) and getattr(value, "__module__", "") == __name__
            and value.__name__ not in {"Program", "outputs", "floats", "assert_as_eager"}]  # fmt: skip


@pytest.mark.parametrize("function", EXAMPLES, ids=lambda f: f.__name__)
def test_written_tensors_and_their_views(function: Callable[[Tensor], Any]) -> None:
    assert_as_eager(function, (2, 3, 4))


REFUSED = {
    "noise": lambda x: (x * 1.0).normal_(),
    "windows that overlap": lambda x: (x * 1.0).unfold(2, 2, 2).mul_(2.0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_otherwise_is_refused(name: str) -> None:
    with pytest.raises(GraphError):
        build(Program(REFUSED[name]), torch.randn(4, 2, 4))


class Counting(nn.Module):
    """Writes to a row of its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.arange(6.0).view(2, 3) / 3 - 1)

    def forward(self, x: Tensor) -> Tensor:
        self.state[0].mul_(x.mean())
        return x + self.state.sum()


def test_a_buffer_that_is_written_is_named_and_stays_as_it_was() -> None:
    model = Counting()
    before = model.state.clone()
    x = torch.randn(4, 3)
    graph = build(model, x)
    assert torch.equal(model.state, before)
    assert any("state" in remark for remark in graph.remarks)
    first, second = floats(graph, x)[0], floats(graph, x)[0]
    assert torch.equal(first, second)
    torch.testing.assert_close(model(x), first)


def test_what_nobody_reads_is_left_out() -> None:
    def forward(x: Tensor) -> Tensor:
        y = x * 2
        _ = (y.mean(), y[:, 0].relu())
        return F.relu(y + 1)

    graph = assert_as_eager(forward)
    assert [op.name for op in graph.operations] == ["input", ":mul", ":add", "output"]


# random programs

VIEWS = ("all", "flat", "slice", "select", "transpose", "permute", "chunk", "split", "unbind", "unsqueeze", "squeeze", "narrow",
         "diagonal", "expand", "copy", "reshape", "detach")  # fmt: skip
WRITES = ("add", "mul", "relu", "clamp", "fill", "zero", "copy", "masked_fill", "mask", "list", "own", "other", "assign")
STEP = st.tuples(st.sampled_from(VIEWS + WRITES), st.integers(0, 5), st.integers(0, 3), st.integers(0, 3))


def view(y: Tensor, what: str, i: int, j: int) -> Tensor:
    """A view, or a copy, of a tensor whose first axis is the batch."""
    axes = range(1, y.ndim)
    axis = axes[i % len(axes)] if axes else 0
    if what == "flat":
        return y.flatten(1)
    if what == "reshape":
        return y.transpose(1, -1).reshape(y.shape[0], -1) if y.ndim > 1 else y
    if what == "copy":
        return y.transpose(1, -1).contiguous() if y.ndim > 1 else y
    if what == "detach":
        return y.detach()
    if what == "unsqueeze":
        return y.unsqueeze(1 + i % max(y.ndim, 1)) if y.ndim < 6 else y
    if what == "expand":
        return y.expand(*y.shape)
    if y.ndim < 2:
        return y
    if what == "slice":
        return y[(slice(None),) * axis + (slice(j % 2, None, 1 + j % 3),)]
    if what == "select" and y.ndim > 2:
        return y.select(axis, j % y.shape[axis])
    if what == "transpose":
        return y.transpose(axis, axes[j % len(axes)])
    if what == "permute":
        return y.permute(0, *reversed(axes))
    if what == "chunk":
        return (parts := y.chunk(2, axis))[j % len(parts)]
    if what == "split":
        return (parts := y.split(1 + j % 2, axis))[j % len(parts)]
    if what == "unbind" and y.ndim > 2:
        return y.unbind(axis)[j % y.shape[axis]]
    if what == "squeeze":
        return y.squeeze(axis)
    if what == "narrow":
        return y.narrow(axis, 0, 1 + j % y.shape[axis])
    if what == "diagonal" and y.ndim > 2:
        return y.diagonal(0, 1, 2)
    return y


def write(y: Tensor, what: str, i: int, j: int, other: Tensor) -> None:
    """Write to a tensor."""
    if y.numel() == 0:
        return
    if what == "add":
        y.add_(0.5 + i)
    elif what == "mul":
        y *= 0.5 * i - 0.6
    elif what == "relu":
        y.relu_()
    elif what == "clamp":
        y.clamp_(-0.2 * i, 0.3 + j)
    elif what == "fill":
        y.fill_(0.1 * i)
    elif what == "zero":
        y.zero_()
    elif what == "copy":
        y.copy_(y.flip(-1) + i)
    elif what == "masked_fill":
        y.masked_fill_(y > 0.1 * i, 0.2 * j)
    elif what == "mask":
        y[y < 0.1 * i] = -0.3 * j
    elif what == "list" and y.ndim > 1:
        y[:, [0, y.shape[1] - 1]] = 0.7 * i
    elif what == "own":
        y.sub_(y.mean())
    elif what == "other" and other.ndim and y.shape == other.shape:
        y.add_(other)
    elif what == "assign" and y.ndim > 1:
        y[:, j % y.shape[1]] = y[:, 0] + i


def interpreted(program: list[tuple[str, int, int, int]]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The function that the program describes; it returns all tensors that it has names for."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        tensors = [x * 1.0]
        for what, which, i, j in program:
            y = tensors[which % len(tensors)]
            if what in WRITES:
                write(y, what, i, j, tensors[(which + 1 + i) % len(tensors)])
            else:
                tensors.append(view(y, what, i, j))
        return tuple(tensor + 0 for tensor in tensors)

    return function


@pytest.mark.slow
@settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(STEP, min_size=2, max_size=9))
def test_random_programs(program: list[tuple[str, int, int, int]]) -> None:
    assert_as_eager(interpreted(program), (2, 3, 4))
