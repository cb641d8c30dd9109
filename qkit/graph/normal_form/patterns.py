"""Several calls that an engine has one operation for become that one, however they were written.

Pointwise functions are told by what they compute: a stretch of arithmetic between a tensor and something made of it alone is run
on a line of numbers and compared with the functions that engines know. Norms by hand are told by their means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from qkit.graph.normal_form.form import (
    NormalForm,
    applied,
    drop_unread,
    inherit,
    name_of,
    operands,
    outline,
    put,
    shape_of,
    sole_reader,
)
from qkit.graph.table import bound_arguments

_aten = torch.ops.aten
_POINTWISE = frozenset(
    "add sub rsub mul div pow neg abs square sqrt rsqrt reciprocal exp log log1p tanh sigmoid erf relu relu6 hardtanh clamp "
    "clamp_min clamp_max softplus hardsigmoid minimum maximum silu expm1 threshold where gt ge lt le leaky_relu elu".split()
)
#: Longest stretch that is looked at.
_LONGEST = 12
#: The greatest number that is added to a divisor, or is the least of it, to keep it from zero and for nothing else.
_GUARD = 1e-3
#: torch's exporter to ONNX leaves out additions of less than this.
_LEFT_OUT = 1e-7


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)`` (Hendrycks and Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


def attention_weights(scores: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Softmax over the last axis of scaled scores plus a mask (of numbers, or false where nothing is to be seen)."""
    scaled = scores * scale
    if mask is None:
        return torch.softmax(scaled, -1)
    if mask.dtype == torch.bool:
        scaled = torch.where(mask, scaled, torch.full((), -math.inf, device=scores.device))
    else:
        scaled = scaled + mask
    # where all is masked there is nothing to see, as torch has it, and no 0 / 0
    return torch.softmax(scaled, -1).masked_fill((scaled == -math.inf).all(-1, keepdim=True), 0.0)


def _plus(y: Tensor, added: float) -> Tensor:
    """``y + added``, and at least `added` where that is 0, for exporters that leave out what is added."""
    total = y + added
    return torch.where(total == 0.0, added, total) if 0.0 < added < _LEFT_OUT else total


def unit_norm(x: Tensor, order: float, dims: tuple[int, ...], least: float = 0.0, added: float = 0.0) -> Tensor:
    """``x`` by its norm over the given axes, which is at least `least`, plus `added` (`torch.nn.functional.normalize`)."""
    norm: Tensor = torch.linalg.vector_norm(x, order, dim=dims, keepdim=True)
    return x / _plus(norm.clamp_min(least), added)


def quotient(x: Tensor, y: Tensor, least: float = 0.0, added: float = 0.0) -> Tensor:
    """``x / (max(y, least) + added)``, one of the two numbers 0: a division that is kept from a divisor of zero."""
    return x / (y.clamp_min(least) if least else _plus(y, added))


def channel_norm(
    x: Tensor,
    dims: tuple[int, ...],
    eps: float,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    correction: int = 0,
    added: float = 0.0,
) -> Tensor:
    """``(x - mean) / (sqrt(variance + eps) + added)`` over the given axes, times `weight` plus `bias`, which broadcast."""
    variance, mean = torch.var_mean(x, dim=dims, correction=correction, keepdim=True)
    y = (x - mean) / _plus(torch.sqrt(variance), added) if added else (x - mean) * torch.rsqrt(_plus(variance, eps))
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def response_norm(
    x: Tensor, spatial: tuple[int, ...], channel: tuple[int, ...], eps: float, weight: Tensor, bias: Tensor
) -> Tensor:
    """Global response normalization (Woo et al. 2023): ``x + weight * x * norm / mean(norm) + bias``."""
    norm = torch.linalg.vector_norm(x, 2, dim=spatial, keepdim=True)
    y: Tensor = x + weight * (x * (norm / _plus(norm.mean(dim=channel, keepdim=True), eps))) + bias
    return y


def root_norm(x: Tensor, dims: tuple[int, ...], eps: float, weight: Tensor | None = None) -> Tensor:
    """``x / sqrt(mean(x²) + eps)`` over the given axes, times `weight`, which broadcasts (Zhang and Sennrich 2019)."""
    y = x * torch.rsqrt(_plus(x.square().mean(dims, keepdim=True), eps))
    return y if weight is None else y * weight


@dataclass(frozen=True)
class _Known:
    name: str
    function: Callable[..., Any]
    target: Callable[..., Any]
    kwargs: Mapping[str, Any]


_KNOWN = (
    _Known("hardswish", F.hardswish, _aten.hardswish.default, {}),
    _Known("hardsigmoid", F.hardsigmoid, _aten.hardsigmoid.default, {}),
    _Known("silu", F.silu, _aten.silu.default, {}),
    _Known("gelu", F.gelu, _aten.gelu.default, {}),
    _Known("gelu", lambda x: F.gelu(x, approximate="tanh"), _aten.gelu.default, {"approximate": "tanh"}),
    _Known("quick_gelu", quick_gelu, quick_gelu, {}),
    _Known("mish", F.mish, _aten.mish.default, {}),
    _Known("sigmoid", torch.sigmoid, _aten.sigmoid.default, {}),
    _Known("relu", torch.relu, _aten.relu.default, {}),
    _Known("relu6", F.relu6, _aten.relu6.default, {}),
)
#: Where functions are compared; the far points tell a clamp beyond what activations reach.
_LINE = torch.cat([torch.linspace(-9.0, 9.0, 181), *(torch.tensor([-x, x]) for x in (3.0, 20.0, 40.0, 150.0, 1e3, 1e4, 1e6))])


def recognize(form: NormalForm, constants: dict[fx.Node, Any]) -> None:
    """Put one call in the place of each pattern; changes the form in place."""
    for node in list(form.calls):
        if name_of(node) == "scaled_dot_product_attention":
            _attention(form, node, constants)
    _products_with_constants(form, constants)
    for node in reversed(list(form.calls)):
        if node.users and node not in constants:
            _ = any(pattern(form, node, constants) for pattern in _PATTERNS)
    for node in list(form.calls):
        # behind the others, which quotients are parts of
        if node not in constants:
            _ = _by_a_constant(form, node, constants) or _guarded(form, node)
    drop_unread(form)


# pointwise functions


def _pointwise(form: NormalForm, node: fx.Node, constants: dict[fx.Node, Any]) -> bool:
    if name_of(node) not in _POINTWISE or node in constants:
        return False
    for source, members in _stretches(node, constants):
        values = _run(members, source, constants, _LINE)
        if values is None:
            continue
        for known in _KNOWN:
            if torch.allclose(values, known.function(_LINE), rtol=1e-5, atol=2e-6):
                if known.name == name_of(node) and len(members) == 1:
                    return False
                put(form, node, known.target, (source,), known.kwargs, called=known.name)
                return True
        if _with_a_number(form, node, source, values, alone=len(members) == 1):
            return True
    return False


def _with_a_number(form: NormalForm, node: fx.Node, source: fx.Node, values: Tensor, *, alone: bool) -> bool:
    """A leaky ReLU, or a clamp between numbers, by what the stretch gives at the ends of the line."""
    low, high = float(values.min()), float(values.max())
    slope = float(values[_LINE == -1e3][0]) / -1e3
    if 0.0 < slope < 1.0 and torch.allclose(values, F.leaky_relu(_LINE, slope), rtol=1e-5, atol=2e-6):
        if alone:
            return False
        put(form, node, _aten.leaky_relu.default, (source, slope), called="leaky_relu")
        return True
    if alone or not low < high or not torch.allclose(values, _LINE.clamp(low, high), rtol=1e-5, atol=2e-6):
        return False
    put(form, node, _aten.clamp.default, (source, low, high), called="clamp")
    return True


def _stretches(node: fx.Node, constants: dict[fx.Node, Any]) -> list[tuple[fx.Node, list[fx.Node]]]:
    """Tensors that `node` is a pointwise function of, the farthest first, each with the calls between that nothing else reads."""
    found = []
    members: list[fx.Node] = [node]
    frontier = _operands(node, constants)
    while frontier is not None and len(members) <= _LONGEST:
        if len(frontier) == 1 and len(members) > 1:
            found.append((next(iter(frontier)), list(members)))
        inner = max(frontier, default=None)
        if inner is None or name_of(inner) not in _POINTWISE or inner.op != "call_function" or inner in constants:
            break
        if inner.meta.get("held") or not all(user in members for user in inner.users):
            break
        members.append(inner)
        more = _operands(inner, constants)
        if more is None:
            break
        frontier = (frontier - {inner}) | more
    return found[::-1]


def _operands(node: fx.Node, constants: dict[fx.Node, Any]) -> set[fx.Node] | None:
    """The tensors that are not constant; None if a constant is more than one number."""
    tensors = set()
    for source in node.all_input_nodes:
        if source in constants:
            value = constants[source]
            if isinstance(value, Tensor) and value.numel() != 1:
                return None
        elif source.meta.get("called") == "size":
            return None
        else:
            tensors.add(source)
    return tensors


def _run(members: list[fx.Node], source: fx.Node, constants: dict[fx.Node, Any], x: Tensor) -> Tensor | None:
    values: dict[fx.Node, Any] = {source: x}

    def look(node: fx.Node) -> Any:
        value = values[node] if node in values else constants[node]
        return value.reshape(()) if isinstance(value, Tensor) and node in constants else value

    try:
        for node in sorted(members):
            values[node] = applied(node, look)
    except (RuntimeError, TypeError, KeyError):
        return None
    result = values[members[0]]
    return result if isinstance(result, Tensor) and result.shape == x.shape else None


# attention and products


def _attention(form: NormalForm, node: fx.Node, constants: dict[fx.Node, Any]) -> None:
    """Attention is two products and a softmax between them (Vaswani et al. 2017, section 3.2.1)."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given: dict[str, Any] = {**dict(zip(names, operands(node), strict=False)), **node.kwargs}
    query, key, value, mask = given["query"], given["key"], given["value"], given.get("attn_mask")
    shapes = [shape_of(part) for part in (query, key, value)]
    scale = given.get("scale")
    scale = 1.0 / math.sqrt(shapes[0][-1]) if scale is None else float(scale)
    scores_shape = (*shape_of(node)[:-1], shapes[1][-2])

    def call(target: Any, args: tuple[Any, ...], shape: tuple[int, ...], called: str, like: fx.Node = node) -> fx.Node:
        new = form.graph.call_function(target, args)
        value = like.meta["value"]
        return inherit(new, node, value=type(value)(shape, value.dtype), called=called)

    with form.graph.inserting_before(node):
        if given.get("enable_gqa"):
            repeats = shapes[0][-3] // shapes[1][-3]
            key, value = (
                call(_aten.repeat_interleave.self_int, (part, repeats, -3), (*shape[:-3], shapes[0][-3], *shape[-2:]), "repeat")
                for part, shape in ((key, shapes[1]), (value, shapes[2]))
            )
        if given.get("is_causal"):
            ones = torch.ones(shapes[0][-2], shapes[1][-2], dtype=torch.bool).tril()
            name = f"_causal_{ones.shape[0]}_{ones.shape[1]}"
            form.constants[name] = ones
            mask = form.graph.create_node("get_attr", name)
            mask.meta = {"value": outline(ones), "path": node.meta.get("path", "")}
            constants[mask] = ones
        turned = (*shape_of(key)[:-2], shape_of(key)[-1], shape_of(key)[-2])
        transposed = call(_aten.transpose.int, (key, -2, -1), turned, "transpose")
        scores = call(_aten.matmul.default, (query, transposed), scores_shape, "matmul")
        weights = call(attention_weights, (scores, mask, scale), scores_shape, "softmax")
        result = call(_aten.matmul.default, (weights, value), shape_of(node), "matmul")
    node.replace_all_uses_with(result)
    form.graph.erase_node(node)


def _products_with_constants(form: NormalForm, constants: dict[fx.Node, Any]) -> None:
    """``x @ w``, ``addmm(b, x, w)`` and ``einsum("btc,cd->btd", x, w)`` with a constant matrix are linear layers."""
    for node in list(form.calls):
        parts = None if node in constants else _factors(node)
        if parts is None:
            continue
        x, weight, bias, turned = parts
        matrix = constants.get(weight) if isinstance(weight, fx.Node) else None
        if not isinstance(matrix, Tensor) or matrix.ndim != 2 or not isinstance(x, fx.Node) or x in constants:
            continue
        if bias is not None:
            bias = _flat(form, bias, constants, matrix.shape[1])
            if bias is None:
                continue
        source = operands(weight)[0] if name_of(weight) == "t" or _is_transpose(weight) else None
        source = weight if turned else source
        with form.graph.inserting_before(node):
            if not isinstance(source, fx.Node):
                source = form.graph.call_function(_aten.t.default, (weight,))
                inherit(source, weight, value=type(weight.meta["value"])(tuple(matrix.t().shape), matrix.dtype))
                constants[source] = matrix.t()
        put(form, node, _aten.linear.default, (x, source) if bias is None else (x, source, bias), called="linear")


def _flat(form: NormalForm, bias: Any, constants: dict[fx.Node, Any], size: int) -> fx.Node | None:
    """A constant bias of one axis, also where it came with axes of one in front; None for any other."""
    known = constants.get(bias)
    if not isinstance(known, Tensor) or known.numel() != size or known.shape[-1:] != (size,):
        return None
    node: fx.Node = bias
    if known.ndim == 1:
        return node
    source: Any = operands(bias)[0] if name_of(bias) in {"unsqueeze", "reshape"} else None
    if isinstance(source, fx.Node) and source in constants and constants[source].shape == (size,):
        return source
    with form.graph.inserting_after(node):
        new = form.graph.call_function(_aten.reshape.default, (node, [size]))
    constants[new] = known.reshape(size)
    return inherit(new, node, value=outline(constants[new]))


def _factors(node: fx.Node) -> tuple[Any, Any, Any, bool] | None:
    """Input, matrix and bias of a product, and whether the matrix has its outputs along the first axis."""
    name = name_of(node)
    if name in {"matmul", "mm"}:
        return *operands(node)[:2], None, False
    if name == "addmm":
        bias, x, weight = operands(node)[:3]
        return None if node.kwargs else (x, weight, bias, False)
    if name != "einsum" or len(operands(node)) != 2 or len(operands(node)[1]) != 2:
        return None
    read = re.fullmatch(
        r"((?:\.\.\.)?[a-zA-Z]*)([a-zA-Z]),([a-zA-Z])([a-zA-Z])->\1([a-zA-Z])", operands(node)[0].replace(" ", "")
    )
    if read is None:
        return None
    free, summed, first, second, new = read.groups()
    letters = [*free.replace(".", ""), summed, new]
    if len(set(letters)) != len(letters) or {first, second} != {summed, new}:
        return None
    x, weight = operands(node)[1]
    return x, weight, None, first == new


def _is_transpose(node: Any) -> bool:
    return isinstance(node, fx.Node) and name_of(node) == "transpose" and {int(d) % 2 for d in operands(node)[1:3]} == {0, 1}


# norms by hand


def _mean_of(node: Any, dims: tuple[int, ...] | None = None) -> tuple[fx.Node, tuple[int, ...]] | None:
    """``(x, dims)`` of ``x.mean(dims, keepdim=True)``."""
    if not isinstance(node, fx.Node) or name_of(node) != "mean" or len(operands(node)) < 2:
        return None
    keep = operands(node)[2] if len(operands(node)) > 2 else node.kwargs.get("keepdim", False)
    source = operands(node)[0]
    if not keep or not isinstance(source, fx.Node):
        return None
    listed: Any = operands(node)[1]
    found = tuple(sorted(int(d) % len(shape_of(source)) for d in (listed if isinstance(listed, (list, tuple)) else [listed])))
    return (source, found) if dims is None or found == dims else None


def _channel_norm(form: NormalForm, node: fx.Node, constants: dict[fx.Node, Any]) -> bool:
    """``(x - mean) / sqrt(var + eps)`` with what multiplies and is added behind it, on any axes."""
    by_deviation = _by_deviation(node)
    core = _standardized(node) if by_deviation is None else (*by_deviation[:2], 0.0)
    if core is None:
        return False
    x, dims, eps = core
    weight = bias = None
    last = node
    reader = sole_reader(last)
    if reader is not None and name_of(reader) == "mul" and (other := _other(reader, last, constants)) is not None:
        weight, last = other, reader
        reader = sole_reader(last)
    if reader is not None and name_of(reader) == "add" and (other := _other(reader, last, constants)) is not None:
        bias, last = other, reader
    more = {} if by_deviation is None else {"correction": by_deviation[2], "added": by_deviation[3]}
    put(form, last, channel_norm, (x, dims, eps, weight, bias), more, called="channel_norm")
    return True


def _by_deviation(node: fx.Node) -> tuple[fx.Node, tuple[int, ...], int, float] | None:
    """``x, dims, correction, added`` of ``(x - mean) / (x.std(dims, keepdim=True) + added)``."""
    division = _division(node)
    if division is None:
        return None
    centred, below = division
    if not isinstance(centred, fx.Node) or not isinstance(below, fx.Node) or name_of(centred) != "sub" or name_of(below) != "add":
        return None
    (root, added), x = operands(below)[:2], operands(centred)[0]
    if below.kwargs or not isinstance(added, float) or not added or not isinstance(root, fx.Node) or name_of(root) != "std":
        return None
    given = bound_arguments(root)
    listed: Any = given.get("dim")
    correction = given.get("correction", 1 if given.get("unbiased", True) else 0)
    if operands(root)[0] is not x or not given.get("keepdim") or not isinstance(listed, (list, tuple)):
        return None
    dims = tuple(sorted(int(d) % len(shape_of(x)) for d in listed))
    return (x, dims, 1 if correction is None else int(correction), added) if _is_centred(centred, x, dims) else None


def _root_norm(form: NormalForm, node: fx.Node, constants: dict[fx.Node, Any]) -> bool:
    """``x / sqrt(mean(x²) + eps)`` with what multiplies behind it."""
    name = name_of(node)
    if name not in {"div", "mul"} or len(operands(node)) != 2 or node.kwargs:
        return False
    for x, root in (operands(node), operands(node)[::-1]):
        if not isinstance(root, fx.Node) or not isinstance(x, fx.Node) or name_of(root) != ("sqrt" if name == "div" else "rsqrt"):
            continue
        added: Any = operands(root)[0]
        if not isinstance(added, fx.Node) or name_of(added) != "add" or added.kwargs or not isinstance(operands(added)[1], float):
            return False
        mean = _mean_of(operands(added)[0])
        if mean is None or not _is_square(mean[0], x):
            return False
        weight, last, reader = None, node, sole_reader(node)
        if reader is not None and name_of(reader) == "mul" and (other := _other(reader, node, constants)) is not None:
            weight, last = other, reader
        put(form, last, root_norm, (x, mean[1], operands(added)[1], weight), called="rms_norm")
        return True
    return False


def _is_square(node: fx.Node, x: fx.Node) -> bool:
    if name_of(node) == "pow":
        return operands(node)[0] is x and operands(node)[1] in (2, 2.0)
    return (name_of(node) == "mul" and operands(node)[:2] == (x, x)) or (name_of(node) == "square" and operands(node)[0] is x)


def _softmax(form: NormalForm, node: fx.Node, constants: dict[fx.Node, Any]) -> bool:
    """``exp(x) / sum(exp(x))``, also with the greatest ``x`` taken off first; an exponential on a grid of its own is useless."""
    division = _division(node)
    if division is None:
        return False
    above, below = division
    if not all(isinstance(part, fx.Node) for part in (above, below)) or name_of(above) != "exp" or name_of(below) != "sum":
        return False
    given = bound_arguments(below)
    dims, source = given.get("dim"), operands(below)[0]
    if not given.get("keepdim") or not isinstance(dims, (list, tuple)) or len(dims) != 1 or name_of(source) != "exp":
        return False
    x: Any = operands(above)[0]
    if operands(source)[0] is not x or not isinstance(x, fx.Node):
        return False
    dim = int(dims[0])
    if name_of(x) == "sub" and len(operands(x)) == 2 and not x.kwargs and _is_greatest(operands(x)[1], operands(x)[0], dim):
        x = operands(x)[0]
    put(form, node, _aten.softmax.int, (x, dim), called="softmax")
    return True


def _is_greatest(node: Any, x: Any, dim: int) -> bool:
    """Whether a node is ``x.amax(dim, keepdim=True)`` or the values of ``x.max(dim, keepdim=True)``."""
    if not isinstance(node, fx.Node) or not isinstance(x, fx.Node):
        return False
    if name_of(node) == "detach":
        node = operands(node)[0]
    if name_of(node) == "getitem" and operands(node)[1] == 0:
        node = operands(node)[0]
    if not isinstance(node, fx.Node) or name_of(node) not in {"amax", "max"} or operands(node)[0] is not x:
        return False
    given = bound_arguments(node)
    listed = given.get("dim")
    listed = [listed] if isinstance(listed, int) else listed
    rank = len(shape_of(x))
    return bool(given.get("keepdim")) and isinstance(listed, (list, tuple)) and [int(d) % rank for d in listed] == [dim % rank]


def _other(node: fx.Node, known: fx.Node, constants: dict[fx.Node, Any]) -> fx.Node | None:
    others = [a for a in operands(node) if a is not known]
    return others[0] if len(others) == 1 and others[0] in constants and not node.kwargs else None


def _standardized(node: fx.Node) -> tuple[fx.Node, tuple[int, ...], float] | None:
    name = name_of(node)
    if name not in {"div", "mul"} or len(operands(node)) < 2 or not all(isinstance(a, fx.Node) for a in operands(node)[:2]):
        return None
    for centred, root in (operands(node)[:2], operands(node)[1::-1]):
        assert isinstance(centred, fx.Node)
        assert isinstance(root, fx.Node)
        if name_of(root) != ("sqrt" if name == "div" else "rsqrt") or name_of(centred) != "sub":
            continue
        x = operands(centred)[0]
        mean = _mean_of(operands(centred)[1])
        added: Any = operands(root)[0]
        if mean is None or not _is_centred(centred, x, mean[1]):
            continue
        if not isinstance(added, fx.Node) or name_of(added) != "add" or added.kwargs:
            continue
        eps = operands(added)[1]
        variance: Any = operands(added)[0]
        if isinstance(eps, float) and _is_variance(variance, x, centred, mean[1]):
            return x, mean[1], eps
        if name == "mul":
            continue
    return None


def _is_variance(node: Any, x: Any, centred: fx.Node, dims: tuple[int, ...]) -> bool:
    if not isinstance(node, fx.Node):
        return False
    squared = _mean_of(node, dims)
    if squared is not None:
        s = squared[0]
        power = name_of(s) == "pow" and operands(s)[1] in (2, 2.0)
        product = name_of(s) == "mul" and operands(s)[0] is operands(s)[1]
        return (power or product) and _is_centred(operands(s)[0], x, dims)
    if name_of(node) == "var" and operands(node)[0] is x:
        given = bound_arguments(node)
        listed: Any = given.get("dim")
        found = sorted(int(d) % len(shape_of(x)) for d in (listed if isinstance(listed, (list, tuple)) else ()))
        biased = given.get("correction") == 0 or given.get("unbiased") is False
        return biased and bool(given.get("keepdim")) and found == list(dims)
    return False


def _is_centred(node: Any, x: Any, dims: tuple[int, ...]) -> bool:
    """Whether a node is ``x - x.mean(dims, keepdim=True)``."""
    if not isinstance(node, fx.Node) or name_of(node) != "sub" or node.kwargs or operands(node)[0] is not x:
        return False
    mean = _mean_of(operands(node)[1], dims)
    return mean is not None and mean[0] is x


def _response_norm(form: NormalForm, node: fx.Node, constants: dict[fx.Node, Any]) -> bool:
    """Global response normalization by hand, starting from its last addition or addcmul."""
    if name_of(node) != "linalg_vector_norm" and name_of(node) != "norm":
        return False
    x: Any = operands(node)[0]
    dims: Any = operands(node)[2] if len(operands(node)) > 2 else node.kwargs.get("dim")
    keep = operands(node)[3] if len(operands(node)) > 3 else node.kwargs.get("keepdim", False)
    if not keep or not isinstance(dims, (list, tuple)) or (len(operands(node)) > 1 and operands(node)[1] not in (2, 2.0)):
        return False
    ratio = next((u for u in node.users if name_of(u) == "div" and operands(u)[0] is node), None)
    added: Any = operands(ratio)[1] if ratio is not None else None
    mean = _mean_of(operands(added)[0]) if isinstance(added, fx.Node) and name_of(added) == "add" else None
    if ratio is None or mean is None or mean[0] is not node or not isinstance(operands(added)[1], float):
        return False
    scaled = sole_reader(ratio)
    if scaled is None or name_of(scaled) != "mul" or x not in operands(scaled):
        return False
    following = sole_reader(scaled)
    weight = bias = None
    if following is not None and name_of(following) == "addcmul" and not following.kwargs and operands(following)[2] is scaled:
        bias, weight = operands(following)[:2]
    elif following is not None and name_of(following) == "mul" and (weight := _other(following, scaled, constants)) is not None:
        behind = sole_reader(following)
        bias = _other(behind, following, constants) if behind is not None and name_of(behind) == "add" else None
        following = behind
    last = sole_reader(following) if following is not None and weight is not None and bias is not None else None
    if (
        last is None
        or name_of(last) != "add"
        or last.kwargs
        or x not in operands(last)
        or weight not in constants
        or bias not in constants
    ):
        return False
    spatial = tuple(int(d) for d in dims)
    put(form, last, response_norm, (x, spatial, mean[1], operands(added)[1], weight, bias), called="response_norm")
    return True


def _normalized(form: NormalForm, node: fx.Node, constants: dict[fx.Node, Any]) -> bool:
    """``x / max(norm(x), eps)``, as `torch.nn.functional.normalize` has it: a denominator of its own grid could become zero."""
    division = _division(node)
    parts = None if division is None else _divisor(division[1])
    if division is None or parts is None:
        return False
    x = division[0]
    below, least, added = parts
    if not isinstance(below, fx.Node) or name_of(below) not in {"linalg_vector_norm", "norm"} or operands(below)[0] is not x:
        return False
    given = bound_arguments(below)
    order, dims = given.get("ord", given.get("p", 2.0)), given.get("dim")
    order = 2.0 if order is None else order
    if not given.get("keepdim") or not isinstance(dims, (list, tuple)) or not dims or not isinstance(order, (int, float)):
        return False
    put(form, node, unit_norm, (x, float(order), tuple(int(d) for d in dims), least, added), called="normalize")
    return True


# divisions


def _division(node: fx.Node) -> tuple[Any, Any] | None:
    """What is divided and by what; None for any other call, and for one that rounds."""
    return operands(node) if name_of(node) == "div" and len(operands(node)) == 2 and not node.kwargs else None


def _divisor(below: Any) -> tuple[Any, float, float] | None:
    """A divisor without the number that keeps it from zero, the least that it is then, and what is added; None for any other."""
    while isinstance(below, fx.Node) and name_of(below) in {"expand_as", "expand"}:
        below = operands(below)[0]
    if not isinstance(below, fx.Node) or name_of(below) not in {"clamp_min", "clamp", "add"}:
        return below, 0.0, 0.0
    given = bound_arguments(below)
    number = given.get("other" if name_of(below) == "add" else "min")
    if not isinstance(number, (int, float)) or given.get("max") is not None or given.get("alpha", 1) != 1:
        return None
    return operands(below)[0], *((0.0, float(number)) if name_of(below) == "add" else (float(number), 0.0))


def _guarded(form: NormalForm, node: fx.Node) -> bool:
    """``x / (y + eps)`` or ``x / y.clamp(min=eps)``: on a grid of its own the sum would be `y` again, zero and all."""
    division = _division(node)
    parts = None if division is None else _divisor(division[1])
    if division is None or parts is None or not 0.0 < max(parts[1:]) <= _GUARD:
        return False
    put(form, node, quotient, (division[0], *parts))
    return True


def _by_a_constant(form: NormalForm, node: fx.Node, constants: dict[fx.Node, Any]) -> bool:
    """``x / c`` is ``x * (1 / c)``: a constant on a grid of its own may be zero there, and engines multiply."""
    division = _division(node)
    if division is None:
        return False
    x, divisor = division
    value = constants.get(divisor) if isinstance(divisor, fx.Node) else None
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() < 2:
        return False
    inverse = value.reciprocal()
    if not bool(torch.isfinite(inverse).all()):
        return False
    with form.graph.inserting_before(node):
        source = inherit(form.graph.call_function(_aten.reciprocal.default, (divisor,)), divisor, called="reciprocal")
    constants[source] = inverse
    put(form, node, _aten.mul.Tensor, (x, source))
    return True


_PATTERNS = (_response_norm, _normalized, _channel_norm, _root_norm, _softmax, _pointwise)
