"""Operators of the com.microsoft domain that ONNX Runtime's optimizer writes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.graph.onnx_file.call import Call, as_weight
from qkit.graph.onnx_file.operators.convolution import convolution, gemm, matmul_of
from qkit.graph.onnx_file.values import Planned, TorchCall, Value

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "LeakyRelu": F.leaky_relu,
    "Clip": torch.clamp,
    "HardSigmoid": torch.clamp,
}


def fused_conv(call: Call) -> TorchCall:
    planned = convolution(call, call.value(0), call.value(1), call.get(2))
    return _activated(call, planned, call.get(3))


def _activated(call: Call, planned: TorchCall, added: Value | None = None) -> TorchCall:
    name = call.attribute("activation", "")
    if name and name not in ACTIVATIONS:
        raise call.refuse(f"activation={name!r} is not supported. Optimize the file at the basic level only.")
    settings = {
        "function": planned.function,
        "names": tuple(planned.settings),
        "values": tuple(planned.settings.values()),
        "activation": name,
        "numbers": tuple(call.attribute("activation_params", [])),
    }
    operands = planned.operands + ((added,) if added is not None else ())
    return TorchCall(run_fused, operands, {**settings, "added": added is not None})


def run_fused(
    *operands: Tensor | None,
    function: Callable[..., Tensor],
    names: tuple[str, ...],
    values: tuple[object, ...],
    activation: str,
    numbers: tuple[float, ...],
    added: bool,
) -> Tensor:
    """A convolution or product, with a tensor added if `added`, and an activation behind."""
    mine = operands[:-1] if added else operands
    x = function(*mine, **dict(zip(names, values, strict=True)))
    other = operands[-1] if added else None
    x = x if other is None else x + other
    match activation:
        case "":
            return x
        case "LeakyRelu":
            return F.leaky_relu(x, numbers[0])
        case "Clip":
            return torch.clamp(x, *numbers[:2])
        case "HardSigmoid":
            return torch.clamp(x * numbers[0] + numbers[1], 0, 1)
    return ACTIVATIONS[activation](x)


def fused_gemm(call: Call) -> TorchCall:
    return _activated(call, gemm(call))


def fused_matmul(call: Call) -> TorchCall:
    call.only(transBatchA=0, transBatchB=0)
    alpha = float(call.attribute("alpha", 1.0))
    if alpha == 1.0 and not call.attribute("transA", 0) and not call.attribute("transB", 0):
        return matmul_of(call, call.value(0), call.value(1))
    settings = {"alpha": alpha, "left": bool(call.attribute("transA", 0)), "right": bool(call.attribute("transB", 0))}
    return call.torch(scaled_product, call.value(0), as_weight(call.value(1)), **settings)


def scaled_product(a: Tensor, b: Tensor, *, alpha: float, left: bool, right: bool) -> Tensor:
    """``alpha * a @ b``, each transposed or not."""
    product = torch.matmul(a.transpose(-1, -2) if left else a, b.transpose(-1, -2) if right else b)
    return product if alpha == 1.0 else product * alpha


def gelu(call: Call) -> TorchCall:
    return call.torch(gelu_of_sum, call.value(0), call.get(1), approximate="none")


def fast_gelu(call: Call) -> TorchCall:
    return call.torch(gelu_of_sum, call.value(0), call.get(1), approximate="tanh")


def gelu_of_sum(x: Tensor, bias: Tensor | None, *, approximate: str) -> Tensor:
    """GELU, with a bias added first if there is one."""
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


def quick_gelu(call: Call) -> TorchCall:
    return call.torch(sigmoid_gelu, call.value(0), alpha=call.attribute("alpha", 1.702))


def sigmoid_gelu(x: Tensor, *, alpha: float) -> Tensor:
    """GELU's approximation by a sigmoid; with alpha 1, SiLU."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(x * alpha)


def skip_layer_norm(call: Call) -> TorchCall:
    for index in (1, 2):
        if call.outputs[index : index + 1] not in {(), ("",)}:
            raise call.refuse(f"its output {call.outputs[index]!r} is read, which is not supported.")
    simplified = call.operator == "SkipSimplifiedLayerNormalization"
    operands = [
        call.value(0),
        call.value(1),
        call.weight(2),
        None if simplified else call.weight(3),
        call.get(3 if simplified else 4),
    ]
    return call.torch(norm_of_sum, *operands, eps=call.attribute("epsilon", 1e-12), simplified=simplified)


def norm_of_sum(
    x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None, *, eps: float, simplified: bool
) -> tuple[Tensor, ...]:
    """Layer norm of a sum, and the sum as the fourth output."""
    total = x + skip if added is None else x + skip + added
    shape = tuple(weight.shape)
    made = F.rms_norm(total, shape, weight, eps) if simplified else F.layer_norm(total, shape, weight, bias, eps)
    return made, total, total, total


def rms_norm(call: Call) -> TorchCall:
    call.only(axis=-1)
    call.only_first_output()
    return call.torch(scaled_by_root, call.value(0), call.weight(1), eps=call.attribute("epsilon", 1e-5))


def scaled_by_root(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """`F.rms_norm` over the weights' dimensions."""
    return F.rms_norm(x, tuple(weight.shape), weight, eps)


TABLE: dict[str, Callable[[Call], Planned]] = {
    "FusedConv": fused_conv,
    "FusedGemm": fused_gemm,
    "FusedMatMul": fused_matmul,
    "Gelu": gelu,
    "BiasGelu": gelu,
    "FastGelu": fast_gelu,
    "QuickGelu": quick_gelu,
    "SkipLayerNormalization": skip_layer_norm,
    "SkipSimplifiedLayerNormalization": skip_layer_norm,
    "SimplifiedLayerNormalization": rms_norm,
}
