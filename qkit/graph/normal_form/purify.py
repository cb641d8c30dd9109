"""Operations that write to their inputs become operations that return new tensors: lanes share tensors, so nothing may write.

Writing to a view (``x[:, ::2] = y``, ``x.view(-1).clamp_(0)``) writes to what it is a view of, and to all other views of that. So
every view remembers what it was made of. A write puts its base together anew, and whoever reads the base or another view of it
afterwards reads one that is made of the new base. What shares memory is what did so in the trace (``meta["memory"]``): a
reshape of a transposed tensor is a copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qkit.errors import GraphError
from qkit.graph.normal_form.form import NormalForm, Outline, drop_unread, inherit, name_of, operands, outlines, shape_of
from qkit.graph.table import bound_arguments

_aten = torch.ops.aten
_SHAPED = frozenset("view reshape flatten unflatten squeeze unsqueeze view_as reshape_as".split())
_SAME = frozenset("detach alias contiguous to type_as".split())
#: Give their input itself in evaluation mode, which a trace does not see.
_DROPS = frozenset("dropout feature_dropout alpha_dropout feature_alpha_dropout".split())
#: Views for sure, whatever the memory is like.
_ALWAYS = frozenset("slice select transpose permute t unsqueeze squeeze expand narrow".split())
#: Give a tensor another shape in place, and leave its numbers.
_TURNED = frozenset("transpose t unsqueeze squeeze swapaxes swapdims".split())
_RANDOM = frozenset("random uniform normal bernoulli exponential log_normal cauchy geometric".split())


def make_pure(form: NormalForm) -> None:
    """Replace all operations that write, and leave out what nothing reads; changes the form in place.

    Raises
    ------
    GraphError
        Where an operation writes through a view that cannot be put back.
    """
    if any(written_argument(node) is not None for node in form.calls):
        _Purifier(form).run()
    drop_unread(form)


class _Purifier:
    """Walks the calls once.

    Every tensor is known by the node that made it; `now` has the node that holds its numbers and the version of the memory that
    those are of.
    """

    def __init__(self, form: NormalForm) -> None:
        self.form = form
        self.graph = form.graph
        self.memory = _memory_is_known(form)
        self.base: dict[fx.Node, fx.Node] = {}
        self.now: dict[fx.Node, tuple[fx.Node, int]] = {}
        self.version: dict[fx.Node, int] = {}
        self.stands_for: dict[fx.Node, fx.Node] = {}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            source, written = self._viewed(node), written_argument(node)
            target = None if written is None else self._seen(written)
            with self.graph.inserting_before(node):
                node.args, node.kwargs = (fx.map_arg(part, self._read) for part in (operands(node), node.kwargs))
                if target is not None and name_of(node) in _TURNED:
                    self._turn(node, target)
                elif target is not None:
                    self._write(node, target)
            if source is not None:
                self.base[node] = source
            if target is None:
                self.now[node] = (node, self._version(node))

    def _seen(self, node: fx.Node) -> fx.Node:
        """The tensor that the program means by a node: what an operation in place returns is what it wrote to."""
        while node in self.stands_for:
            node = self.stands_for[node]
        return node

    def _viewed(self, node: fx.Node) -> fx.Node | None:
        """What the node is a view of."""
        source = operands(node)[0] if node.op == "call_function" and operands(node) else None
        if not isinstance(source, fx.Node) or written_argument(node) is not None:
            return None
        source = self._seen(source)
        if name_of(node) == "getitem":
            return source if source in self.base else None
        if name_of(node) in _DROPS:
            return None if bound_arguments(node).get("train") else source
        if name_of(node) not in _SAME and not _gives_views(node):
            return None
        return source if not self.memory or node.meta.get("memory") == source.meta.get("memory") else None

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self.base:
            node = self.base[node]
        return node

    def _version(self, node: fx.Node) -> int:
        return self.version.get(self._root(node), 0)

    def _read(self, node: fx.Node) -> fx.Node:
        return self._latest(self._seen(node))

    def _latest(self, node: fx.Node) -> fx.Node:
        """The node with the numbers that a tensor has by now; a view of what was written to is made anew."""
        held, version = self.now[node]
        if version == self._version(node):
            return held
        source = self._latest(self.base[node])
        new = self.graph.node_copy(node)
        new.args = (source, *operands(node)[1:])
        self.now[node] = (inherit(new, node), self._version(node))
        return new

    def _turn(self, node: fx.Node, target: fx.Node) -> None:
        """A tensor gets another shape in place: from here on the program means a view of it."""
        new = inherit(self.graph.call_function(_without_writing(node), operands(node), node.kwargs), node)
        self.base[new] = target
        self.now[new] = (new, self._version(target))
        self.stands_for[target] = self.stands_for[node] = new

    def _write(self, node: fx.Node, target: fx.Node) -> None:
        """Give the tensor its new numbers, and its base theirs."""
        root, value = self._root(target), self._new_value(node, target)
        given, current = {target: value}, target
        while current in self.base:
            parent = self.base[current]
            if name_of(current) == "getitem":
                index, split, parent = int(operands(current)[1]), parent, self.base[parent]
                value = self._part_put_back(split, index, parent, value)
            else:
                value = self._put_back(current, parent, value)
            given[parent], current = value, parent
        self.version[root] = self._version(root) + 1
        self.now |= {tensor: (new, self.version[root]) for tensor, new in given.items()}
        self.stands_for[node] = target
        if root.op == "get_attr" and str(root.target) not in self.form.changed:
            self.form.changed.append(str(root.target))

    def _new_value(self, node: fx.Node, target: fx.Node) -> fx.Node:
        """What the operation would write, as a tensor of its own."""
        name, shape, call = name_of(node), list(shape_of(target)), self.graph.call_function
        kwargs = {key: value for key, value in node.kwargs.items() if key != "out"}
        if name == "copy":
            value = operands(node)[1]
            new = call(_aten.clone.default, (value,)) if _shape(value) == shape else call(_aten.expand.default, (value, shape))
        elif name == "fill" and isinstance(operands(node)[1], fx.Node):
            new = call(_aten.expand.default, (operands(node)[1], shape))
        elif name in {"fill", "zero"}:
            new = call(_aten.full_like.default, (self._latest(target), operands(node)[1] if name == "fill" else 0.0))
        elif name in _RANDOM:
            raise GraphError(f"{name}_ in {_where(node)} draws random numbers in evaluation mode: no two passes agree.")
        else:
            new = call(_without_writing(node), operands(node), kwargs)
        inherit(new, node, value=target.meta.get("value"))
        # what is written has the type of what it is written to
        dtype = target.meta["value"].dtype
        read = [o for source in node.all_input_nodes for o in outlines(source.meta.get("value"))]
        if name in {"copy", "fill"}:
            other = (
                any(o.dtype != dtype for o in outlines(operands(new)[0].meta.get("value")))
                if isinstance(operands(new)[0], fx.Node)
                else False
            )
        else:
            other = any(o.dtype != dtype and (o.is_float or not dtype.is_floating_point) for o in read)
        if other:
            new = inherit(call(_aten.to.dtype, (new, dtype)), new, cast=True)
        return new

    def _put_back(self, child: fx.Node, parent: fx.Node, value: fx.Node) -> fx.Node:
        """The parent with the child's new value in the child's place."""
        name, arguments, call = name_of(child), list(operands(child)[1:]), self.graph.call_function
        if name in _SAME | _DROPS or (name in {"expand", "expand_as"} and shape_of(child) == shape_of(parent)):
            return value
        if name in _SHAPED:
            new = call(_aten.reshape.default, (value, list(shape_of(parent))))
        elif name in {"transpose", "swapaxes", "swapdims"}:
            new = call(_aten.transpose.int, (value, *arguments))
        elif name in {"t", "numpy_T", "mT", "adjoint"}:
            last = len(shape_of(parent)) - 1
            new = call(_aten.transpose.int, (value, last - 1, last)) if last else value
        elif name == "permute":
            order = [d % len(arguments[0]) for d in arguments[0]]
            new = call(_aten.permute.default, (value, [order.index(d) for d in range(len(order))]))
        elif name == "movedim":
            function: Any = child.target
            new = call(function, (value, arguments[1], arguments[0]))
        elif name == "narrow":
            dim, start, length = (int(part) for part in arguments)
            new = call(_aten.slice_scatter.default, (self._latest(parent), value, dim, start, start + length))
        elif name in {"slice", "select", "diagonal"}:
            scatter = getattr(_aten, f"{name}_scatter").default
            new = call(scatter, (self._latest(parent), value, *arguments), child.kwargs)
        else:
            raise GraphError(
                f"{_where(child)} changes a tensor in place that shares memory with the one that {name} was applied to. Write it "
                "without the in-place operation."
            )
        return inherit(new, parent)

    def _part_put_back(self, split: fx.Node, index: int, whole: fx.Node, value: fx.Node) -> fx.Node:
        """What was split with one part's new value in the part's place."""
        name = name_of(split)
        given = bound_arguments(split)
        dim = int(given.get("dim", 0))
        source = self._latest(whole)
        if name == "unbind":
            return inherit(self.graph.call_function(_aten.select_scatter.default, (source, value, dim, index)), whole)
        parts = split.meta["value"]
        start = sum(part.shape[dim] for part in parts[:index] if isinstance(part, Outline))
        end = start + parts[index].shape[dim]
        return inherit(self.graph.call_function(_aten.slice_scatter.default, (source, value, dim, start, end)), whole)


def written_argument(node: fx.Node) -> fx.Node | None:
    """The tensor that a call overwrites, None where it overwrites none.

    Raises
    ------
    GraphError
        If it overwrites several.
    """
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return None
    given = {**dict(zip((a.name for a in node.target._schema.arguments), operands(node), strict=False)), **node.kwargs}
    names = [a.name for a in node.target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    written = [given[name] for name in names if given.get(name) is not None]
    if len(written) > 1 or not all(isinstance(part, fx.Node) for part in written):
        raise GraphError(f"{node.target} in {_where(node)} overwrites several tensors. Write it without the in-place operation.")
    return written[0] if written else None


def _gives_views(node: fx.Node) -> bool:
    """Whether the operation's output may share its first input's memory."""
    returns = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else []
    return bool(returns) and returns[0].alias_info is not None


def _without_writing(node: fx.Node) -> Any:
    """The operator that returns what the node's writes.

    Raises
    ------
    GraphError
        If there is none.
    """
    target: Any = node.target
    wanted = _signature(target)
    packet = getattr(getattr(torch.ops, target.namespace), target._schema.name.split("::")[1].rstrip("_"), None)
    for overload in () if packet is None else packet.overloads():
        found = getattr(packet, overload)
        if not found._schema.is_mutable and _signature(found) == wanted:
            return found
    raise GraphError(f"{target} in {_where(node)} changes its input in place. Give it a copy (x.clone()).")


def _signature(target: Any) -> list[tuple[str, str]]:
    """Names and types of what an operator takes, besides ``out``; some call the first tensor ``self`` and some ``input``."""
    found = [(a.name, str(a.type)) for a in target._schema.arguments if a.name != "out"]
    return [("self" if name == "input" else name, kind) for name, kind in found]


def _memory_is_known(form: NormalForm) -> bool:
    """Whether the trace says what shares memory: one that comes from a file says it of nothing."""
    views = (n for n in form.calls if name_of(n) in _ALWAYS and isinstance(operands(n)[0], fx.Node) and _gives_views(n))
    return all(n.meta.get("memory") is not None and n.meta["memory"] == operands(n)[0].meta.get("memory") for n in views)


def _shape(value: Any) -> list[int]:
    return list(shape_of(value)) if isinstance(value, fx.Node) else []


def _where(node: fx.Node) -> str:
    return str(node.meta.get("path") or "the model")
