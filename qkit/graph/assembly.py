"""From a network to its graph: a way in, the normal form, and from there the operations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from qkit.errors import DataError, GraphError, QkitError
from qkit.graph.buffers import unchanged, watched
from qkit.graph.builder import Builder
from qkit.graph.door.arguments import Leaf, arguments, batch_size, call_arguments, does_not_run, flatten_output, rebuild_output
from qkit.graph.door.arrival import arrive
from qkit.graph.door.copying import copy_of
from qkit.graph.door.entry import Entry, call, entry_of
from qkit.graph.door.explaining import explained
from qkit.graph.door.leaves import as_leaves, leaf_paths
from qkit.graph.door.model_files import network, origin_of
from qkit.graph.door.refusals import check_tensors
from qkit.graph.fronts.export import export, form_of_module, is_exported
from qkit.graph.fronts.fx import Traced
from qkit.graph.fronts.opaque import kept
from qkit.graph.graph import Graph
from qkit.graph.normal_form.batch import open_batch, unused_prime
from qkit.graph.normal_form.constants import constants_of
from qkit.graph.normal_form.form import NormalForm, is_float, sole_reader
from qkit.graph.normal_form.patterns import recognize
from qkit.graph.normal_form.purify import make_pure
from qkit.graph.normal_form.spelling import spell
from qkit.graph.onnx_file import OnnxNetwork
from qkit.graph.operation import Operation
from qkit.graph.running import execution, run_float
from qkit.graph.structures import float_tensors, fresh, map_tensors
from qkit.graph.table import clamp_bounds
from qkit.listing import few

#: The graph may differ from the model by this much, relative to the output's greatest magnitude.
DEVIATION = 1e-4
#: Or by so many times what the model's own float32 output differs from float64's: in another order it rounds otherwise.
OWN = 2.0


@dataclass(frozen=True, eq=False)
class Assembly:
    """A graph and what it was made from.

    Attributes
    ----------
    form
        The normal form, with dropout and computed constants left in, which training needs.
    operations
        Index in ``graph.operations`` of the operation that each node of `form` is a part of.
    model
        The copy that was traced: what the form's constants are paths in.
    constants
        The values of nodes that no input reaches.
    absorbed
        Norms that are in the weight of the layer in front of them.
    """

    graph: Graph
    form: NormalForm
    operations: Mapping[fx.Node, int]
    model: nn.Module
    constants: Mapping[fx.Node, Any]
    absorbed: frozenset[fx.Node] = frozenset()


def build(
    model: nn.Module | str | Path | ExportedProgram,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    device: torch.device | str | None = None,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
) -> Graph:
    """Trace, fold and fuse a copy of `model`.

    Parameters
    ----------
    model
        In float32; may be in training mode, the copy is put in evaluation mode.
    example_inputs
        One batch, from which shapes are taken.
    device
        Where the graph shall run; the model's own by default.
    leaf_modules
        Module classes or paths to keep out of the graph's integers; they stay float.

    Raises
    ------
    GraphError
        If the model cannot be traced (with file, line and cure) or changes its inputs in place.
    DataError
        If the model is not float32 or lies on several devices, or the batch does not fit it.
    """
    return assemble(model, example_inputs, device=device, leaf_modules=leaf_modules).graph


def assemble(
    model: nn.Module | str | Path | ExportedProgram,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    device: torch.device | str | None = None,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
) -> Assembly:
    """`build`, with the normal form behind the operations."""
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    arrival = arrive(network(model, inputs))
    target = check_tensors(arrival.model, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copied = copy_of(arrival.model).to(target)
    inputs = map_tensors(inputs, lambda x: x.to(target))
    leaves = as_leaves(leaf_modules)

    generators = [target] if target.type == "cuda" else []
    with torch.random.fork_rng(generators), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entry, found = entry_of(copied, inputs)
        with kept(copied, leaf_paths(copied, leaves), batch_size(found)):
            with execution(target, inference=False):
                reference, changed = _watched(copied, entry, found, inputs)
            source = _Source(copied, entry, tuple(found), inputs, leaves, target, arrival.remarks, changed)
            return _assembly(source, reference)


@dataclass(frozen=True, eq=False)
class _Source:
    """What a graph is made from: a private copy of the model and one batch."""

    model: nn.Module
    entry: Entry
    leaves: tuple[Leaf, ...]
    inputs: tuple[Any, ...]
    leaf_modules: tuple[type[nn.Module] | str, ...]
    device: torch.device
    remarks: tuple[str, ...]
    changed: tuple[str, ...] = ()

    @property
    def values(self) -> list[Any]:
        return [leaf.value for leaf in self.leaves]


def _watched(model: nn.Module, entry: Entry, found: Sequence[Leaf], inputs: tuple[Any, ...]) -> tuple[Any, tuple[str, ...]]:
    """The model's output on the batch, and the state that this changed: buffers, and else what a second pass answers by."""
    buffers = {name for name, _ in model.named_buffers()}
    with unchanged(model):
        drawn = torch.get_rng_state()
        with watched(model) as changes:
            output = _reference(model, entry, found, inputs)
        changed = [path for path in changes.found if path in buffers]
        others = [path for path in changes.found if path not in buffers]
        if others:
            with torch.random.fork_rng([]):
                torch.set_rng_state(drawn)
                again = _reference(model, entry, found, inputs)
            changed += others if deviation(again, output) > DEVIATION else []
    return output, tuple(changed)


def _reference(model: nn.Module, entry: Entry, found: Sequence[Leaf], inputs: tuple[Any, ...]) -> Any:
    """The model's output on the batch."""
    try:
        output = call(entry, model, fresh([leaf.value for leaf in found]))
    except GraphError:
        raise
    except Exception as error:
        args, kwargs = call_arguments(model, inputs)
        raise does_not_run(model, args, kwargs, error) from error
    flatten_output(output)
    return output


def _assembly(source: _Source, reference: Any) -> Assembly:
    """The first way in that gives a graph which computes what the model does."""
    errors: list[Exception] = []
    best: Assembly | None = None
    own: float | None = None
    ways = (_exported_before,) if is_exported(source.model) else (_at_a_prime, _as_it_is, _through_fx)
    for way in ways:
        try:
            with unchanged(source.model):
                form = way(source)
        except Exception as error:  # whatever the user's forward does under a trace
            errors.append(error)
            continue
        try:
            made = _made(source, form, reference)
        except (QkitError, RuntimeError, ValueError, TypeError, IndexError) as error:
            errors.append(error)
            continue
        if not made.graph.deviation > DEVIATION:  # NaN comes from the model's own numbers
            return made
        with unchanged(source.model):
            again = None if best is not None else _reference(source.model, source.entry, source.leaves, source.inputs)
        if again is not None and deviation(again, reference) > DEVIATION:
            return made  # the model does not repeat itself, so that no way in could
        if own is None:  # what autocast does is no rounding of float32
            own = 0.0 if form.autocast else _own_error(source, reference)
        if made.graph.deviation <= OWN * own:
            return replace(made, graph=replace(made.graph, own_error=own))  # no way in could be nearer
        best = made if best is None or made.graph.deviation < best.graph.deviation else best
    if best is not None:
        return best
    raise explained(errors, source.model)


def _own_error(source: _Source, reference: Any) -> float:
    """How far the model's float32 output is from its own in float64, relative; 0 where it does not run in float64."""
    try:
        with unchanged(source.model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exact = copy_of(source.model).double()
            values = [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in source.values]
            return deviation(reference, call(source.entry, exact, values))
    except Exception:  # whatever the user's forward does with other numbers than float32
        return 0.0


def _exported_before(source: _Source) -> NormalForm:
    """The calls of a module that torch.export made."""
    form = form_of_module(source.model, batch_size(source.leaves))
    form.front = "pt2"
    return form


def _at_a_prime(source: _Source) -> NormalForm:
    """torch.export at a batch that is no other size in the network."""
    tensors = [value for value in source.values if isinstance(value, Tensor)]
    size = batch_size(source.leaves)
    return _exported(source, unused_prime(_sizes(source, tensors, size)), size)


def _sizes(source: _Source, tensors: Sequence[Tensor], batch: int) -> list[int]:
    """Sizes that the batch of a trace has to differ from, the given batch among them: with it the graph is checked."""
    known = (*tensors, *source.model.parameters(), *source.model.buffers())
    return [batch, *(size for tensor in known for size in tensor.shape[1:] or tensor.shape)]


def _as_it_is(source: _Source) -> NormalForm:
    """torch.export at the batch's own size, for networks that do not take another."""
    size = batch_size(source.leaves)
    return _exported(source, size, size)


def _exported(source: _Source, batch: int, size: int) -> NormalForm:
    spec: list[Any] = []
    tensors = [_resized(leaf.value, size, batch) for leaf in source.leaves if leaf.is_tensor]

    def run(net: nn.Module, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        rest = iter(given)
        values = [next(rest) if leaf.is_tensor else leaf.value for leaf in source.leaves]
        found, made = flatten_output(call(source.entry, net, values))
        spec[:] = [made]
        return tuple(tensor for _, tensor in found)

    form = export(source.model, tensors, run, batch)
    form.rebuild = partial(rebuild_output, spec[0])
    form.prime = batch != size
    return form


def _resized(tensor: Tensor, size: int, batch: int) -> Tensor:
    """A tensor of another number of samples, without numbers where they are float; memory never touched costs none."""
    if not tensor.ndim or tensor.shape[0] != size or batch == size:
        return tensor
    shape = (batch, *tensor.shape[1:])
    return tensor.new_empty(shape) if tensor.is_floating_point() else tensor[:1].expand(shape).clone()


def _through_fx(source: _Source) -> NormalForm:
    """torch.fx, whose calls run through torch.export in turn."""
    size = batch_size(source.leaves)
    traced = Traced(source.model, size)
    with torch.no_grad():
        call(source.entry, traced, fresh(source.values))  # notes the shapes of what is not looked into
    tensors = [value for value in source.values if isinstance(value, Tensor)]
    form = _exported(replace(source, model=traced), unused_prime(_sizes(source, tensors, size)), size)
    form.front = "fx"
    return form


def _made(source: _Source, form: NormalForm, reference: Any) -> Assembly:
    """The graph of a normal form."""
    origin = origin_of(source.model)
    names = [leaf.name for leaf in source.leaves if leaf.is_tensor] if origin is None else list(origin.inputs)
    for node, name in zip((n for n in form.graph.nodes if n.op == "placeholder"), names, strict=True):
        node.meta["name"] = name
    if form.rebuild is None:
        form.rebuild = partial(rebuild_output, flatten_output(reference)[1])
    make_pure(form)
    open_batch(form)
    constants = constants_of(form)
    spell(form, constants)
    if origin is not None:
        _hold(form, constants, origin)
    recognize(form, constants)
    size = batch_size(source.leaves)
    if origin is not None:
        form.front = "onnx"
    builder = Builder(form, constants, size, {} if origin is None else origin.names, {} if origin is None else origin.tensors)
    operations = builder.build()
    graph = Graph(
        operations, builder.weights, builder.biases, source.entry.model, source.device, source.entry,
        last_use=_last_use(operations), leaf_modules=source.leaf_modules, front=form.front,
        remarks=(*source.remarks, *_remarks(form, source)), nodes=_nodes(operations, origin),
    )  # fmt: skip
    output = run_float(graph, source.inputs)
    graph = replace(graph, deviation=deviation(output, reference))
    if not form.prime and graph.deviation <= DEVIATION and not _takes_another_batch(graph, source, output):
        said = f"The network computes with its batch of {size}: it takes no other."
        graph = replace(graph, fixed_batch=size, remarks=(*graph.remarks, said))
    return Assembly(graph, form, builder.part, source.model, constants, frozenset(builder.absorbed))


def _nodes(operations: Sequence[Operation], origin: OnnxNetwork | None) -> dict[str, str]:
    known = {} if origin is None else origin.nodes
    return {op.name: known[op.name] for op in operations if op.name in known}


def _hold(form: NormalForm, constants: Mapping[fx.Node, Any], origin: OnnxNetwork) -> None:
    """Note the values that a quantized file has on a grid: they stay tensors of their own, whatever could be fused."""
    ends = {str(node.meta.get("path", "")): node for node in form.calls if node not in constants and is_float(node)}
    named = {node: origin.names[path] for path, node in ends.items() if path in origin.names}
    for node, name in named.items():
        grid, reader = origin.grids.get(name), sole_reader(node)
        behind = origin.grids.get(named.get(reader, "")) if reader is not None and clamp_bounds(reader) else None
        if grid is not None and not (behind is not None and behind.same(grid)):
            node.meta["held"] = True


def _takes_another_batch(graph: Graph, source: _Source, output: Any) -> bool:
    """Whether the graph gives for twice the batch what the model does: a trace at one batch may have it in its numbers.

    Where the model itself takes no other batch, twice the batch has to give twice the output.
    """
    size = batch_size(source.leaves)
    values = [torch.cat([v, v]) if isinstance(v, Tensor) and v.ndim and v.shape[0] == size else v for v in source.values]
    args, kwargs = arguments(source.entry.specs, values)
    try:
        with torch.no_grad():
            wanted = float_tensors(call(source.entry, source.model, fresh(values)))
    except Exception:  # whatever the user's forward does with a batch that it is not made for
        wanted = [torch.cat([a, a]) if a.ndim else a for a in float_tensors(output)]
    try:
        doubled = float_tensors(run_float(graph, (kwargs,) if source.entry.keywords else args))
        return all(
            a.shape == b.shape and torch.allclose(b, a, rtol=1e-3, atol=1e-5) for a, b in zip(wanted, doubled, strict=True)
        )
    except (RuntimeError, ValueError, IndexError, DataError):
        return False


def _remarks(form: NormalForm, source: _Source) -> list[str]:
    said = []
    if form.front == "fx":
        said.append("torch.export could not trace the model; torch.fx did.")
    if form.autocast:
        said.append(f"The forward turns autocast to {form.autocast} on; here everything is computed in float32.")
    changed = list(dict.fromkeys((*form.changed, *source.changed)))
    if changed:
        buffers = {name for name, _ in source.model.named_buffers()}
        what = ("buffers" if len(changed) > 1 else "buffer") if buffers.issuperset(changed) else "state"
        said.append(
            f"The forward changes the {what} {few(changed)} in evaluation mode; every pass here starts from the values that "
            "the model was handed over with."
        )
    return said


def deviation(output: Any, reference: Any) -> float:
    """Greatest absolute difference over all tensors of two equal structures, relative to the reference's greatest magnitude.

    Infinite where shapes differ.
    """
    pairs = list(zip(float_tensors(output), float_tensors(reference), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return math.inf
    peak = max((float(b.abs().max()) for _, b in pairs if b.numel()), default=0.0)
    return max((float((a - b).abs().max()) for a, b in pairs if b.numel()), default=0.0) / max(peak, 1e-30)


def _last_use(operations: tuple[Operation, ...]) -> dict[int, int]:
    last: dict[int, int] = {}
    for op in operations:
        last |= dict.fromkeys((*op.inputs, op.index), op.index)
    return last
