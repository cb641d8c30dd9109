"""A small network with every kind of step an integer engine knows, and its quantized layers written out in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qkit.quant.grids import QuantParams
from qkit.quant.plan import Plan
from qkit.study import Study


class Mixed(nn.Module):
    """Convolutions (full, depthwise, pointwise), residual, max pool, concatenation, average pool, linear. Input (N, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.relu6 = nn.ReLU6(inplace=True)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depthwise_norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.project = nn.Conv2d(8, 8, 1)
        self.pool = nn.MaxPool2d(2)
        self.side = nn.Conv2d(8, 4, 3, stride=2, padding=1)
        self.average = nn.AvgPool2d(2)
        self.drop = nn.Dropout(0.3)
        self.classify = nn.Linear(12 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu6(self.stem_norm(self.stem(x)))
        y = self.relu(self.depthwise_norm(self.depthwise(x)))
        x = F.relu(self.project(y) + x)
        x = torch.cat([self.pool(x), self.side(x)], 1)
        return self.classify(self.drop(torch.flatten(self.average(x), 1)))


@torch.no_grad()
def mixed_network(seed: int = 0) -> Mixed:
    """`Mixed` in evaluation mode, with batch norms far from their defaults. For images of 16×16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Mixed()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.5)
    return model.eval()


def minmax_study() -> Study:
    """`Mixed` in int8, its ranges the extremes of 32 random images."""
    torch.manual_seed(0)
    data = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    study = Study(mixed_network(), data, metric="agreement", scheme="int8")
    study.calibrate("minmax", progress=False)
    return study


@torch.no_grad()
def conv_with_norm() -> tuple[nn.Conv2d, nn.BatchNorm2d, Tensor]:
    """A convolution, a batch norm whose statistics are those of what that gives on some images, and these images."""
    torch.manual_seed(3)
    conv, norm = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)
    x = torch.randn(64, 4, 10, 10) + 1.0
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.normal_()
    norm.momentum = None  # cumulative: the statistics of all that was seen
    norm.train()(conv(x))
    return conv, norm, x


#: Taps of `Mixed`, and those that each one's layer reads.
READS: Mapping[str, tuple[str, ...]] = {
    "input": (),
    "stem": ("input",),
    "depthwise": ("stem",),
    "project": ("depthwise",),
    ":add": ("project", "stem"),
    "side": (":add",),
    ":cat": (":add", "side"),
    "average": (":cat",),
    "classify": ("average",),
}


def rounded_by_torch(x: Tensor, p: QuantParams) -> Tensor:
    """torch's own fake quantization."""
    if p.axis is None:
        return torch.fake_quantize_per_tensor_affine(x, p.scale, p.zero_point, p.qmin, p.qmax)
    return torch.fake_quantize_per_channel_affine(x, p.scale, p.zero_point, p.axis % x.ndim, p.qmin, p.qmax)


def fake_quantized(x: Tensor, plan: Plan, tensor: str) -> Tensor:
    """torch's own fake quantization by the plan's numbers, the tensor itself where it has none."""
    if tensor not in plan.grids:
        return x
    return rounded_by_torch(x, plan.grids[tensor].params)


def quantized_bias(bias: Tensor, plan: Plan, source: str, layer: str) -> Tensor:
    """The bias as an integer of ``plan.bias_bits`` on the accumulator's grid, float where that has none.

    An accumulator sums over the input's channels: with a scale for each of them there is no one grid to sum on.
    """
    if plan.bias_bits is None or source not in plan.grids or f"{layer}.weight" not in plan.grids:
        return bias
    if plan.grids[source].params.axis is not None:
        return bias
    step = plan.grids[source].params.scale.double() * plan.grids[f"{layer}.weight"].params.scale.double()
    limit = 2.0 ** (plan.bias_bits - 1)
    return (torch.round(bias.double() / step).clamp(-limit, limit - 1) * step).float()


@torch.no_grad()
def plain_layer(model: Mixed, tap: str, values: Mapping[str, Tensor], plan: Plan) -> Tensor:
    """What `tap` holds given its inputs' values: one layer of `Mixed` with fake-quantized weight, bias and output."""
    if tap == "input":
        return fake_quantized(values["x"], plan, tap)
    x = values[READS[tap][0]]
    if tap in {"stem", "depthwise", "project", "side"}:
        layer = getattr(model, tap)
        if tap in {"stem", "depthwise"}:
            layer = fuse_conv_bn_eval(layer, getattr(model, f"{tap}_norm"))
        weight, bias = fake_quantized(layer.weight, plan, f"{tap}.weight"), quantized_bias(layer.bias, plan, READS[tap][0], tap)
        y = F.conv2d(x, weight, bias, layer.stride, layer.padding, 1, layer.groups)
        y = {"stem": F.relu6, "depthwise": F.relu}.get(tap, nn.Identity())(y)
    elif tap == ":add":
        y = F.relu(x + values["stem"])
    elif tap == ":cat":
        y = torch.cat([F.max_pool2d(x, 2), values["side"]], 1)
    elif tap == "average":
        y = F.avg_pool2d(x, 2)
    else:
        layer = model.classify
        bias = quantized_bias(layer.bias, plan, "average", tap)
        y = F.linear(x.flatten(1), fake_quantized(layer.weight, plan, "classify.weight"), bias)
    return fake_quantized(y, plan, tap)


def plain_run(model: Mixed, x: Tensor, plan: Plan) -> dict[str, Tensor]:
    """Every tap of `Mixed` under the plan, layer after layer."""
    values = {"x": x}
    for tap in READS:
        values[tap] = plain_layer(model, tap, values, plan)
    return values


class Parts(nn.Module):
    """A forward function with parts: ``function(self, *inputs)``, the parts its modules, parameters and buffers."""

    def __init__(self, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *x: Tensor) -> Tensor:
        return self.function(self, *x)
