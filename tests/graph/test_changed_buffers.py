"""State that a pass changes is found by its path, on a copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkit.graph import build
from qkit.graph.buffers import changed_buffers, unchanged, watched

X = torch.arange(6.0).view(2, 3)


class Stateful(nn.Module):
    """Calls `change(self, x)` in forward."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("late", None)
        self.register_buffer("unknown", torch.full((2,), float("nan")))
        self.scale = nn.Parameter(torch.ones(3))
        self.plain, self.calls, self.history, self.cache = torch.ones(3), 0, [torch.zeros(1)], {"a": torch.zeros(1)}

    def forward(self, x: Tensor) -> Tensor:
        self.change(self, x)
        return x * self.scale


def nothing(s: Any, x: Tensor) -> None:
    s.mean + s.plain + s.unknown.sum()


def through_data(s: Any, x: Tensor) -> None:
    s.mean.data.copy_(x.mean(0))


def renewed(s: Any, x: Tensor) -> None:
    s.mean = 0.5 * s.mean + x.mean(0)


def counted(s: Any, x: Tensor) -> None:
    s.calls += 1
    s.count += 1


def appended(s: Any, x: Tensor) -> None:
    s.history.append(x.mean())


def late(s: Any, x: Tensor) -> None:
    s.late = x.mean(0)


def kept(s: Any, x: Tensor) -> None:
    s.attention = x


def dropped(s: Any, x: Tensor) -> None:
    s.plain = None


CASES = [
    (nothing, {}),
    (lambda s, x: s.mean.add_(x.mean(0)), {"mean": "updated in place"}),
    (lambda s, x: s.mean.mul_(1.0), {"mean": "updated in place"}),
    (lambda s, x: s.mean.view(-1)[:1].add_(1), {"mean": "updated in place"}),
    (through_data, {"mean": "updated in place"}),
    (renewed, {"mean": "replaced"}),
    (counted, {"calls": "replaced", "count": "updated in place"}),
    (appended, {"history[1]": "added"}),
    (lambda s, x: s.cache.update(a=x), {"cache.a": "replaced"}),
    (late, {"late": "added"}),
    (kept, {"attention": "added"}),
    (dropped, {"plain": "removed"}),
    (lambda s, x: s.scale.mul_(0.5), {"scale": "updated in place"}),
]


@pytest.mark.parametrize(("change", "expected"), CASES, ids=[str(i) for i in range(len(CASES))])
def test_each_kind_of_change(change: Any, expected: dict[str, str]) -> None:
    model = nn.Sequential(nn.ReLU(), Stateful(change)).train()
    inner = model[1]
    before = {**{k: v.clone() for k, v in model.state_dict().items()}, "plain": inner.plain.clone()}
    random = torch.get_rng_state()
    found = changed_buffers(model, lambda copied: (torch.rand(1), copied(X)))
    assert found == {f"1.{path}": how for path, how in expected.items()}
    after = {**model.state_dict(), "plain": inner.plain}
    assert after.keys() == before.keys()
    assert all(torch.equal(v.nan_to_num(7), after[k].nan_to_num(7)) for k, v in before.items())
    assert (inner.calls, len(inner.history), hasattr(inner, "attention")) == (0, 1, False)
    assert model.training
    assert torch.equal(random, torch.get_rng_state())


def test_a_batch_norm_changes_nothing_in_evaluation_mode() -> None:
    model = nn.DataParallel(nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())).train()
    assert changed_buffers(model, lambda copied: copied(X)) == {}


def test_watched_sees_what_happens_meanwhile_only() -> None:
    model = nn.BatchNorm1d(3).train()
    with watched(model) as changes:
        assert changes.found == {}
        model(X)
    assert set(changes.found) == {"running_mean", "running_var", "num_batches_tracked"}
    with watched(model.eval()) as changes:
        model(X)
    assert changes.found == {}


def test_tensors_of_inference_mode_and_sparse_ones() -> None:
    model = nn.Module()
    with torch.inference_mode():
        model.register_buffer("mean", torch.zeros(3))
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    with watched(model) as changes, torch.inference_mode():
        model.mean += 1
    assert changes.found == {"mean": "updated in place"}


def test_an_error_of_the_model_comes_through() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        changed_buffers(nn.Linear(4, 4), lambda copied: copied(X))


class Kept(nn.Module):
    """Keeps something of the batch in the way that is given, and may answer by it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.last, self.seen = way, None, []
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "replaced":
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        elif self.way == "registered":
            self.register_buffer("made", x.mean(0), persistent=False)
        elif self.way == "attribute":
            x, self.last = x if self.last is None else x + self.last, x.detach()
        elif self.way == "list":
            self.seen.append(x)
            return x * len(self.seen)
        elif self.way == "feature":
            self.last = x
        return x - self.mean


@pytest.mark.parametrize(
    ("way", "said"),
    {"replaced": "buffer mean", "attribute": "state last", "feature": "", "registered": "", "list": "state"}.items(),
)
def test_a_graph_says_what_its_answer_depends_on(way: str, said: str) -> None:
    model = Kept(way).eval()
    graph = build(model, X)
    assert [remark for remark in graph.remarks if "changes" in remark] == [r for r in graph.remarks if said and said in r]
    assert bool(graph.remarks) == bool(said)
    assert graph.deviation <= 1e-6
    assert model.last is None
    assert not model.seen
    assert set(dict(model.named_buffers())) == {"mean"}


def test_unchanged_takes_back_what_was_registered_and_appended() -> None:
    for way in ("replaced", "registered", "attribute", "list"):
        model = Kept(way).eval()
        with unchanged(model):
            model(X)
        assert set(dict(model.named_buffers())) == {"mean"}
        assert (model.last, model.seen) == (None, [])
        assert not model.mean.any()
