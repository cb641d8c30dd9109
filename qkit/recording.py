"""Make a traced model free of side effects, and run it once to learn every node's shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from qkit import operations as ops
from qkit.errors import GraphError
from qkit.steps import tensors_in


def make_pure(traced: fx.GraphModule) -> None:
    """Take out what does nothing at inference, and let later readers of an overwritten tensor read the operation's result.

    The steps then compute what the model does although none of them writes to its inputs. Changes the graph module in place.
    """
    untangle(traced)
    for module in traced.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


def untangle(traced: fx.GraphModule, *, dropout: bool = False) -> None:
    """`make_pure` of the graph alone: modules still write to their inputs. Leaves dropout where it is if that is to be kept."""
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind = ops.module_kind(module) if module is not None else ops.function_kind(node) if node.op.startswith("call_") else None
        if kind == "drop" and not (dropout and not isinstance(module, nn.Identity)):
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)
            continue
        overwritten = ops.mutated(node, module)
        if overwritten is not None:
            node.meta["overwrites"] = overwritten
            later = {user for user in overwritten.users if order[user] > order[node]}
            overwritten.replace_all_uses_with(node, delete_user_cb=later.__contains__)


class Recorder(fx.Interpreter):
    """Runs the traced model once, notes every node's value by shape and type, and refuses writing to inputs."""

    def record(self, inputs: tuple[Any, ...]) -> dict[fx.Node, Any]:
        self.extra_traceback = False
        self.values: dict[fx.Node, Any] = {}
        self.run(*inputs)
        return self.values

    def run_node(self, n: fx.Node) -> Any:
        self._refuse_shared(n)
        before: list[tuple[Tensor, Tensor]] = []
        if n.op in {"call_function", "call_method"}:
            args: Any
            kwargs: Any
            target, args, kwargs = ops.out_of_place(n)
            args, kwargs = map_arg(args, self.env.__getitem__), map_arg(kwargs, self.env.__getitem__)
            if ops.function_kind(n) is None:
                before = [(t, t.clone()) for t in tensors_in(args)]
            result = target(*args, **kwargs) if callable(target) else getattr(args[0], target)(*args[1:], **kwargs)
        else:
            if n.op == "call_module" and ops.module_kind(self.fetch_attr(str(n.target))) is None:
                before = [(t, t.clone()) for t in tensors_in(tuple(self.env[a] for a in n.all_input_nodes))]
            result = super().run_node(n)
        if any(not torch.equal(t, copied) for t, copied in before):
            raise GraphError(
                f"{n.target} in {n.meta.get('path') or 'the model'} changes its input in place; lanes share tensors, so give "
                "it a copy (x.clone())."
            )
        self.values[n] = _outline(result)
        return result

    def _refuse_shared(self, n: fx.Node) -> None:
        """An operation in place on a view changes the viewed tensor too: not to be had without writing to it."""
        overwritten = n.meta.get("overwrites")
        if overwritten is None:
            return
        storages = {t.untyped_storage().data_ptr() for t in tensors_in(self.env[overwritten])}
        for other, value in self.env.items():
            if other is not overwritten and any(t.untyped_storage().data_ptr() in storages for t in tensors_in(value)):
                raise GraphError(
                    f"{n.target} in {n.meta.get('path') or 'the model'} changes {overwritten.name} in place, which shares memory "
                    f"with {other.name}, used later; write it without the in-place operation."
                )


def _outline(value: Any) -> Any:
    """A value with tensors replaced by meta tensors, so that recording holds no memory."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return tuple(_outline(v) for v in value)
    return value
