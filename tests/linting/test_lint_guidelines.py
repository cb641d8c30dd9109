"""The guidelines: for every rule a network that breaks it, and one that does not."""

from __future__ import annotations

import re
from types import ModuleType

import lint_cases as cases
import pytest
import torch
from torch import nn, optim
from untraceable import line_of

import qkit
from qkit import zoo
from qkit.errors import DataError

X3, X4 = torch.rand(2, 3, 16, 16), torch.rand(2, 4, 8, 8)


def layers(result: qkit.Lint, rule: str) -> list[str]:
    return [f.layer for f in result.of(rule)]


def test_convolution_without_batch_norm() -> None:
    result = qkit.lint(cases.Convolutions(), X3)
    assert layers(result, "convolution-without-batchnorm") == ["bare", "depthwise"]
    bare, depthwise = result.of("convolution-without-batchnorm")
    assert bare.severity == "warning"
    assert "Depthwise" in depthwise.message
    assert "Depthwise" not in bare.message
    assert bare.line == line_of(cases.Convolutions)


def test_batch_norm_is_looked_for_in_the_graph_and_not_in_the_order_of_modules() -> None:
    (found, other) = qkit.lint(cases.NormFirst(), X3).of("convolution-without-batchnorm")
    assert (found.layer, found.severity) == ("conv", "warning")
    assert re.search(r"\brelu\b", found.message)
    assert other.layer == "other"


def test_batch_norm_that_cannot_be_folded() -> None:
    (found,) = qkit.lint(cases.ForkedNorm(), X3).of("convolution-without-batchnorm")
    assert "and by 1 more" in found.message
    (found,) = qkit.lint(cases.GroupNormed(), X3).of("convolution-without-batchnorm")
    assert "GroupNorm" in found.message


@pytest.mark.parametrize("norm", cases.NORMS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("conv", [nn.Conv2d, cases.Same], ids=lambda kind: kind.__name__)
def test_what_folds_is_no_finding_in_any_form(norm: type[nn.Module], conv: type[nn.Module]) -> None:
    model = nn.Sequential(
        conv(3, 8, 3), norm(8), nn.ReLU(), conv(8, 8, 3), nn.Identity(), norm(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    ).eval()  # fmt: skip
    model(X3)
    result = qkit.lint(model, X3)
    assert not result.warnings, str(result)
    assert not result.of("norm-not-folded")
    assert any("folded into 2 layers" in remark for remark in result.remarks)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, cases.Calling, cases.Frozen], ids=lambda kind: kind.__name__)
def test_what_does_not_fold_is_told_in_any_form(norm: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), norm(8), nn.Conv2d(8, 4, 1))
    result = qkit.lint(model, X3)
    assert layers(result, "convolution-without-batchnorm") == ["0"]
    assert layers(result, "norm-not-folded") == ["2"]
    shared = nn.Conv2d(3, 3, 1)
    twice = qkit.lint(
        nn.Sequential(shared, nn.BatchNorm2d(3), nn.ReLU(), shared, nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(768, 2)), X3
    )
    assert set(layers(twice, "norm-not-folded")) == {"1", "4"}
    assert set(layers(twice, "convolution-without-batchnorm")) <= {"0", "3"}
    assert len(layers(twice, "convolution-without-batchnorm")) == 2


@pytest.mark.parametrize("norm", cases.NORMS, ids=lambda kind: kind.__name__)
def test_spread_is_that_of_the_folded_weight_in_any_form(norm: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, bias=False), norm(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    x = torch.rand(1, 8, 8, 8)
    assert not qkit.lint(model, x).of("depthwise-spread")
    with torch.no_grad():
        model[1].weight[2] = 640.0
    assert layers(qkit.lint(model, x), "depthwise-spread") == ["0"]


@pytest.mark.parametrize(
    ("kind", "severity"), [(cases.Averaging, "warning"), (cases.Tallying, "note"), (cases.Stepping, "warning")]
)
def test_a_changed_buffer_is_named_with_its_line(kind: type[nn.Module], severity: str) -> None:
    """It is a warning where a second pass answers otherwise; a plain attribute counts only there."""
    (found,) = qkit.lint(kind(), X3).of("buffer-changed-in-forward")
    assert (found.severity, found.line, found.layer) == (severity, line_of(kind), "")
    name = {cases.Averaging: "average", cases.Tallying: "seen", cases.Stepping: "count"}[kind]
    assert name in found.message
    (inner,) = qkit.lint(nn.Sequential(nn.Identity(), kind()), X3).of("buffer-changed-in-forward")
    assert inner.layer == "1"
    assert f"1.{name}" in inner.message


def test_functional_network() -> None:
    result = qkit.lint(cases.FunctionalNet(), X3)
    activations = [(f.message.split(":")[0], f.line) for f in result.of("replaceable-activation")]
    assert activations == [("SiLU", line_of(cases.FunctionalNet, "SILU")), ("SiLU", line_of(cases.FunctionalNet, "SWISH"))]
    assert layers(result, "convolution-without-batchnorm") == [""]


def test_squeeze_and_excitation_by_structure() -> None:
    (found,) = qkit.lint(cases.HomeMadeGate(), X4).of("squeeze-and-excitation")
    assert "down, up" in found.message
    assert found.line == line_of(cases.HomeMadeGate)
    assert not qkit.lint(cases.HomeMadeGate(), X4).of("replaceable-activation")
    assert not qkit.lint(cases.PlainProduct(), X4).of("squeeze-and-excitation")


def test_shared_modules_and_parameters() -> None:
    found = qkit.lint(cases.Sharing(), X3).of("shared-module")
    assert [(f.severity, f.layer) for f in found] == [
        ("warning", "twice"),
        ("warning", "one"),
        ("warning", "one"),
        ("warning", "tied"),
    ]
    assert found[0].line == line_of(cases.Sharing)
    assert "called 2 times" in found[0].message
    assert "one, other" in found[2].message
    assert "tied.weight, head.weight" in found[3].message


def test_kernels_and_pools() -> None:
    result = qkit.lint(cases.Kernels(), X3)
    assert layers(result, "kernel-size") == ["large", "even"]
    assert layers(result, "large-pool") == ["pool"]


def test_depthwise_spread_with_its_figures() -> None:
    class Depthwise(nn.Sequential):
        pass

    torch.manual_seed(0)
    model = Depthwise(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    x = torch.rand(1, 8, 8, 8)
    with torch.no_grad():
        model[0].weight.fill_(0.5)
        model[0].weight[7] = 0.0  # a pruned channel is none of the spread
    assert not qkit.lint(model, x).of("depthwise-spread")
    with torch.no_grad():
        model[1].weight[2] = 64.0
    (found,) = qkit.lint(model, x).of("depthwise-spread")
    assert found.layer == "0"
    assert "channel 2 reaches 32" in found.message
    assert "64 times less" in found.message
    assert "2.0 steps" in found.message


def test_float_layers() -> None:
    class Waves(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i0e(x) + 1

    (found,) = qkit.lint(Waves(), X3).of("float-layer")
    assert "i0e" in found.message
    assert found.line is not None
    assert not qkit.lint(nn.Sequential(nn.Conv2d(3, 3, 1)), X3).of("float-layer")


def test_weights_that_are_not_finite() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    assert qkit.lint(model, X3).ok
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    result = qkit.lint(model, X3)
    assert [(f.rule, f.layer) for f in result.errors] == [("non-finite", "0")]
    assert "0.weight holds 1 values of 9" in result.errors[0].message
    assert result.traced


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2_lite", "resnet_small"])
def test_no_false_alarms_on_sound_bundled_networks(name: str) -> None:
    result = qkit.lint(zoo.load(name).model, torch.rand(1, 3, 32, 32))
    assert result.ok
    assert result.traced
    assert not result.warnings


@pytest.mark.slow
def test_the_hostile_network_is_told_by_its_depthwise_layers() -> None:
    model = zoo.load("mobilenet_v2_hostile").model
    result = qkit.lint(model, torch.rand(1, 3, 32, 32))
    assert {f.rule for f in result.warnings} == {"depthwise-spread"}
    assert "features.3.conv.1.0" in layers(result, "depthwise-spread")
    assert all(model.get_submodule(layer).groups > 1 for layer in layers(result, "depthwise-spread"))


#: Torchvision network -> how many findings of each warning rule are true of it.
FAMILIES = {
    "resnet18": {},
    "mobilenet_v2": {},
    "vgg11": {"convolution-without-batchnorm": 8},
    "mobilenet_v3_small": {"squeeze-and-excitation": 9, "replaceable-activation": 19},
    "shufflenet_v2_x0_5": {},
    "densenet121": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_families(name: str, torchvision_models: ModuleType) -> None:
    arguments = {"init_weights": False} if name in {"googlenet", "vgg11", "vgg11_bn"} else {}
    model = torchvision_models.get_model(name, weights=None, **arguments)
    result = qkit.lint(model, torch.rand(1, 3, 64, 64))
    assert result.ok, str(result)
    assert result.traced
    rules = [f.rule for f in result.warnings]
    assert {rule: rules.count(rule) for rule in set(rules)} == FAMILIES[name], str(result)


@pytest.mark.slow
def test_densenet_normalizes_behind_joins(torchvision_models: ModuleType) -> None:
    result = qkit.lint(torchvision_models.densenet121(weights=None), torch.rand(1, 3, 64, 64))
    found = result.of("convolution-without-batchnorm")
    assert {f.severity for f in found} == {"note"}
    assert all("behind" in f.message for f in found)


@pytest.mark.slow
def test_relu6_is_a_note(torchvision_models: ModuleType) -> None:
    result = qkit.lint(torchvision_models.mobilenet_v2(weights=None), torch.rand(1, 3, 64, 64))
    assert {f.severity for f in result.of("replaceable-activation")} == {"note"}
    assert len(result.of("replaceable-activation")) == 35


def decay_findings(optimizer: optim.Optimizer, model: nn.Module) -> list[qkit.Finding]:
    return list(qkit.lint(model, X3, optimizer).of("weight-decay"))


def test_weight_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU())
    assert decay_findings(optim.SGD(model.parameters(), 0.1, weight_decay=1e-4), model) == []
    (found,) = decay_findings(optim.SGD(model.parameters(), 0.1), model)
    assert re.search(r"\boptimizer .*\b6 parameters\b", found.message)
    assert "1 depthwise weights (2.weight)" in found.message
    assert "2 biases (0.bias, 2.bias)" in found.message
    (found,) = decay_findings(optim.SGD(model.parameters(), 0.1, weight_decay=1e-5), model)
    assert re.search(r"\b1e-05, .*\b0\.0001\b", found.message)
    groups = [{"params": [model[0].weight, model[2].weight]}, {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0}]
    without, missing = decay_findings(optim.SGD(groups, 0.1, weight_decay=1e-3), model)
    assert re.search(r"\bgroup 1 of 2 .*\b2 parameters: 2 biases\b", without.message)
    assert re.search(r"\b2 of .*: 2 norm parameters \(1\.weight, 1\.bias\)", missing.message)


def test_adaptive_optimizers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))
    (found,) = decay_findings(optim.Adam(model.parameters(), weight_decay=1e-2), model)
    assert found.severity == "warning"
    assert "L2 term" in found.message
    (found,) = decay_findings(optim.AdamW(model.parameters(), weight_decay=1e-2), model)
    assert found.severity == "note"
    assert "decoupled" in found.message


def test_optimizer_of_another_model() -> None:
    model, other = nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Linear(2, 2)
    with pytest.raises(DataError, match=r"\boptimizer .*\b2 parameters\b.*\bSequential\b"):
        qkit.lint(model, X3, optim.SGD(other.parameters(), 0.1))
    with pytest.raises(DataError, match=r"torch\.optim\.Optimizer, not list"):
        qkit.lint(model, X3, list(model.parameters()))  # type: ignore[arg-type]
