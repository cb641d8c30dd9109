"""Training of networks written in other styles: the user's parameters by their names, and the codes of the lane at its end."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.execution.lanes import Lane, run_lanes
from qkit.graph import build
from qkit.qat import wrap


class CallsTheFunction(nn.BatchNorm2d):
    """A subclass whose forward calls the function itself."""

    def forward(self, x: Tensor) -> Tensor:
        training = self.training
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, self.momentum, self.eps)


class Frozen(nn.Module):
    """Batch norm with fixed statistics, as detection networks have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.3), ("bias", 0.2), ("running_mean", 0.1), ("running_var", 0.7)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.reshape(1, -1, 1, 1) + (self.bias - self.running_mean * scale).reshape(1, -1, 1, 1)


class Standardized(nn.Conv2d):
    """A convolution whose weight is standardized as it runs (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (spread + 1e-5), self.bias, self.stride, self.padding)


class Scaled(nn.Module):
    """A layer scale behind a linear layer, and dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(6, 6), nn.Dropout(0.3), nn.Linear(6, 4)
        self.gamma = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.drop(self.body(x.mean((2, 3)))) * self.gamma))


def stacked(norm: Callable[[int], nn.Module], conv: type[nn.Conv2d] = nn.Conv2d) -> nn.Module:
    # no bias in front of a batch norm: its gradient is zero
    return nn.Sequential(conv(3, 6, 3, padding=1, bias=False), norm(6), nn.ReLU(), Scaled())


FORMS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: stacked(nn.BatchNorm2d),
    "batch norm that counts": lambda: stacked(lambda c: nn.BatchNorm2d(c, momentum=None)),
    "subclass": lambda: stacked(CallsTheFunction),
    "frozen": lambda: stacked(Frozen),
    "standardized weight": lambda: stacked(nn.BatchNorm2d, Standardized),
    "grouped transposed": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 6, 2, 2, groups=3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        Scaled(),
    ),
}


@pytest.fixture(params=list(FORMS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    made = FORMS[request.param]()
    for _ in range(3):
        made(torch.randn(8, 3, 8, 8))
    return made.eval()


def trained(model: nn.Module) -> nn.Module:
    module = wrap(model, torch.randn(8, 3, 8, 8), total_epochs=4, scheme="int8")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    module.train()
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(8, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    return module


def test_parameters_keep_their_names_both_ways(model: nn.Module) -> None:
    module = wrap(model, torch.randn(8, 3, 8, 8), total_epochs=2, scheme="int8")
    state = model.state_dict()
    assert list(module.model.state_dict()) == list(state)
    module.model.load_state_dict(state)
    copy.deepcopy(model).load_state_dict(trained(model).float_model().state_dict())


def test_every_parameter_is_trained_and_the_users_model_is_not(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    module = trained(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    changed = {name for name, p in module.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, _ in model.named_parameters()}


def test_statistics_follow_the_batches_as_in_float_training(model: nn.Module) -> None:
    module = wrap(model, torch.randn(8, 3, 8, 8), total_epochs=9, scheme="int16")
    module.train()
    twin = copy.deepcopy(model).train()
    for part in (module.model, twin):
        for dropout in (m for m in part.modules() if isinstance(m, nn.Dropout)):
            dropout.p = 0.0
    for _ in range(3):
        x = torch.randn(8, 3, 8, 8)
        module(x)
        twin(x)
    found = dict(module.model.named_buffers())
    for name, value in twin.named_buffers():
        torch.testing.assert_close(found[name], value, rtol=2e-3, atol=2e-3, msg=name)


def test_the_trained_network_has_the_codes_of_its_lane(model: nn.Module) -> None:
    module = trained(model).eval()
    x = torch.randn(8, 3, 8, 8)
    plan = module.plan()
    graph = build(module.float_model(), x)
    lane = run_lanes(graph, [Lane("int8", plan)], (x,))["int8"]
    with torch.no_grad():
        ours = module(x)
    last = plan.params(graph.taps[-1])
    assert last is not None
    apart = ((ours - lane) / last.scale).abs().round()
    assert float(apart.max()) <= 1.0
    assert float((apart > 0).float().mean()) < 0.05


def test_copies_and_pickles(model: nn.Module) -> None:
    module = trained(model).eval()
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = module(x)
        assert torch.equal(copy.deepcopy(module)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)
