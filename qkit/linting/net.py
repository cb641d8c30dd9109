"""The network as guidelines look at it: kinds, shapes, paths, places, and what lies before and behind an operation.

Where `qkit.Study` takes the model, it is the normal form that the study's graph is made of, so that what is said of folding is
what will be folded. Where it does not, it is the trace of `torch.fx` that the probe made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx, nn

from qkit.graph import table
from qkit.graph.assembly import Assembly
from qkit.graph.normal_form.fixed_norms import recipe_of
from qkit.graph.normal_form.form import Outline
from qkit.graph.operation import Operation
from qkit.linting.probe_notes import Site

_CONVOLUTIONS = frozenset({"conv", "conv-transpose"})
_PASSES = frozenset({"keep", "drop"})
_ENDS = frozenset({"conv", "conv-transpose", "linear", "batchnorm", "norm", None})
_ACTIVATIONS = "torch.nn.modules.activation."


@dataclass(eq=False)
class Net:
    """A network's operations.

    Attributes
    ----------
    graph
        The normal form's, or the probe's.
    model
        What the paths are paths in.
    assembly
        The study's graph and what it was made from; None where there is none.
    place
        The user's line of a node.
    names
        Names of a file's tensors, by the paths of the modules that compute them.
    """

    graph: fx.Graph
    model: nn.Module
    assembly: Assembly | None = None
    place: Callable[[fx.Node], Site | None] = field(default=lambda node: node.meta.get("site"))
    names: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def constants(self) -> Mapping[fx.Node, Any]:
        """What no input reaches."""
        return self.assembly.constants if self.assembly is not None else {}

    @cached_property
    def calls(self) -> tuple[fx.Node, ...]:
        """Nodes that compute something, in order."""
        return tuple(node for node in self.graph.nodes if node.op.startswith("call_") and node not in self.constants)

    @cached_property
    def _last(self) -> Mapping[Any, fx.Node]:
        """The last operation of each call of a module."""
        return {node.meta.get("module"): node for node in self.calls}

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Those of the study's graph; none where there is no graph."""
        return () if self.assembly is None else self.assembly.graph.operations

    def of_kind(self, kind: str) -> Iterator[tuple[Operation, fx.Node]]:
        """The study's graph's operations of a kind, each with the first node that is a part of it."""
        first: dict[int, fx.Node] = {}
        for node, index in self.assembly.operations.items() if self.assembly is not None else ():
            first.setdefault(index, node)
        yield from ((op, first[op.index]) for op in self.operations if op.kind == kind)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that the node calls, or None."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def operation(self, node: fx.Node) -> Operation | None:
        """The operation of the study's graph that the node is a part of."""
        if self.assembly is None or node not in self.assembly.operations:
            return None
        return self.assembly.graph.operations[self.assembly.operations[node]]

    def kind(self, node: fx.Node) -> str | None:
        """What an integer engine does with it, as `qkit.graph.table` says."""
        module = self.module(node)
        if module is not None:
            return table.module_kind(module)
        if not node.op.startswith("call_"):
            return None
        op = self.operation(node)
        # a product and a sum with numbers per channel are a norm, where the graph has made one of them
        return "batchnorm" if op is not None and op.kind == "batchnorm" else table.function_kind(node)

    @staticmethod
    def name(node: fx.Node) -> str:
        """The operation's or the module's short name."""
        return table.short_name(node.target)

    def shown(self, node: fx.Node) -> str:
        """What people call it: the module's class, or the operation."""
        module = self.module(node)
        return type(module).__name__ if module is not None else str(node.meta.get("called") or self.name(node))

    def layer(self, node: fx.Node) -> str:
        """Path of the module that it is, or that it is in; the file's name of it where the network is a file."""
        return self.named(path_of(node))

    def named(self, path: str) -> str:
        """What a file calls the module at a path of `model`; the path itself where there is no file."""
        return self.names.get(path, path)

    def site(self, node: fx.Node) -> Site | None:
        """The user's line."""
        return self.place(node)

    @staticmethod
    def shape(node: fx.Node) -> tuple[int, ...]:
        """Of its output on the example batch, () if that is no tensor."""
        value = node.meta.get("value")
        return tuple(value.shape) if isinstance(value, (Tensor, Outline)) else ()

    def is_convolution(self, node: fx.Node) -> bool:
        """A convolution or transposed convolution, module or function."""
        return self.kind(node) in _CONVOLUTIONS

    def activation(self, node: fx.Node) -> str:
        """The activation's name, small and without underscores, whether a module or a function does it; "" for all else."""
        module, kind = self.module(node), str(node.meta.get("class", ""))
        if module is not None:
            return type(module).__name__.lower() if type(module).__module__.startswith("torch.nn") else ""
        if kind.startswith(_ACTIVATIONS) and self._last.get(node.meta.get("module")) is node:
            return kind.removeprefix(_ACTIVATIONS).lower()
        return self.name(node).replace("_", "") if node.op.startswith("call_") else ""

    def is_activation(self, node: fx.Node, *names: str) -> bool:
        """An activation of one of these names (as functions are called), module or function."""
        return self.activation(node) in {name.replace("_", "") for name in names}

    def inputs(self, node: fx.Node) -> list[fx.Node]:
        """The tensors that it reads and that depend on the batch."""
        return [n for n in node.all_input_nodes if n.op != "get_attr" and n not in self.constants and not _is_number(n)]

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """Who reads its tensor; dropouts and identities are looked through, questions for its shape left out."""
        found = []
        for user in node.users:
            if self.kind(user) == "drop":
                found += self.readers(user)
            elif user.op == "output" or (isinstance(user.meta.get("value"), (Tensor, Outline, tuple)) and not _asks_shape(user)):
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

    def folded(self, node: fx.Node) -> bool:
        """Whether a norm with fixed statistics is in the layer's weight, in the graph of a study."""
        if self.assembly is None:
            readers = self.readers(node)
            return len(readers) == 1 and self.kind(readers[0]) == "batchnorm"
        own = self.assembly.operations.get(node)
        queue, seen = list(node.users), {node}
        while queue:
            user = queue.pop()
            if user in seen or len(user.all_input_nodes) == 0:
                continue
            seen.add(user)
            if user in self.assembly.absorbed and self._scales(user):
                return True
            if user in self.assembly.absorbed or self.assembly.operations.get(user) == own or self.kind(user) in _PASSES:
                queue += list(user.users)
        return False

    def _scales(self, node: fx.Node) -> bool:
        """Whether it is a batch norm, or multiplies every channel by a number of its own."""
        if self.name(node) == "batch_norm":
            return True
        if self.name(node) not in {"mul", "div"}:
            return False
        recipes = (recipe_of(node, self.constants, axis) for axis in range(len(self.shape(node))))
        values = [self.constants.get(source) for recipe in recipes if recipe is not None for source in recipe.sources]
        return any(isinstance(value, Tensor) and value.numel() > 1 for value in values)

    def weight(self, node: fx.Node) -> Tensor | None:
        """The weight of a module, or of a function that takes a parameter; what is folded into it left out."""
        module = self.module(node)
        if module is not None:
            weight = getattr(module, "weight", None)
            return weight.detach() if isinstance(weight, Tensor) else None
        source = table.weighted_arguments(node).get("weight")
        if not isinstance(source, fx.Node):
            return None
        if source in self.constants:
            known = self.constants[source]
            return known.detach() if isinstance(known, Tensor) else None
        if source.op != "get_attr":
            return None
        value: Any = self.model
        for part in str(source.target).split("."):
            value = getattr(value, part)
        return value.detach() if isinstance(value, Tensor) else None

    def folded_weight(self, node: fx.Node) -> tuple[Tensor, int] | None:
        """The weight of the study's graph, norms folded in, and the axis of its output channels; None where there is no graph."""
        op = self.operation(node)
        if self.assembly is None or op is None or op.weight is None or op.weight_axis is None:
            return None
        return self.assembly.graph.weights[op.weight].detach(), op.weight_axis

    def groups(self, node: fx.Node) -> int:
        """Of a convolution; 1 where it is computed, as from the size of the batch."""
        module = self.module(node)
        groups = getattr(module, "groups", 1) if module is not None else table.weighted_arguments(node).get("groups", 1)
        return groups if isinstance(groups, int) else 1

    def is_depthwise(self, node: fx.Node) -> bool:
        """A convolution whose every input channel is a group of its own."""
        weight, groups = self.weight(node), self.groups(node)
        if weight is None or groups == 1 or not self.is_convolution(node):
            return False
        return weight.shape[0] == groups if self.kind(node) == "conv-transpose" else weight.shape[1] == 1

    def behind(self, node: fx.Node) -> Iterator[fx.Node]:
        """Nodes behind it in order of distance, on every way up to the first that has weights or computes a norm."""
        queue, seen = self.readers(node), {node}
        while queue:
            user = queue.pop(0)
            if user in seen:
                continue
            seen.add(user)
            yield user
            if self.kind(user) not in _ENDS:
                queue += self.readers(user)


def path_of(node: fx.Node) -> str:
    """Path of the module that the node is, or that it is in."""
    return str(node.target) if node.op in {"call_module", "get_attr"} else str(node.meta.get("path", ""))


def _asks_shape(node: fx.Node) -> bool:
    value = node.meta.get("value")
    return isinstance(value, tuple) and not any(isinstance(part, (Tensor, Outline)) for part in value)


def _is_number(node: fx.Node) -> bool:
    """Whether it is a size, or another number that is no tensor."""
    return "value" in node.meta and not isinstance(node.meta["value"], (Tensor, Outline, tuple))
