"""What an integer engine does with each operation: one table, whatever the network is written in.

An operation *computes* and its output gets a grid of its own; it *keeps* the grid of its input (a max pool, a reshape); it
*clamps* and fuses into its producer (ReLU, ReLU6); or nothing is known of it and it *stays float*, which the graph reports.

Operations go by the name of the `aten` operator: ``conv2d`` for ``nn.Conv2d``, a subclass of it, ``F.conv2d`` and
``aten.conv2d.padding`` alike.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import fx, nn

Bounds = tuple[float, float]

#: Bounds of "no activation".
UNBOUNDED: Bounds = (-math.inf, math.inf)


def _names(kind: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), kind)


#: Kind of an operation by its name; "drop" does nothing at inference.
KINDS: Mapping[str, str] = {
    **_names("conv", "conv1d conv2d conv3d convolution"),
    **_names("conv-transpose", "conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_names("linear", "linear"),
    **_names("batchnorm", "batch_norm"),
    **_names("drop", "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout identity"),
    **_names("drop", "stochastic_depth detach alias lift_fresh_copy"),
    **_names(
        "keep",
        "flatten unflatten reshape view _unsafe_view view_as reshape_as permute transpose t numpy_T mT adjoint swapaxes "
        "swapdims movedim moveaxis squeeze unsqueeze contiguous chunk split split_with_sizes tensor_split hsplit vsplit dsplit "
        "unbind unsafe_split unsafe_chunk narrow select slice getitem index diagonal max_pool1d max_pool2d max_pool3d "
        "max_pool2d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax amin expand expand_as "
        "broadcast_to repeat repeat_interleave tile roll flip rot90 clone pixel_shuffle pixel_unshuffle channel_shuffle "
        "native_channel_shuffle index_select gather take take_along_dim topk sort upsample_nearest1d upsample_nearest2d "
        "upsample_nearest3d upsampling_nearest2d im2col unfold to type_as zero_pad1d zero_pad2d zero_pad3d reflection_pad1d "
        "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d tril triu",
    ),
    **_names("add", "add sub rsub subtract"),
    **_names("mul", "mul multiply div divide true_divide quotient pow square"),
    **_names("concat", "cat concat concatenate stack hstack vstack dstack slice_scatter select_scatter index_put where"),
    **_names("pool", "mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"),
    **_names("matmul", "matmul bmm mm mv dot einsum baddbmm addmm"),
    **_names(
        "activation",
        "relu relu6 hardtanh clamp clip clamp_min clamp_max leaky_relu prelu elu selu celu gelu silu mish hardswish hardsigmoid "
        "sigmoid tanh softplus softmax log_softmax softmax2d softsign softmin logsigmoid log_sigmoid hardshrink softshrink "
        "tanhshrink threshold rrelu glu quick_gelu attention_weights abs neg exp expm1 log log2 log10 log1p sqrt rsqrt "
        "reciprocal erf sin cos atan sign floor ceil round frac maximum minimum logsumexp cumsum masked_fill masked_scatter lerp "
        "fmod remainder floor_divide logaddexp xlogy atan2 tan asin acos sinh cosh addcmul addcdiv",
    ),
    **_names(
        "norm",
        "layer_norm group_norm instance_norm normalize unit_norm rms_norm local_response_norm channel_norm response_norm "
        "root_norm",
    ),
    **_names("norm", "linalg_vector_norm norm frobenius_norm var var_mean std std_mean linalg_norm prod cosine_similarity"),
    **_names("resize", "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d grid_sampler interpolate"),
    **_names("resize", "grid_sampler_2d grid_sampler_3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa upsample grid_sample"),
}

WEIGHTED = frozenset({"conv", "conv-transpose", "linear"})

#: Operations that make tensors of given numbers.
FILLS = frozenset(
    "zeros ones full empty arange linspace eye scalar_tensor zeros_like ones_like full_like empty_like new_zeros new_ones "
    "new_full new_empty fill".split()
)

#: Operations that divide their first operand by their second: 0 by 0 is no number.
DIVISIONS = frozenset({"div", "floor_divide", "remainder", "fmod"})

#: Kinds whose constant operands an integer engine stores as integers too.
ARITHMETIC = frozenset({"add", "mul", "concat", "matmul"})

_NOTES = {
    "norm": "normalized in float inside, unless the scheme says integer; its output is on a grid of its own",
    "matmul": "multiplied in float on quantized operands, unless the scheme says integer; its output is on a grid of its own",
}
_ALIASES: Mapping[str, str] = {
    "iadd": "add", "radd": "add", "isub": "sub", "rsub": "sub", "imul": "mul", "rmul": "mul", "itruediv": "div",
    "truediv": "div", "rtruediv": "div", "divide": "div", "true_divide": "div", "concat": "cat", "concatenate": "cat",
    "rmatmul": "matmul", "ipow": "pow", "multiply": "mul", "subtract": "sub",
}  # fmt: skip


@dataclass(frozen=True)
class Operator:
    """An `aten` operator by its name, which can be copied and pickled; called like the operator."""

    name: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The operator's value."""
        return operator(self.name)(*args, **kwargs)


@lru_cache(maxsize=1024)
def operator(name: str) -> Callable[..., Any]:
    """Torch's own operator of that name."""
    namespace, packet, overload = name.split(".")
    found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    return found


def portable(target: Any) -> Any:
    """The function itself, or an `Operator` in an operator's place."""
    return Operator(str(target)) if isinstance(target, torch._ops.OpOverload) else target


def short_name(target: Any) -> str:
    """The operation's name as people write it: ``add`` for ``operator.iadd``, ``Tensor.add_`` and ``aten.add_.Tensor``."""
    name = target if isinstance(target, str) else getattr(target, "__name__", type(target).__name__)
    if isinstance(target, torch._ops.OpOverload):
        name = name.split(".")[0]
    name = name.strip("_") if name.startswith("__") else name
    if not name.startswith("_"):
        name = name.rstrip("_")
    return _ALIASES.get(name, name)


def module_operation(kind: Any) -> str | None:
    """Name of the operation that a class of torch's own, or one that is derived from it without another forward, stands for."""
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn.modules"):
            if kind.forward is not base.forward:
                return None
            name = base.__name__.lower().replace("syncbatch", "batch").replace("lazy", "")
            return _BY_CLASS.get(name) or _BY_CLASS.get(re.sub(r"\dd$", "", name))
    return None


_BY_CLASS = {name.replace("_", ""): name for name in KINDS}


def module_kind(module: nn.Module) -> str | None:
    """Kind of a leaf module, "drop" if it does nothing at inference, None if unknown."""
    if isinstance(module, nn.Upsample):
        return "keep" if module.mode.startswith("nearest") else "resize"
    if isinstance(module, (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)):
        return "keep" if module.value == 0 else "activation"
    kind = KINDS.get(module_operation(type(module)) or "")
    return None if kind == "batchnorm" and getattr(module, "running_mean", None) is None else kind


def function_kind(node: fx.Node) -> str | None:
    """Kind of a call_function or call_method node, "drop" if it does nothing at inference, None if unknown."""
    name = short_name(node.target)
    arguments = bound_arguments(node)
    if KINDS.get(name) == "drop":
        return "drop" if not arguments.get("training", arguments.get("train", "drop" in name)) else None
    if name in {"pad", "constant_pad_nd"}:
        # the least number in front of a max pool is chosen nowhere, and no grid has it
        zero = arguments.get("value") in (None, 0, 0.0, -math.inf) or arguments.get("mode", "constant") != "constant"
        return "keep" if zero else "activation"
    if name == "interpolate" and str(arguments.get("mode", "nearest")).startswith("nearest"):
        return "keep"
    if name in {"max", "min"}:
        return "keep" if not isinstance(arguments.get("other"), fx.Node) else "activation"
    return KINDS.get(name)


def bound_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a call by name where its signature is known, else its keyword arguments."""
    if isinstance(node.target, torch._ops.OpOverload):
        names = [argument.name for argument in node.target._schema.arguments]
        defaults = {a.name: a.default_value for a in node.target._schema.arguments if a.has_default_value()}
        return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    if callable(node.target):
        try:
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        except (TypeError, ValueError):
            return dict(node.kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)
    return dict(node.kwargs)


def clamp_bounds(node: fx.Node, module: nn.Module | None = None) -> Bounds | None:
    """Bounds of an activation that only clamps (ReLU, ReLU6, Hardtanh, clamp with numbers), else None."""
    name = short_name(node.target) if module is None else module_operation(type(module))
    if name == "relu":
        return 0.0, math.inf
    if name == "relu6":
        return 0.0, 6.0
    if isinstance(module, nn.Hardtanh):
        return float(module.min_val), float(module.max_val)
    if module is not None or name not in {"clamp", "clip", "hardtanh", "clamp_min", "clamp_max"}:
        return None
    arguments = bound_arguments(node)
    if not arguments:
        arguments = {**dict(zip(("input", "min", "max"), node.args, strict=False)), **node.kwargs}
    low, high = (arguments.get(f"{end}_val", arguments.get(end)) for end in ("min", "max"))
    if isinstance(node.target, str) and len(node.args) > 1:
        low = node.args[1] if name != "clamp_max" else None
        high = node.args[2] if len(node.args) > 2 else node.args[1] if name == "clamp_max" else high
    if name == "hardtanh":
        low, high = -1.0 if low is None else low, 1.0 if high is None else high
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return None
    return float(low), float(high)


def note(kind: str) -> str | None:
    """What a person should know of how a quantized kind is simulated."""
    return _NOTES.get(kind)


def mutated(node: fx.Node, module: nn.Module | None) -> fx.Node | None:
    """The node whose tensor a call of `torch.fx` overwrites (``x.relu_()``, ``F.relu(x, inplace=True)``, ``out=x``), or None."""
    target, out = node.target, node.kwargs.get("out")
    if module is not None:
        writes = type(module).__module__.startswith("torch.nn.") and bool(getattr(module, "inplace", False))
    elif isinstance(out, fx.Node):
        return out
    else:
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        suffix = name.endswith("_") and not name.startswith("_") and node.op in {"call_function", "call_method"}
        augmented = name in {"iadd", "isub", "imul", "itruediv"}
        writes = suffix or augmented or (node.op == "call_function" and bool(bound_arguments(node).get("inplace")))
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if writes and isinstance(first, fx.Node) else None


def weighted_arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of a convolution or linear layer by name, also where it is a builtin whose signature Python does not know."""
    known = bound_arguments(node) if isinstance(node.target, torch._ops.OpOverload) else {}
    return known or {**dict(zip(_WEIGHTED_SIGNATURE, node.args, strict=False)), **node.kwargs}


_WEIGHTED_SIGNATURE = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
