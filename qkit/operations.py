"""What an integer engine does with each torch operation.

Four answers matter to the graph: an operation *computes* and its output gets a grid of its own; it *keeps* the grid of its
input (a max pool, a reshape); it *clamps* and fuses into its producer (ReLU, ReLU6); or nothing is known of it and it *stays
float*, which the graph reports.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

Bounds = tuple[float, float]

#: Bounds of "no activation".
UNBOUNDED: Bounds = (-math.inf, math.inf)

WEIGHTED: Mapping[type[nn.Module], str] = {
    nn.Conv1d: "conv",
    nn.Conv2d: "conv",
    nn.Conv3d: "conv",
    nn.ConvTranspose1d: "conv-transpose",
    nn.ConvTranspose2d: "conv-transpose",
    nn.ConvTranspose3d: "conv-transpose",
    nn.Linear: "linear",
}

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_DROPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_KEPT = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.UpsamplingNearest2d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
)
_POOLS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm, nn.RMSNorm)
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softsign),
)

_KEPT_NAMES = frozenset(
    "flatten reshape view view_as reshape_as permute transpose t swapaxes swapdims movedim squeeze unsqueeze contiguous chunk "
    "split tensor_split unbind narrow select getitem max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d amax expand expand_as repeat tile roll flip clone detach pixel_shuffle pixel_unshuffle "
    "channel_shuffle index_select gather".split()
)
_COMPUTE_NAMES: Mapping[str, str] = {
    **dict.fromkeys("add iadd radd sub isub rsub".split(), "add"),
    **dict.fromkeys("mul imul rmul multiply truediv itruediv div pow square".split(), "mul"),
    **dict.fromkeys("cat concat concatenate stack hstack vstack".split(), "concat"),
    **dict.fromkeys(
        "mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d".split(),
        "pool",
    ),
    **dict.fromkeys("matmul bmm einsum baddbmm".split(), "matmul"),
    **dict.fromkeys(
        "relu relu6 hardtanh clamp clip clamp_min clamp_max leaky_relu prelu elu selu celu gelu silu mish hardswish hardsigmoid "
        "sigmoid tanh softplus softmax log_softmax softsign abs neg exp sqrt rsqrt maximum minimum".split(),
        "activation",
    ),
    **dict.fromkeys("layer_norm group_norm instance_norm normalize rms_norm local_response_norm".split(), "norm"),
    **dict.fromkeys("interpolate upsample".split(), "resize"),
}
FUNCTIONAL_WEIGHTED: Mapping[Any, str] = {F.conv1d: "conv", F.conv2d: "conv", F.conv3d: "conv", F.linear: "linear"}
_WEIGHTED_SIGNATURE = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")

#: Kinds whose constant operands an integer engine stores as integers too.
ARITHMETIC = frozenset({"add", "mul", "concat", "matmul"})

_OUT_OF_PLACE: Mapping[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}

_NOTES = {
    "norm": "normalized in float inside the layer; its output is on a grid of its own",
    "matmul": "multiplied in float on quantized operands; its output is on a grid of its own",
}


def short_name(target: Any) -> str:
    """The operation's name as people write it: ``add`` for ``operator.iadd``, ``Tensor.add_`` and ``torch.add``."""
    name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    if not name.startswith("_"):
        name = name.rstrip("_")
    return {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "truediv": "div", "concat": "cat"}.get(name, name)


def module_kind(module: nn.Module) -> str | None:
    """Kind of a leaf module, "drop" if it does nothing at inference, None if unknown."""
    if type(module) in WEIGHTED:
        return WEIGHTED[type(module)]
    if isinstance(module, BATCH_NORMS):
        return "batchnorm" if module.running_mean is not None else None
    for kind, types in (("drop", _DROPPED), ("keep", _KEPT), ("pool", _POOLS), ("norm", _NORMS), ("activation", _ACTIVATIONS)):
        if isinstance(module, types):
            return kind
    if isinstance(module, nn.Upsample):
        return "keep" if module.mode.startswith("nearest") else "resize"
    if isinstance(module, (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)):
        return "keep" if module.value == 0 else "activation"
    return None


def function_kind(node: fx.Node) -> str | None:
    """Kind of a call_function or call_method node, "drop" if it does nothing at inference, None if unknown."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    name = name.rstrip("_") if not name.startswith("_") else name
    arguments = bound_arguments(node)
    if name in {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "stochastic_depth"}:
        return "drop" if not arguments.get("training", True) else None
    if name == "pad":
        padding = arguments.get("value") in (None, 0, 0.0) or arguments.get("mode", "constant") != "constant"
        return "keep" if padding else "activation"
    if name == "interpolate" and str(arguments.get("mode", "nearest")).startswith("nearest"):
        return "keep"
    if name in _KEPT_NAMES:
        return "keep"
    return _COMPUTE_NAMES.get(name)


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a call by name where its signature is known, else its keyword arguments."""
    if callable(node.target):
        try:
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        except (TypeError, ValueError):
            return dict(node.kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)
    return dict(node.kwargs)


def weighted_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a call of `FUNCTIONAL_WEIGHTED` by name; those are builtins, whose signature Python does not know."""
    return {**dict(zip(_WEIGHTED_SIGNATURE, node.args, strict=False)), **node.kwargs}


def clamp_bounds(node: fx.Node, module: nn.Module | None) -> Bounds | None:
    """Bounds of an activation that only clamps (ReLU, ReLU6, Hardtanh, clamp with numbers), else None."""
    if module is not None:
        if isinstance(module, nn.ReLU6):
            return 0.0, 6.0
        if isinstance(module, nn.ReLU):
            return 0.0, math.inf
        return (float(module.min_val), float(module.max_val)) if isinstance(module, nn.Hardtanh) else None
    name = short_name(node.target)
    if name == "relu":
        return 0.0, math.inf
    if name == "relu6":
        return 0.0, 6.0
    if name in {"clamp", "clip", "hardtanh"}:
        defaults = (-1.0, 1.0) if name == "hardtanh" else (None, None)
        keys = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
        given = [*node.args[1:3], None, None][:2]
        low, high = (node.kwargs.get(k, g if g is not None else d) for k, g, d in zip(keys, given, defaults, strict=True))
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
            return None
        return float(low), float(high)
    return None


def note(kind: str) -> str | None:
    """What a person should know of how a quantized kind is simulated."""
    return _NOTES.get(kind)


def mutated(node: fx.Node, module: nn.Module | None) -> fx.Node | None:
    """The node whose tensor the call overwrites (``x.relu_()``, ``F.relu(x, inplace=True)``, ``out=x``), or None."""
    target, out = node.target, node.kwargs.get("out")
    if module is not None:
        writes = type(module).__module__.startswith("torch.nn.") and bool(getattr(module, "inplace", False))
    elif isinstance(out, fx.Node):
        return out
    else:
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        suffix = name.endswith("_") and not name.startswith("_") and node.op in {"call_function", "call_method"}
        writes = suffix or target in _OUT_OF_PLACE or (node.op == "call_function" and bool(bound_arguments(node).get("inplace")))
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if writes and isinstance(first, fx.Node) else None


def out_of_place(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Target, args and kwargs of a call that leaves its inputs alone: lanes share tensors, so nothing may write to them."""
    target, args, kwargs = node.target, node.args, dict(node.kwargs)
    if isinstance(kwargs.get("out"), fx.Node):
        del kwargs["out"]
    if isinstance(target, str):
        if node.op == "call_method" and target.endswith("_") and hasattr(Tensor, target.rstrip("_")):
            target = target.rstrip("_")
        if target == "view" and not any(isinstance(a, torch.dtype) for a in args):
            target = "reshape"  # lanes keep images in channels-last memory, where not every view exists
        return target, args, kwargs
    target = _OUT_OF_PLACE.get(target, target)
    name = getattr(target, "__name__", "")
    if name.endswith("_") and not name.startswith("_"):
        target = getattr(torch, name.rstrip("_"), None) or getattr(F, name.rstrip("_"), target)
    if bound_arguments(node).get("inplace"):
        arguments = inspect.signature(node.target).bind(*args, **kwargs)  # type: ignore[arg-type]
        arguments.arguments["inplace"] = False
        args, kwargs = arguments.args, arguments.kwargs
    return target, args, kwargs


def weighted_call(module: nn.Module) -> Callable[..., Any]:
    """``call(x, weight, bias)``: the module's forward with weights from outside."""
    if isinstance(module, nn.Linear):
        return F.linear
    function: Callable[..., Any]
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        transposed: Callable[..., Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[
            len(module.kernel_size)
        ]
        settings = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
        return lambda x, weight, bias: transposed(x, weight, bias, *settings)
    assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    function = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(module.kernel_size)]
    stride, padding, dilation, groups = module.stride, module.padding, module.dilation, module.groups
    if module.padding_mode == "zeros":
        return lambda x, weight, bias: function(x, weight, bias, stride, padding, dilation, groups)
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, module.kernel_size, strict=True)]
        sides = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
    else:
        sides = [p for p in reversed(padding) for _ in range(2)]
    mode = module.padding_mode
    return lambda x, weight, bias: function(F.pad(x, sides, mode=mode), weight, bias, stride, 0, dilation, groups)
