"""A module through `torch.export`, undecomposed, at one batch size.

Nothing is computed: the trace runs on tensors without numbers, so that its cost does not depend on the batch, and the batch
can be a number that is no other size in the network. A literal that is a multiple of it is the batch
(`qkit.graph.normal_form.batch`).
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.multiprocessing.reductions import StorageWeakRef

from qkit.errors import GraphError
from qkit.graph.door.explaining import shaped_by_data
from qkit.graph.fronts.fx import Traced
from qkit.graph.fronts.opaque import call_of
from qkit.graph.normal_form.form import NormalForm, fetch, outline
from qkit.graph.table import short_name

#: Operations that only look at a value, or check it.
_CHECKS = frozenset(
    "_assert_tensor_metadata _assert_scalar _assert_async sym_constrain_range sym_constrain_range_for_size _guards_fn".split()
)
_INLINED = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast"})
#: Calls that take another tensor's shape, and those that have the shape written in them.
_SHAPED_AS = {
    "reshape_as": torch.ops.aten.reshape.default,
    "view_as": torch.ops.aten.reshape.default,
    "expand_as": torch.ops.aten.expand.default,
}
ROOT = "net"


class Flat(nn.Module):
    """The network as a function of the batch's tensors that returns a flat tuple of tensors."""

    def __init__(self, net: nn.Module, call: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.net = net
        self._call = call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The network's tensors, in order."""
        return self._call(self.net, tensors)


def export(net: nn.Module, tensors: Sequence[Tensor], call: Callable[..., tuple[Tensor, ...]], batch: int) -> NormalForm:
    """The normal form of a network whose tensors' first dimension is the batch.

    Parameters
    ----------
    tensors
        The batch's tensors; those with numbers that matter to the trace are not float.
    call
        ``call(net, tensors)`` runs the network and returns its tensors in a flat tuple.
    batch
        Number of samples in them.
    """
    flat = Flat(net, call)
    with warnings.catch_warnings(), torch.no_grad(), _plain_attention(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.export.export(flat, (*tensors,), strict=False)
    by_data = shaped_by_data(program.graph.nodes, net)
    if by_data is not None:
        raise by_data
    return normal_form(program, net, batch)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the reports that torch logs of operations that fail in a trace: another way in follows, or an error of our own."""
    loggers = [logging.getLogger(f"torch.{name}") for name in ("_subclasses.fake_tensor", "fx.experimental.symbolic_shapes")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with redirect_stderr(io.StringIO()):  # torch prints what it has traced so far
            yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without the fused kernels of nn.MultiheadAttention, which have no operations to look at."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def normal_form(program: torch.export.ExportedProgram, net: nn.Module, batch: int) -> NormalForm:
    """The program's calls with parameters and constants by their names in `net`."""
    form = NormalForm(fx.Graph(), {}, batch)
    copied: dict[fx.Node, Any] = {}
    signature = program.graph_signature
    for spec, node in zip(signature.input_specs, (n for n in program.graph.nodes if n.op == "placeholder"), strict=True):
        if spec.kind is InputKind.USER_INPUT:
            new = form.graph.placeholder(node.name)
            new.meta["value"] = outline(node.meta.get("val"))
        elif spec.kind in {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}:
            target = str(spec.target)
            value = program.state_dict.get(target, program.constants.get(target))
            if not isinstance(value, Tensor):
                raise GraphError(f"{target} is a {type(value).__name__}, not a tensor: the network cannot be analysed with it.")
            name = target.removeprefix(f"{ROOT}.")
            form.constants[name] = value.detach()
            new = form.graph.create_node("get_attr", name, name=node.name)
            new.meta["value"] = outline(value)
        else:
            raise GraphError(f"{type(net).__name__} takes {spec.target or node.name}, a {spec.kind.name.lower()}, not a tensor.")
        new.meta["path"] = ""
        copied[node] = new
    copier = _Copier(form, net, program.graph_module)
    for node, new in copied.items():
        copier.note_memory(new, node)
    result = copier.run(program.graph, copied)
    kept = [value for spec, value in zip(signature.output_specs, result, strict=True) if spec.kind is OutputKind.USER_OUTPUT]
    form.graph.output(tuple(kept))
    written = [str(s.target).removeprefix(f"{ROOT}.") for s in signature.output_specs if s.kind is OutputKind.BUFFER_MUTATION]
    form.changed += [name for name in written if name not in form.changed]
    for node in list(form.graph.nodes):
        if node.op == "get_attr" and not node.users:
            form.graph.erase_node(node)
    return form


def is_exported(model: nn.Module) -> bool:
    """Whether the module is one that torch.export made: its calls are those of `aten` operations already."""
    return isinstance(model, fx.GraphModule) and any(
        isinstance(n.target, torch._ops.OpOverload) and n.target.namespace == "aten" for n in model.graph.nodes
    )


def form_of_module(module: nn.Module, batch: int) -> NormalForm:
    """The normal form of a module that torch.export made (``program.module()``)."""
    assert isinstance(module, fx.GraphModule)
    form = NormalForm(fx.Graph(), {}, batch)
    copied: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
            new = form.graph.placeholder(node.name)
            new.meta = {"value": outline(node.meta["val"]), "path": ""}
            copied[node] = new
    first = next((n for n in copied.values() if n.meta["value"].shape), None)
    copier = _Copier(form, module, module)
    for node, new in copied.items():
        copier.note_memory(new, node)
    result = copier.run(module.graph, copied)
    form.batch = first.meta["value"].shape[0] if first is not None else batch
    form.graph.output(tuple(n for n in _flat(result) if isinstance(n, fx.Node)))
    return form


def _flat(value: Any) -> list[Any]:
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, (tuple, list)) else [value]


class _Copier:
    """Copies calls into a form, with what their notes say of module and line; inlines regions without gradients or autocast."""

    def __init__(self, form: NormalForm, net: nn.Module, module: fx.GraphModule) -> None:
        self.form, self.module = form, module
        self.memories: dict[StorageWeakRef, int] = {}
        self.renamed: Mapping[str, str] = getattr(net, "paths", {}) if isinstance(net, Traced) else {}
        self.counts: Counter[str] = Counter()
        self.call: tuple[Any, ...] = ()

    def run(self, graph: fx.Graph, copied: dict[fx.Node, Any]) -> tuple[Any, ...]:
        for node in graph.nodes:
            if node.op == "placeholder":
                continue
            if node.op == "output":
                return tuple(fx.map_arg(node.args[0], copied.__getitem__))
            copied[node] = self._copy(node, copied)
        raise AssertionError("a graph ends in its output")

    def _copy(self, node: fx.Node, copied: dict[fx.Node, Any]) -> Any:
        name = short_name(node.target)
        if node.op == "get_attr":
            value = fetch(node.graph.owning_module or self.module, str(node.target))
            if isinstance(value, fx.GraphModule):
                return value
            key = str(node.target)
            if not isinstance(value, Tensor):
                raise GraphError(f"{key} is a {type(value).__name__}, not a tensor: the network cannot be analysed with it.")
            self.form.constants[key] = value.detach()
            new = self.form.graph.create_node("get_attr", key)
            new.meta = {"value": outline(value), "path": ""}
            self.note_memory(new, node)
            return new
        if node.op == "call_module" or name in _CHECKS:
            return None
        args: Any = fx.map_arg(node.args, copied.__getitem__)
        kwargs: Any = fx.map_arg(node.kwargs, copied.__getitem__)
        if name in _INLINED:
            position = next(i for i, part in enumerate(args) if isinstance(part, fx.GraphModule))
            if name == "wrap_with_autocast" and args[2]:  # device, type, whether it is on
                self.form.autocast = str(args[1] or "half precision").removeprefix("torch.")
            inner = args[position].graph
            operands = dict(zip((n for n in inner.nodes if n.op == "placeholder"), args[position + 1 :], strict=True))
            return self.run(inner, operands)
        if name == "getitem" and isinstance(args[0], tuple):  # of a region that was inlined
            return args[0][args[1]]
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise GraphError(
                f"{node.target} in {self._module(node)['path'] or 'the model'}: control flow inside the network (torch.cond, "
                "while_loop, scan) has no integer form. Decide outside of the network."
            )
        target: Any = node.target
        if target is torch.ops.qkit.opaque.default:
            target = call_of(int(args[1]))
        elif target in {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}:
            target = torch.ops.aten.reshape.default  # lanes keep images in channels-last memory, where not every view exists
        elif name in _SHAPED_AS:  # reads no numbers of the other tensor
            target, args = _SHAPED_AS[name], (args[0], list(node.meta["val"].shape))
        new = self.form.graph.call_function(target, args, kwargs)
        module = self._module(node)
        new.meta = {
            "value": outline(node.meta.get("val")),
            "called": _called(node),
            "origin": self._origin(node, module),
            **module,
        }
        self.note_memory(new, node)
        if "stack_trace" in node.meta:
            new.meta["stack_trace"] = node.meta["stack_trace"]
        return new

    def note_memory(self, new: fx.Node, node: fx.Node) -> None:
        """A number for the memory that the node's tensors had in the trace: equal where they share it."""
        value = node.meta.get("val")
        value = value[0] if isinstance(value, (tuple, list)) and value else value
        if isinstance(value, Tensor):
            memory = StorageWeakRef(value.untyped_storage())
            new.meta["memory"] = self.memories.setdefault(memory, len(self.memories))

    def _origin(self, node: fx.Node, module: dict[str, str]) -> str:
        """``path:function#k``: the k-th call of that function in a module, one for all nodes that the call became.

        Attention has none and counts for none, since it becomes several operations.
        """
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            self.call = ()
            return ""
        note = node.meta.get("torch_fn")
        name = f"{module['path']}:{short_name(str(note[1]).rsplit('.', 1)[-1] if note else node.target)}"
        call = (module["module"], name, note or node.name)
        self.counts[name] += call != self.call
        self.call = call
        return f"{name}#{self.counts[name]}"

    def _module(self, node: fx.Node) -> dict[str, str]:
        """Path of the innermost module that the node is in, a key of that module's call, and the module's class."""
        for key, entry in reversed(list((node.meta.get("nn_module_stack") or {}).items())):
            text, kind = entry if isinstance(entry, tuple) else (entry, "")
            path = _plain_path(str(text))
            if path or text == ROOT:
                name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
                return {"path": self.renamed.get(path, path), "module": str(key), "class": name}
        return {"path": "", "module": "", "class": ""}


def _plain_path(text: str) -> str:
    """``features.0`` of ``net.features.0@1``, and of ``L['self'].features.0`` as older programs have it."""
    path = re.sub(r"@\d+", "", text)
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", re.sub(r"^L\['self'\]", "", path)).strip(".")
    return path.removeprefix(ROOT).lstrip(".") if path.split(".")[0] == ROOT else path


def _called(node: fx.Node) -> str | None:
    """``relu`` of ``("relu_1", "function.relu")``, which torch.export notes; one call may have become several nodes."""
    note = node.meta.get("torch_fn")
    if not note or not isinstance(node.target, torch._ops.OpOverload):
        return None
    name = short_name(str(note[1]).rsplit(".", 1)[-1])
    return None if name in {"default", "Tensor"} or "OpOverload" in str(note[1]) else name
