"""What is absorbed moves from one layer's bias to the next's, and the output stays wherever activations exceed it."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import qkit
from qkit import zoo
from qkit.errors import DataError, GraphError
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.observing import observe
from qkit.graph import build
from qkit.ptq.absorption import Absorbed, absorb
from qkit.ptq.equalization import equalize


def exceeding(*layers: nn.Module) -> nn.Sequential:
    """Layers in sequence; batch norms give means far above zero, by no more than bounded inputs can pull them below."""
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.running_var.fill_(4.0)
                if module.affine:
                    module.weight.uniform_(0.05, 0.1)
                    module.bias.uniform_(1.0, 2.0)
                    module.bias[0] = -1.0
    return model.eval()


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval().double()(x.double())


def checked(model: nn.Module, x: Tensor, **options: Any) -> Absorbed:
    """The result, after the user's model has been compared with what it was."""
    before = copy.deepcopy(model)
    result = absorb(model, build(model, x), x, **options)
    for (name, a), b in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    a, b = outputs(result.model, x), outputs(before, x)
    assert result.deviation == pytest.approx(float((a - b).abs().max() / b.abs().max()), abs=1e-5)
    return result


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    outputs_=st.sampled_from([4, 8]),
    norms=st.booleans(),
    bias=st.booleans(),
    pool=st.booleans(),
    kernel=st.sampled_from([1, 3]),
    mode=st.sampled_from(["valid", "reflect", "circular"]),
    seed=st.integers(0, 100),
)
def test_outputs_stay_and_biases_are_those_of_the_equation(
    groups: int, outputs_: int, norms: bool, bias: bool, pool: bool, kernel: int, mode: str, seed: int
) -> None:
    torch.manual_seed(seed)
    padding = {"padding": kernel // 2, "padding_mode": mode} if mode != "valid" else {}
    second = nn.Conv2d(4, outputs_, kernel, groups=groups, bias=bias, **padding)
    # leaky at the end: an error relative to an output that is all but dead says nothing
    model = exceeding(
        nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2, 2) if pool else nn.Identity(), second,
        nn.BatchNorm2d(outputs_) if norms else nn.Identity(), nn.Identity() if norms else nn.LeakyReLU(0.1),
    )  # fmt: skip
    x = torch.rand(2, 3, 8, 8)
    result = checked(model, x)
    norm = model[1]
    expected = (norm.bias - 3.0 * norm.weight.abs()).clamp(min=0.0).detach().double().numpy()
    assert np.allclose(result.amounts["0"], expected, rtol=1e-6)
    assert expected[0] == 0.0
    assert result.readers == {"0": "4"}
    # what the second layer gives for an input that is c everywhere is what its bias took up
    constant = torch.from_numpy(expected).view(1, 4, 1, 1).expand(1, 4, 8, 8)
    moved = F.conv2d(constant, second.weight.detach().double(), groups=groups)[0, :, 0, 0]
    new = result.model[4]
    if norms:
        assert torch.allclose((model[5].running_mean - result.model[5].running_mean).double(), moved, atol=1e-5)
        assert (new.bias is None) == (not bias)
    else:
        old = second.bias.detach().double() if bias else torch.zeros(outputs_, dtype=torch.float64)
        assert torch.allclose(new.bias.detach().double() - old, moved, atol=1e-5)
        assert [(note[:2], "bias" in note) for note in result.notes] == ([] if bias else [("4 ", True)])
    a, b = outputs(result.model, x), outputs(model, x)
    assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


def test_flattened_channels() -> None:
    model = exceeding(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5, bias=False)
    )
    x = torch.rand(2, 3, 4, 4)
    result = checked(model, x)
    blocks = torch.from_numpy(np.repeat(result.amounts["0"], 4))
    assert torch.allclose(result.model[5].bias.detach().double(), model[5].weight.detach().double() @ blocks, atol=1e-6)
    assert result.deviation < 1e-5


def test_without_batch_norm_the_least_that_was_seen_is_taken() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3, bias=False)).eval()
    with torch.no_grad():
        model[0].bias += torch.tensor([5.0, 5.0, 0.0, -5.0, 5.0])
        model[2].bias += 20.0
    x = torch.rand(64, 6)
    graph = build(model, x)
    seen = observe(graph, [x], progress=False)
    result = checked(model, x, observations=seen)
    with torch.no_grad():
        least = model[:2](x).amin(0).double().numpy()
    assert np.allclose(result.amounts["0"], least, rtol=1e-6)
    assert least[3] == 0.0
    # exact on the data it was seen on
    assert result.deviation < 1e-5
    assert [(note[:2], "bias" in note) for note in result.notes] == [("4 ", True)]
    assert checked(model, x).skipped["0"].endswith("pass observations=study.observe()")
    with torch.no_grad():
        after = result.model[:2](x).amin(0)
    assert torch.allclose(after, torch.zeros(5), atol=1e-5)


def test_the_deviation_says_what_falls_below() -> None:
    model = exceeding(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        model[1].running_mean[2] = 200.0  # statistics that are not the data's: the channel is far below its mean
    assert checked(model, x).deviation > 1e-2


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (lambda: [nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)], "zeros"),
        (lambda: [nn.ReLU(), nn.Conv2d(4, 4, 3, padding="same")], "zeros"),
        (lambda: [nn.ReLU(), nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3)], "padding"),
        (lambda: [nn.ReLU(), nn.ConvTranspose2d(4, 4, 3)], "transposed convolution"),
        (lambda: [nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 1)], "weights"),
        (lambda: [nn.ReLU6(), nn.Conv2d(4, 4, 1)], "ReLU"),
        (lambda: [nn.Conv2d(4, 4, 1)], "ReLU"),
        (lambda: [nn.ReLU()], "weights"),
    ],
)
def test_what_is_skipped(layers: Any, says: str) -> None:
    model = exceeding(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), *layers())
    result = checked(model, torch.rand(2, 3, 8, 8))
    assert result.amounts == {}
    assert says in result.skipped["0"]
    assert result.deviation < 1e-6


def test_low_means_and_plain_norms_give_nothing() -> None:
    x = torch.rand(2, 3, 8, 8)
    plain = exceeding(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 4, 1))
    assert "not affine" in checked(plain, x).skipped["0"]
    model = exceeding(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    assert "100 deviations" in checked(model, x, deviations=100.0).skipped["0"]


def test_residual_readers_are_skipped() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = exceeding(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.a(x))
            return x + self.b(x)

    assert "read by 2 operations" in checked(Residual().eval(), torch.rand(2, 3, 8, 8)).skipped["a.0"]


def test_result_in_words_and_numbers() -> None:
    model = exceeding(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    x = torch.rand(2, 3, 8, 8)
    result = checked(model, x)
    assert re.match(r"Absorbed\(Sequential: 1 layers .*, 1 skipped, deviation \S+\)", repr(result))
    assert list(result.table().loc["0", ["reader", "channels", "of"]]) == ["3", 3, 4]
    assert json.loads(json.dumps(result.to_dict()))["amounts"]["0"] == result.amounts["0"].tolist()
    assert "<table" in result._repr_html_()


def test_errors() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)).eval()
    x = torch.rand(8, 6)
    graph = build(model, x)
    with pytest.raises(DataError, match="deviations=-1"):
        absorb(model, graph, x, deviations=-1.0)
    other = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4)).eval()
    with pytest.raises(GraphError, match=r"^0 .*\b5 channels\b.*\b7\b"):
        absorb(model, graph, x, observations=observe(build(other, x), [x], progress=False))


def test_the_range_gets_narrower_and_eight_bits_better() -> None:
    torch.manual_seed(0)
    model = exceeding(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        model[1].bias[1] = 30.0
    x = torch.rand(8, 3, 8, 8)
    error = []
    for each in (model, checked(model, x).model):
        study = qkit.Study(each, [x], scheme="int8-per-tensor")
        study.calibrate("minmax", progress=False)
        output = run_lanes(study.graph, [Lane("a", study.plan.only(["0"]))], (x,))["a"]
        error.append(float((output.double() - outputs(model, x)).square().mean()))
        assert (study.observe()["0"].histogram.max > 20.0) == (each is model)
    # rounding this tap alone: a step less than a tenth as wide, an error of less than a hundredth of the power
    assert error[1] < error[0] / 100


@pytest.mark.slow
def test_equalized_and_absorbed() -> None:
    case = zoo.load("mobilenet_v2_hostile")
    x = next(iter(case.calibration))[0][:16]
    with torch.no_grad():
        for path, module in case.model.named_modules():
            if path.endswith("conv.1.1"):  # the depthwise layers' norms, which pointwise layers read
                module.bias.copy_(module.weight.abs() * 4.0)
    equal = equalize(case.model, build(case.model, x)).model
    result = checked(equal, x)
    assert set(result.readers.items()) == {(f"features.{i}.conv.1.0", f"features.{i}.conv.2") for i in range(2, 18)}
    # statistics are no longer the network's own, and some activations do fall below three deviations
    assert 0.0 < result.deviation < 0.5
