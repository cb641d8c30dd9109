"""Why torch.export fails, said by the line of the user's code, the reason, and a cure that fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from untraceable import line_of

from qkit.errors import GraphError
from qkit.graph import build
from qkit.graph.door.explaining import CURES, REASONS, explained, reason_of, shaped_by_data, statement_at

X = torch.rand(2, 3, 6, 6)


class Asserts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        assert_free = y * 2
        assert x.sum() > -1.0, "no"  # BLAME
        return assert_free


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if torch.any(x > 3):  # BLAME
            x = x / 2
        return x


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while float(x.max()) > 1:  # BLAME
            x = x / 2
        return x


class Loops(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.max() * 3)):  # BLAME
            x = x + 1
        return x


class Numbers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n = int(x.sum())  # BLAME
        return x.sum() * torch.zeros(n).sum()


class Items(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[: x.sum().long().item()]  # BLAME


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + float(np.mean(x.detach().numpy()))  # BLAME


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.said = f"{x.mean():.3f}"  # BLAME
        return x


class Below(nn.Module):
    """The line is in a module within."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 1), Branches())

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 4
        n, *_ = x.shape
        return self.body(x).reshape(n, -1)


class Masks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0.5].sum()  # BLAME


class Finds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        i = x.flatten().nonzero()  # BLAME
        return x.flatten()[i[:, 0]].sum()


class Chooses(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (x,))  # BLAME


class Unpacks(nn.Module):
    """Asks for the batch before it decides by data: the batch of the first attempt is not the reason."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x
        return first if second.sum() > 0 else second  # BLAME


KINDS = {
    Asserts: "assert", Branches: "branch", Halves: "branch", Loops: "loop", Numbers: "number",
    Numpy: "numpy", Writes: "text", Chooses: "cond", Unpacks: "branch",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_line_reason_and_cure(kind: type[nn.Module]) -> None:
    with pytest.raises(GraphError) as refused:
        build(kind().eval(), X)
    assert (refused.value.file, refused.value.line) == (__file__, line_of(kind))
    assert REASONS[KINDS[kind]] in str(refused.value)
    if kind is not Chooses:  # what the graph itself refuses brings its own cure
        assert CURES[KINDS[kind]] in str(refused.value)
        assert "leaf_modules" in str(refused.value)


def test_what_torch_export_takes_is_no_cause() -> None:
    with pytest.raises(GraphError) as refused:
        build(Below().eval(), X)
    assert refused.value.line == line_of(Branches)
    assert build(Below().eval(), X, leaf_modules=[Branches]).deviation < 1e-5


@pytest.mark.parametrize("kind", [Masks, Finds, Items], ids=lambda kind: kind.__name__)
def test_shapes_by_data(kind: type[nn.Module]) -> None:
    with pytest.raises(GraphError) as refused:
        build(kind().eval(), X)
    assert REASONS["shape"] in str(refused.value)
    assert refused.value.line in {None, line_of(kind)}
    program = torch.export.export(kind().eval(), (X,), strict=False)
    found = shaped_by_data(program.graph.nodes, kind())
    assert found is not None
    assert (found.file, found.line) == (__file__, line_of(kind))
    assert shaped_by_data(torch.export.export(nn.Conv2d(3, 3, 1).eval(), (X,)).graph.nodes, nn.Conv2d(3, 3, 1)) is None


def test_torch_export_comes_first_and_its_line_is_never_swapped_for_another() -> None:
    model = nn.Identity()
    first, own, fx = ValueError("at another batch"), GraphError("own", file="a.py", line=3), GraphError("fx", file="b.py", line=9)
    assert explained([first, own, fx], model) is own
    both = explained([first, ValueError("inside torch"), fx], model)
    assert "inside torch" in str(both)
    assert "b.py:9" in str(both)
    assert (both.file, both.line) == ("b.py", 9)
    shaped = RuntimeError("data-dependent expression u0 (Size-like symbols: u0)")
    assert explained([first, shaped, fx], model).line is None
    assert str(explained([own], model)) == "own"
    assert explained([first, shaped, fx], model).__cause__ is shaped


def test_an_error_of_the_kits_own_is_passed_on() -> None:
    error = GraphError("as it is")
    assert reason_of(error, nn.Identity()) is error


def test_statement_at_a_line() -> None:
    statement = statement_at(__file__, line_of(Loops))
    assert type(statement).__name__ == "For"
    assert statement_at(__file__, 10**6) is None
    assert statement_at("nowhere.py", 1) is None


class Packs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        found, _ = self.rnn(packed)  # BLAME
        return nn.utils.rnn.pad_packed_sequence(found, batch_first=True)[0]


def test_packed_sequences_are_called_by_their_name() -> None:
    with pytest.raises(GraphError, match="packed sequence") as raised:
        build(Packs().eval(), (torch.randn(4, 5, 4), torch.tensor([5, 3, 2, 5])))
    assert raised.value.file == __file__
    assert "padded" in str(raised.value)
