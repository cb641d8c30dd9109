"""A traced graph with what guidelines ask of it: kinds, shapes, paths, places, and what lies before and behind a node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from qkit import operations as ops
from qkit.linting.seen import Site

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_NORMS = (*ops.BATCH_NORMS, nn.SyncBatchNorm)
_PASSES = frozenset({"keep", "drop"})


@dataclass(eq=False)
class Net:
    """A traced `graph` of `model`; nodes carry what the probe noted."""

    graph: fx.Graph
    model: nn.Module

    @cached_property
    def calls(self) -> tuple[fx.Node, ...]:
        """Nodes that compute something, in order."""
        return tuple(node for node in self.graph.nodes if node.op.startswith("call_"))

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that the node calls, or None."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def kind(self, node: fx.Node) -> str | None:
        """What an integer engine does with it, as `qkit.operations` says; "conv" and "linear" for functions too."""
        module = self.module(node)
        if module is not None:
            return "batchnorm" if isinstance(module, _NORMS) else ops.module_kind(module)
        name = self.name(node)
        if name in CONVOLUTIONS or name == "linear":
            return "linear" if name == "linear" else "conv-transpose" if "transpose" in name else "conv"
        if name == "batch_norm":
            return "batchnorm"
        return ops.function_kind(node) if node.op.startswith("call_") else None

    @staticmethod
    def name(node: fx.Node) -> str:
        """The operation's or the module's short name."""
        return ops.short_name(node.target)

    @staticmethod
    def layer(node: fx.Node) -> str:
        """Path of the module that it is, or that it is in."""
        return str(node.target) if node.op in {"call_module", "get_attr"} else str(node.meta.get("path", ""))

    @staticmethod
    def site(node: fx.Node) -> Site | None:
        """The user's line."""
        site: Site | None = node.meta.get("site")
        return site

    @staticmethod
    def shape(node: fx.Node) -> tuple[int, ...]:
        """Of its output on the example batch, () if that is no tensor."""
        value = node.meta.get("value")
        return tuple(value.shape) if isinstance(value, Tensor) else ()

    def is_convolution(self, node: fx.Node) -> bool:
        """A convolution or transposed convolution, module or function."""
        return self.kind(node) in {"conv", "conv-transpose"}

    def is_activation(self, node: fx.Node, *names: str) -> bool:
        """An activation of one of these names (as functions are called), module or function."""
        module = self.module(node)
        said = type(module).__name__.lower() if module is not None else self.name(node).replace("_", "")
        return said in {name.replace("_", "") for name in names} and (
            module is None or type(module).__module__.startswith("torch.nn")
        )

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Who reads its tensor; dropouts and identities are looked through, questions for its shape left out."""
        found = []
        for user in node.users:
            if self.kind(user) == "drop":
                found += self.readers(user)
            elif user.op == "output" or (isinstance(user.meta.get("value"), (Tensor, tuple)) and not _asks_shape(user)):
                found.append(user)
        return found

    def source(self, node: fx.Node) -> fx.Node:
        """The node whose elements it passes on, through reshapes and dropouts."""
        while self.kind(node) in _PASSES and node.all_input_nodes:
            node = node.all_input_nodes[0]
        return node

    def feeds_output_alone(self, node: fx.Node) -> bool:
        """Whether all that reads it is the output, through reshapes, pools, resizing, joins and activations alone."""
        readers = self.readers(node)
        through = {"keep", "drop", "pool", "resize", "concat", "activation"}
        return bool(readers) and all(
            user.op == "output" or (self.kind(user) in through and self.feeds_output_alone(user)) for user in readers
        )

    def weight(self, node: fx.Node) -> Tensor | None:
        """The weight of a module or of a function that takes a parameter."""
        module = self.module(node)
        if module is not None:
            weight = getattr(module, "weight", None)
            return weight.detach() if isinstance(weight, Tensor) else None
        source = ops.weighted_arguments(node).get("weight")
        if not isinstance(source, fx.Node) or source.op != "get_attr":
            return None
        value: Any = self.model
        for part in str(source.target).split("."):
            value = getattr(value, part)
        return value.detach() if isinstance(value, Tensor) else None

    def groups(self, node: fx.Node) -> int:
        """Of a convolution."""
        module = self.module(node)
        return int(module.groups if module is not None else ops.weighted_arguments(node).get("groups", 1))  # type: ignore[arg-type]

    def is_depthwise(self, node: fx.Node) -> bool:
        """A convolution whose every input channel is a group of its own."""
        weight, groups = self.weight(node), self.groups(node)
        if weight is None or groups == 1 or not self.is_convolution(node):
            return False
        return (
            weight.shape[0 if self.kind(node) == "conv-transpose" else 1] * (1 if self.kind(node) == "conv-transpose" else groups)
            == groups
        )

    def behind(self, node: fx.Node) -> Iterator[fx.Node]:
        """Nodes behind it in order of distance, on every way up to the first that has weights or computes a norm."""
        queue, seen = self.readers(node), {node}
        while queue:
            user = queue.pop(0)
            if user in seen:
                continue
            seen.add(user)
            yield user
            if self.kind(user) not in {"conv", "conv-transpose", "linear", "batchnorm", "norm", None}:
                queue += self.readers(user)


def _asks_shape(node: fx.Node) -> bool:
    value = node.meta.get("value")
    return isinstance(value, tuple) and not any(isinstance(part, Tensor) for part in value)
