"""A buffer that forward changes: a moving average that is subtracted, a counter.

Lanes that run side by side must not write into each other's, nor into the user's model; that forward changes it is said, and no
convolution is blamed for it.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qkit
from qkit.graph import build, run_float


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(128, 10)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = torch.relu(self.a(x))
        self.mean.copy_(0.5 * self.mean + 0.5 * x.detach().mean((0, 2, 3)))
        x = torch.relu(self.b(x - self.mean.view(1, -1, 1, 1)))
        return self.fc(nn.functional.max_pool2d(x, 2).flatten(1))


class Replacing(Net):
    """The same with a new tensor in the buffer's place, and in a module of its own."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean((0, 2, 3))
        x = torch.relu(self.b(x - self.mean.view(1, -1, 1, 1)))
        return self.fc(nn.functional.max_pool2d(x, 2).flatten(1))


class Numbered(nn.Module):
    """Keeps its count as a plain number, which no trace can see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.passes, self.fc = nn.Conv2d(1, 4, 3), 0, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)) * self.passes)


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(20, 1, 8, 8, generator=generator), torch.randint(0, 3, (20,), generator=generator)) for _ in range(3)]


@pytest.fixture(params=[Net, Replacing], ids=lambda kind: kind.__name__)
def net(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param().eval()


def study_of(net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> qkit.Study:
    study = qkit.Study(net, batches, batches, metric="top1", scheme="int4-weights")
    study.calibrate("minmax")
    return study


def test_lanes_do_not_depend_on_the_lanes_beside_and_the_model_is_untouched(net, batches) -> None:
    state = {name: value.clone() for name, value in net.state_dict().items()}
    study = study_of(net, batches)
    alone = study.evaluate({"float": qkit.FLOAT}, progress=False)["float"].value
    beside = study.evaluate(progress=False)["float"].value
    assert alone == beside
    values = [study.capture(lanes=lanes, batches=1)["b"].float.values for lanes in (("float",), ("float", "int4"))]
    assert torch.equal(*values)
    qkit.lint(net, batches[0][0])
    study.diagnose(batches=2)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in state.items())


def test_it_is_named_and_no_layer_is_blamed(net, batches) -> None:
    (found,) = qkit.lint(net, batches[0][0]).of("buffer-changed-in-forward")
    assert found.severity == "warning"
    assert "mean" in found.message
    assert (found.layer, found.file) == ("", __file__)
    causes = study_of(net, batches).diagnose(batches=2).causes
    assert not {cause.layer for cause in causes if cause.kind == "graph-transform"} & {"a", "b", "fc"}


def test_the_graph_says_it(batches) -> None:
    torch.manual_seed(0)
    study = study_of(Net().eval(), batches)
    said = " ".join(map(str, study.graph.remarks))
    assert "mean" in said
    assert "calls" in said


def test_a_plain_number_is_named_too_and_no_layer_is_blamed(batches) -> None:
    torch.manual_seed(0)
    net = Numbered().eval()
    result = qkit.lint(net, batches[0][0])
    (found,) = result.of("buffer-changed-in-forward")
    assert "passes" in found.message
    assert net.passes == 0
    causes = [cause for cause in study_of(net, batches).diagnose(batches=2).causes if cause.kind == "graph-transform"]
    assert {cause.layer for cause in causes} <= {""}
    assert all("passes" in cause.evidence for cause in causes)


class Counting(nn.Module):
    """State of Python's own, and a buffer that is replaced: every pass of the graph starts from where the model was."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = nn.Conv2d(1, 4, 3), 0
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        y = self.conv(x)
        self.mean = 0.5 * self.mean + 0.5 * y.mean((0, 2, 3))
        return y * self.calls - self.mean[:, None, None]


def test_plain_attributes_and_replaced_buffers_start_anew() -> None:
    model, x = Counting().eval(), torch.randn(4, 1, 6, 6)
    graph = build(model, x)
    assert graph.deviation < 1e-6
    assert model.calls == 0
    assert not model.mean.any()
    with torch.no_grad():
        torch.testing.assert_close(run_float(graph, (x,)), model(x), rtol=1e-5, atol=1e-6)
