"""Every torchvision classification family: the folded float lane equals the model, and every layer is where it should be."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.observing import observe
from qkit.graph import Graph, build
from qkit.quant.calibration import make_plan
from qkit.quant.schemes import PRESETS

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Family:
    """A family's smallest member and the image size it is tried with."""

    model: str
    size: int = 32
    options: dict[str, Any] = field(default_factory=dict)
    unfolded_norms: int = 0


FAMILIES = [
    Family("mobilenet_v2"),
    Family("mobilenet_v3_small"),
    Family("resnet18"),
    Family("regnet_y_400mf"),
    Family("efficientnet_b0"),
    # pre-activation: all but the stem's norm and the second norm of each of the 58 layers precede their convolution
    Family("densenet121", unfolded_norms=62),
    Family("shufflenet_v2_x0_5"),
    Family("squeezenet1_1"),
    Family("googlenet", options={"aux_logits": True, "init_weights": False}),
    Family("googlenet", options={"aux_logits": False, "init_weights": False, "transform_input": True}),
    Family("inception_v3", size=75, options={"aux_logits": True, "init_weights": False}),
    Family("vgg11"),
    Family("convnext_tiny"),
    Family("vit_b_16", options={"image_size": 32}),
    Family("swin_t"),
]
#: with the sizes that they were made for; `benchmarks.networks` has every network of torchvision
LARGE = [
    Family("swin_v2_t"),
    Family("maxvit_t", size=224, unfolded_norms=11),
    Family("inception_v3", size=299, options={"aux_logits": False, "init_weights": False}),
    Family("resnet50", size=224),
]
#: one of each build, since two widths of one graph take two passes more and find little that the graph's own test does not
TWO_WIDTHS = {"mobilenet_v2", "mobilenet_v3_small", "resnet18", "densenet121", "shufflenet_v2_x0_5", "convnext_tiny", "swin_t"}
CASES = [
    *(pytest.param(f, id=f"{f.model}{'-transform' if f.options.get('transform_input') else ''}") for f in FAMILIES),
    *(pytest.param(f, id=f"{f.model}-{f.size}", marks=pytest.mark.slow) for f in LARGE),
]


@torch.no_grad()
def trained_looking(model: nn.Module) -> nn.Module:
    """Statistics, affine parameters (some negative) and layer scales far from their defaults, so that folding them counts."""
    draw = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0.0, 0.3, generator=draw)
            module.running_var.uniform_(0.5, 2.0, generator=draw)
            sign = torch.where(torch.rand(module.weight.shape, generator=draw) < 0.2, -1.0, 1.0)
            module.weight.uniform_(0.6, 1.6, generator=draw).mul_(sign)
            module.bias.normal_(0.0, 0.3, generator=draw)
        if isinstance(module, nn.LayerNorm):
            module.weight.uniform_(0.6, 1.6, generator=draw)
            module.bias.normal_(0.0, 0.3, generator=draw)
        if isinstance(getattr(module, "layer_scale", None), nn.Parameter):
            module.layer_scale.uniform_(0.2, 1.0, generator=draw)
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.05, generator=draw)
    return model.eval()


def make(family: Family, models: ModuleType) -> nn.Module:
    return trained_looking(models.get_model(family.model, weights=None, num_classes=10, **family.options))


@torch.no_grad()
def run_counting(model: nn.Module, x: Tensor) -> tuple[Tensor, Counter[str]]:
    """The model's output, and how often each convolution and linear layer was called, by path."""
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, module in model.named_modules()
        if type(module) in {nn.Conv2d, nn.Linear}
    ]
    output = model(x)
    for handle in handles:
        handle.remove()
    return output, calls


def float_lane(graph: Graph, x: Tensor) -> Tensor:
    return run_lanes(graph, [Lane("float")], (x,))["float"]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


@pytest.mark.parametrize("family", CASES)
def test_folded_graph_equals_the_model(family: Family, torchvision_models: ModuleType) -> None:
    model = make(family, torchvision_models)
    x = torch.randn(2, 3, family.size, family.size)
    graph = build(model, x)
    expected, calls = run_counting(model, x)
    assert expected.std() > 1e-3, "an output that depends on nothing would prove nothing"
    assert graph.deviation < TOLERANCE
    assert relative(float_lane(graph, x), expected) < TOLERANCE
    # the number of images is not baked in
    other = torch.randn(3, 3, family.size, family.size)
    with torch.no_grad():
        expected = model(other)
    assert relative(float_lane(graph, other), expected) < TOLERANCE

    # every convolution and linear layer that runs is a tap with its weight, under its own path
    weighted = {s.name for s in graph.operations if s.kind in {"conv", "linear"}}
    assert calls
    assert set(calls.values()) == {1}
    computed = {name for name in calls if "cpb_mlp" in name}  # of positions alone: a constant
    assert {n for n in weighted if ":" not in n} == set(calls) - computed
    assert sum(s.kind == "batchnorm" for s in graph.operations) == family.unfolded_norms
    assert len(set(graph.taps)) == len(graph.taps)

    assert not [s for s in graph.operations if s.kind == "float"], "nothing stays float"
    assert graph.share.macs == graph.share.elements == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("family", [pytest.param(f, id=f.model) for f in FAMILIES if f.model in TWO_WIDTHS])
def test_sixteen_bits_are_far_nearer_to_float_than_eight(family: Family, torchvision_models: ModuleType) -> None:
    x = torch.randn(4, 3, family.size, family.size)
    graph = build(make(family, torchvision_models), x)
    seen = observe(graph, [x], progress=False)
    plans = {name: make_plan(graph, seen, PRESETS[name]) for name in ("int16", "int8")}
    outputs = run_lanes(graph, [Lane("float"), *(Lane(name, plan) for name, plan in plans.items())], (x,))
    error = {name: float((outputs[name] - outputs["float"]).square().mean()) for name in plans}
    assert 0 < error["int16"] < error["int8"] / 100
