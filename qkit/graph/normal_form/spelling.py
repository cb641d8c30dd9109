"""One operation has many spellings; from here on each has one.

A norm's statistics are fixed in ``instance_norm`` too where it does not take the data's, and in every internal form of batch
norm; a cast to the type that a tensor has, or a reshape to the shape that it has, is nothing at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from qkit.graph.normal_form.form import NormalForm, Outline, drop_unread, inherit, is_float, name_of, operands, put, shape_of
from qkit.graph.table import bound_arguments

_aten = torch.ops.aten
#: Batch norms that give their statistics beside the result, as decomposed programs and old code have them.
_NATIVE = frozenset(
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_no_update "
    "_batch_norm_with_update cudnn_batch_norm miopen_batch_norm".split()
)
_NORM = ("weight", "bias", "running_mean", "running_var", "momentum", "eps")
#: Give their input itself where shape and type are the same.
_NOTHING = frozenset("to type_as reshape expand view_as reshape_as flatten unflatten squeeze expand_as".split())
#: Give a tensor whose elements are all one number, which they are called with.
_UNIFORM = {"zeros_like": 0.0, "ones_like": 1.0, "new_zeros": 0.0, "new_ones": 1.0, "zeros": 0.0, "ones": 1.0}


def spell(form: NormalForm, constants: dict[fx.Node, Any]) -> None:
    """Write every operation in one way; changes the form in place, and the values of what is constant with it."""
    for node in list(form.calls):
        name = name_of(node)
        if node in constants:
            continue
        if name in _NOTHING and _is_nothing(node):
            node.replace_all_uses_with(operands(node)[0])
        elif name == "instance_norm" and not bound_arguments(node)["use_input_stats"]:
            # a norm that no training changes: there it takes every sample's own statistics
            _batch_norm(form, node, node, bound_arguments(node))
        elif name in _NATIVE and not bound_arguments(node).get("training", False) and not name.endswith("with_update"):
            parts = [user for user in node.users if name_of(user) == "getitem"]
            if len(parts) == len(node.users) == 1 and operands(parts[0])[1] == 0:
                _batch_norm(form, node, parts[0], bound_arguments(node))
        elif name in {"addcmul", "addcdiv"}:
            _added(form, node, _aten.mul.Tensor if name == "addcmul" else _aten.div.Tensor)
        elif name in {"maximum", "minimum", "max", "min"}:
            _clamped(form, node, constants)
        elif name == "pow" and operands(node)[1] in (0.5, -0.5):
            root = _aten.sqrt.default if operands(node)[1] > 0 else _aten.rsqrt.default
            put(form, node, root, (operands(node)[0],))
    drop_unread(form)


def _is_nothing(node: fx.Node) -> bool:
    source = operands(node)[0]
    if node.meta.get("cast"):  # of what is written to a tensor of another type, which the outlines already have
        return False
    return isinstance(source, fx.Node) and _outline(source) is not None and _outline(source) == _outline(node)


def _outline(node: fx.Node) -> Outline | None:
    value = node.meta.get("value")
    return value if isinstance(value, Outline) else None


def _batch_norm(form: NormalForm, node: fx.Node, result: fx.Node, given: dict[str, Any]) -> None:
    """A batch norm with fixed statistics in the place of `result`."""
    weight, bias, mean, variance, momentum, eps = (given.get(key) for key in _NORM)
    with form.graph.inserting_before(result):
        args = (operands(node)[0], weight, bias, mean, variance, False, momentum, eps, False)
        new = form.graph.call_function(_aten.batch_norm.default, args)
    inherit(new, node, value=result.meta.get("value"), called="batch_norm", frozen=True)
    result.replace_all_uses_with(new)


def _added(form: NormalForm, node: fx.Node, product: Any) -> None:
    """``base + value * (a · b)`` as the two operations that it is."""
    base, first, second = operands(node)[:3]
    value = bound_arguments(node).get("value", 1)
    if not all(isinstance(part, fx.Node) for part in (base, first, second)) or value != 1:
        return
    shape = tuple(torch.broadcast_shapes(shape_of(first), shape_of(second)))
    with form.graph.inserting_before(node):
        scaled = form.graph.call_function(product, (first, second))
        inherit(scaled, node, value=Outline(shape, node.meta["value"].dtype), called=name_of(scaled))
    put(form, node, _aten.add.Tensor, (scaled, base), called="add")


def _clamped(form: NormalForm, node: fx.Node, constants: dict[fx.Node, Any]) -> None:
    """The greater or smaller of a tensor and one number is a clamp."""
    if len(operands(node)) != 2 or not all(isinstance(part, fx.Node) for part in operands(node)):
        return
    for x, other in (operands(node), operands(node)[::-1]):
        number = _uniform(other, constants)
        if number is not None and is_float(x) and _outline(x) == _outline(node) and x not in constants:
            least = name_of(node) in {"maximum", "max"}
            target = _aten.clamp_min.default if least else _aten.clamp_max.default
            put(form, node, target, (x, number), called="clamp")
            return


def _uniform(node: fx.Node, constants: dict[fx.Node, Any]) -> float | None:
    """The one number that a tensor is filled with."""
    known = constants.get(node)
    if isinstance(known, Tensor) and known.numel() and known.is_floating_point():
        first = float(known.flatten()[0])
        return first if known.numel() == 1 or bool((known == first).all()) else None
    name = name_of(node) if node.op == "call_function" else ""
    if name in {"full_like", "new_full", "full"}:
        number = operands(node)[-1] if len(operands(node)) > 1 else node.kwargs.get("fill_value")
        return float(number) if isinstance(number, (int, float)) else None
    return _UNIFORM.get(name)
