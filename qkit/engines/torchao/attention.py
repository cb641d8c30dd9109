"""Attention in an exported program as two products and a softmax, which is where an integer engine has grids.

torch.export leaves `scaled_dot_product_attention` in one piece. It is opened as `qkit.graph.normal_form.patterns` does, so that
the kit and the program have the same tensors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def open_attention(program: fx.GraphModule) -> fx.GraphModule:
    """The program with every attention opened, in place."""
    nodes = [n for n in program.graph.nodes if n.op == "call_function" and n.target is _aten.scaled_dot_product_attention.default]
    for number, node in enumerate(nodes):
        _Opened(program, node, number).put()
    if nodes:
        program.graph.lint()
        program.recompile()
    return program


class _Opened:
    """One attention's nodes, each with a place among the module's calls and the shape that it gives."""

    def __init__(self, program: fx.GraphModule, node: fx.Node, number: int) -> None:
        self.program, self.node, self.number = program, node, number
        self.given: dict[str, Any] = {**dict(zip(_NAMES, node.args, strict=False)), **node.kwargs}

    def put(self) -> None:
        """Put them in the attention's place."""
        query, key, value = (self.given[name] for name in _NAMES[:3])
        scale = self.given.get("scale")
        with self.program.graph.inserting_before(self.node):
            if self.given.get("enable_gqa"):
                repeats = query.meta["val"].shape[-3] // key.meta["val"].shape[-3]
                key, value = (self._call("repeat", _aten.repeat_interleave.self_int, x, repeats, -3) for x in (key, value))
            turned = self._call("transpose", _aten.transpose.int, key, -2, -1)
            scores = self._call("matmul", _aten.matmul.default, query, turned)
            scores = self._call(
                "softmax", _aten.mul.Tensor, scores, query.meta["val"].shape[-1] ** -0.5 if scale is None else scale
            )
            weights = self._weights(scores, self._mask(query, key))
            result = self._call("matmul#2", _aten.matmul.default, weights, value)
        self.node.replace_all_uses_with(result)
        self.program.graph.erase_node(self.node)

    def _weights(self, scores: fx.Node, mask: fx.Node | None) -> fx.Node:
        if mask is None:
            return self._call("softmax", _aten.softmax.int, scores, -1)
        if mask.meta["val"].dtype == torch.bool:
            scores = self._call("softmax", _aten.where.ScalarOther, mask, scores, -math.inf)
        else:
            scores = self._call("softmax", _aten.add.Tensor, scores, mask)
        weights = self._call("softmax", _aten.softmax.int, scores, -1)
        # where all is masked there is nothing to see, as torch has it, and no 0 / 0
        nothing = self._call("softmax", _aten.eq.Scalar, scores, -math.inf)
        nothing = self._call("softmax", _aten.all.dim, nothing, -1, True)
        return self._call("softmax", _aten.masked_fill.Scalar, weights, nothing, 0.0)

    def _mask(self, query: fx.Node, key: fx.Node) -> fx.Node | None:
        if not self.given.get("is_causal"):
            return self.given.get("attn_mask")
        name = f"_causal_mask_{self.number}"
        sizes = (int(part.meta["val"].shape[-2]) for part in (query, key))
        device = query.meta["val"].device
        self.program.register_buffer(name, torch.ones(*sizes, dtype=torch.bool, device=device).tril(), persistent=False)
        node = self.program.graph.get_attr(name)
        with query.meta["val"].fake_mode as mode:
            node.meta["val"] = mode.from_tensor(getattr(self.program, name))
        return node

    def _call(self, called: str, target: Any, *args: Any) -> fx.Node:
        """A node that belongs to the call of that name; a new call for each name."""
        new = self.program.graph.call_function(target, args)
        new.meta = {key: value for key, value in self.node.meta.items() if key in {"nn_module_stack", "stack_trace"}}
        new.meta["torch_fn"] = (f"{called}_{self.number}", f"attention.{called.partition('#')[0]}")
        values: Any = fx.map_arg(args, lambda n: n.meta["val"])
        example: Tensor = self.node.meta["val"]
        with example.fake_mode:  # type: ignore[attr-defined]
            new.meta["val"] = target(*values)
        return new
