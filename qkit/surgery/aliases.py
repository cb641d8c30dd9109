"""Tensors that a replacement must not share with what follows.

ReLU remembers its output for the backward pass where SiLU and the like remember their input, and an identity hands on the very
tensor that it was given where a gate made a new one. If the forward then writes to that tensor (``x += y``, an in-place
dropout), training fails or another branch changes. There, and only there, the replacement is followed by a copy.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx, nn

from qkit.graph import table

#: They may hand on the tensor itself, in evaluation or where they have nothing to do.
_PASSES = frozenset({"keep", "drop"})
_PASSING_NAMES = frozenset({"stochastic_depth", "drop_path", "dropout"})


class Copy(nn.Module):
    """Hands on a copy, which may be written to."""

    def forward(self, x: Tensor) -> Tensor:
        """The copy."""
        return x.clone()


def written_to(traced: fx.GraphModule, paths: Iterable[str]) -> list[str]:
    """Those of the modules whose output something later writes to."""
    wanted, found = set(paths), []
    for node in traced.graph.nodes:
        if node.op == "call_module" and str(node.target) in wanted and str(node.target) not in found:
            aliases = _aliases(node, traced)
            if any(table.mutated(user, _module(user, traced)) in aliases for alias in aliases for user in alias.users):
                found.append(str(node.target))
    return found


def _aliases(node: fx.Node, traced: fx.GraphModule) -> set[fx.Node]:
    found, queue = {node}, [node]
    while queue:
        for user in queue.pop().users:
            if user not in found and _passes(user, traced):
                found.add(user)
                queue.append(user)
    return found


def _passes(node: fx.Node, traced: fx.GraphModule) -> bool:
    module = _module(node, traced)
    if module is not None:
        return table.module_kind(module) in _PASSES or type(module).__name__ in {"StochasticDepth", "DropPath"}
    if not node.op.startswith("call_"):
        return False
    return table.function_kind(node) in _PASSES or table.short_name(node.target) in _PASSING_NAMES


def _module(node: fx.Node, traced: fx.GraphModule) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None
