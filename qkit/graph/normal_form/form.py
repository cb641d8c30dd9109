"""The normal form: a list of calls of `aten` operations on tensors, every operand an earlier value or a constant.

It is a `torch.fx.Graph` with three kinds of nodes besides the output: a placeholder for every tensor of a batch, a ``get_attr``
for every parameter, buffer and constant, and calls of functions. None of them writes to its inputs. What a node's ``meta`` says:

``path``, ``module``
    Path of the innermost module that the operation is in, and a key of that module's call.
``called``
    What the Python code called, as people write it: ``relu``, ``add``, ``conv2d``.
``value``
    What it gives on the traced batch, tensors as `Outline`.
``memory``
    A number, equal for tensors that shared memory in the trace; missing where the trace does not say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qkit.graph.table import short_name


@dataclass(frozen=True)
class Outline:
    """A tensor's shape and type, without its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.dtype.is_floating_point


@dataclass(eq=False)
class NormalForm:
    """A network as calls of `aten` operations.

    Attributes
    ----------
    graph
        The calls, see above.
    constants
        Parameters, buffers and other constants by the ``get_attr`` nodes' targets.
    batch
        Number of samples that it was traced with.
    front
        The way it came in: "export" or "fx".
    rebuild
        Makes the network's own output structure of the flat tuple of tensors that the graph returns.
    changed
        Buffers that the forward overwrites.
    autocast
        The type that parts of the forward ask autocast for, which a graph does not follow; "" where there are none.
    prime
        Whether `batch` is a prime that was chosen for the trace, and a multiple of it is one of the batch.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]
    batch: int
    front: str = "export"
    rebuild: Any = None
    changed: list[str] = field(default_factory=list)
    open: bool = True
    prime: bool = False
    autocast: str = ""

    @property
    def calls(self) -> Iterator[fx.Node]:
        """The operations in order."""
        return (node for node in self.graph.nodes if node.op == "call_function")


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of the node's tensor on the traced batch, () where it gives no single tensor."""
    value = node.meta.get("value")
    return value.shape if isinstance(value, Outline) else ()


def is_float(node: fx.Node) -> bool:
    """Whether the node gives floating-point tensors, alone or in a tuple."""
    return any(outline.is_float for outline in outlines(node.meta.get("value")))


def outlines(value: Any) -> list[Outline]:
    """All tensors' outlines in a value."""
    if isinstance(value, Outline):
        return [value]
    return [o for part in value for o in outlines(part)] if isinstance(value, (tuple, list)) else []


def outline(value: Any) -> Any:
    """A value with tensors replaced by their outlines."""
    if isinstance(value, Tensor):
        return Outline(tuple(int(size) for size in value.shape), value.dtype)
    return tuple(outline(part) for part in value) if isinstance(value, (tuple, list)) else value


def operands(node: fx.Node) -> tuple[Any, ...]:
    """The node's positional arguments; torch types them as all that there is."""
    return node.args


def applied(node: fx.Node, value: Callable[[fx.Node], Any]) -> Any:
    """What the node's function gives on its operands' values."""
    function: Any = node.target
    kwargs: Any = fx.map_arg(dict(node.kwargs), value)
    return function(*operands_at(node, value), **kwargs)


def operands_at(node: fx.Node, value: Callable[[fx.Node], Any]) -> tuple[Any, ...]:
    """The positional arguments with values in the nodes' places."""
    found: Any = fx.map_arg(node.args, value)
    return tuple(found)


def called(node: fx.Node) -> str:
    """What the Python code called; the operation's own name where that is not known."""
    return str(node.meta.get("called") or short_name(node.target))


def name_of(node: fx.Node) -> str:
    """Name of the operation in `qkit.graph.table.KINDS`."""
    return short_name(node.target)


def sole_reader(node: fx.Node) -> fx.Node | None:
    """The only node that reads this one, None where there are several, it is the output, or the node's value is held."""
    if node.meta.get("held"):
        return None
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def put(
    form: NormalForm, node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, **meta: Any
) -> fx.Node:
    """A call in the place of `node`, for all its readers; it has the node's `meta` but for what is given."""
    with form.graph.inserting_before(node):
        new = form.graph.call_function(target, args, dict(kwargs or {}))
    inherit(new, node, **meta)
    node.replace_all_uses_with(new)
    return new


def drop_unread(form: NormalForm) -> None:
    """Take out the calls whose values nothing reads."""
    form.graph.eliminate_dead_code(lambda node: node.op in {"placeholder", "output"})


def inherit(new: fx.Node, old: fx.Node, **changes: Any) -> fx.Node:
    """Give a new node the `meta` of the one that it stands for."""
    new.meta = {**old.meta, **changes}
    return new


def fetch(holder: Any, path: str) -> Any:
    """The attribute of that dotted path."""
    for part in path.split("."):
        holder = getattr(holder, part)
    return holder
