"""From an ONNX file to a module and the names of its parts."""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qkit.errors import GraphError
from qkit.graph.onnx_file.file_loading import element_type, integer_type, load, type_name
from qkit.graph.onnx_file.file_module import Line, Node, OnnxModule, onnx_module
from qkit.graph.onnx_file.network import OnnxNetwork
from qkit.graph.onnx_file.planning import Emitted, Walk, unique_name
from qkit.graph.onnx_file.sizes import PROBES, depends_on_batch
from qkit.graph.onnx_file.values import Value, as_at_run_time

if TYPE_CHECKING:
    from onnx import GraphProto, ValueInfoProto

Shape = tuple[int | None, ...]


def read_onnx(path: str | Path, *, shapes: Mapping[str, Sequence[int]] | None = None) -> OnnxNetwork:
    """Read an ONNX file (opset 9 to 22) as a module that runs its nodes with torch.

    What the file computes from its weights and from shapes alone is computed here, so that shapes are constants but for the
    batch: the first dimension of every input that leaves it open, the same for all. The module runs at any batch, and
    `torch.export` takes it.

    Parameters
    ----------
    shapes
        Shapes of inputs by name, for inputs that have open dimensions beside the batch. A -1 in front keeps the batch open
        (or opens one that the file has fixed, where its nodes allow it); a number in front fixes it.

    Raises
    ------
    MissingExtra
        If onnx is not installed.
    GraphError
        Naming the file, the input or the node: if the file is damaged, has a shape that is open, data outside its folder, an
        operation that is not supported, or control flow that depends on data.
    """
    path = Path(path)
    model, opsets = load(path)
    try:
        return _network(model.graph, opsets, dict(shapes or {}))
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from error
    except Exception as error:  # names that are not text, numbers where none are expected: a parser cannot list them all
        raise GraphError(f"{path} cannot be read, it is probably damaged ({type(error).__name__}: {error}).") from error


def _network(graph: GraphProto, opsets: Mapping[str, int], given: dict[str, Sequence[int]]) -> OnnxNetwork:
    known = {proto.name for proto in graph.initializer}
    protos = [proto for proto in graph.input if proto.name not in known]
    unknown = sorted(given.keys() - {proto.name for proto in protos})
    if unknown:
        raise GraphError(f"shapes names {unknown[0]!r}; the inputs are {', '.join(repr(p.name) for p in protos) or 'none'}.")
    inputs = {proto.name: _input_shape(proto, given.get(proto.name)) for proto in protos}
    batches = PROBES if any(shape and shape[0] is None for shape in inputs.values()) else (1,)
    walk = Walk(opsets, batches)
    scope: dict[str, Value | None] = {}
    dtypes = {}
    for proto in protos:
        dtype = element_type(proto.type.tensor_type.elem_type, f"the input {proto.name!r}")
        dtypes[proto.name] = torch.float32 if dtype.is_floating_point else dtype
        if dtype.is_floating_point and type_name(proto.type.tensor_type.elem_type) != "float":
            walk.cast[proto.name] = type_name(proto.type.tensor_type.elem_type)
        sizes = [[batch if size is None else size for size in inputs[proto.name]] for batch in batches]
        value = walk.input(proto.name, sizes, dtypes[proto.name])
        value.integers = integer_type(proto.type.tensor_type.elem_type)
        scope[proto.name] = value
    with torch.no_grad():
        walk.graph(graph, scope)
    outputs = {}
    for proto in graph.output:
        made = scope.get(proto.name)
        if made is None:
            raise GraphError(f"the output {proto.name!r} is not made by any node. The file is damaged.")
        outputs[proto.name] = walk.at_run_time(made)
    if not outputs:
        raise GraphError("the file has no output. Export it again.")
    return _assemble(walk, inputs, dtypes, outputs, opsets[""])


def _input_shape(proto: ValueInfoProto, given: Sequence[int] | None) -> Shape:
    kind = proto.type.tensor_type
    if not proto.type.HasField("tensor_type"):
        raise GraphError(f"the input {proto.name!r} is not a tensor (a sequence, a map or an optional), which is not supported.")
    declared: list[int | None] | None = None
    if kind.HasField("shape"):
        declared = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in kind.shape.dim]
    if given is None:
        if declared is None or any(size is None for size in declared[1:]):
            shown = "of any rank" if declared is None else str(tuple("?" if size is None else size for size in declared))
            raise GraphError(
                f"the shape of the input {proto.name!r} is open ({shown}). Give it with shapes={{{proto.name!r}: (-1, ...)}}, "
                "where -1 keeps the batch open."
            )
        return tuple(declared)
    shape = tuple(None if position == 0 and size in {-1, None} else int(size) for position, size in enumerate(given))
    if any(size is not None and size < 1 for size in shape):
        raise GraphError(f"the shape {tuple(given)} of the input {proto.name!r} has a size below 1 behind the batch.")
    if declared is not None:
        fits = len(declared) == len(shape) and all(a is None or a == b for a, b in list(zip(declared, shape, strict=False))[1:])
        if not fits:
            raise GraphError(f"the input {proto.name!r} is {tuple(declared)} in the file, and shapes gives {tuple(given)}.")
    return shape


def _assemble(
    walk: Walk, inputs: Mapping[str, Shape], dtypes: Mapping[str, torch.dtype], outputs: Mapping[str, Value], opset: int
) -> OnnxNetwork:
    module = onnx_module(_arguments(inputs))
    live = _live(walk.emitted, outputs)
    constants = _register(module, [*(v for e in live for v in e.planned.operands), *outputs.values()])

    def source(value: Value | None) -> int | str | None:
        return None if value is None else constants[value] if value.known else value.slot

    last = {v.slot: i for i, e in enumerate(live) for v in e.planned.operands if v is not None and not v.known}
    kept = {value.slot for value in outputs.values()}
    program, names = [], {}
    for position, emitted in enumerate(live):
        module.nodes[emitted.node] = Node(emitted.operator, emitted.planned.function, emitted.planned.settings)
        names[f"nodes.{emitted.node}"] = next((value.name for value in emitted.outputs if value.name), emitted.node)
        made = [value.slot for value in emitted.outputs]
        mine = {v.slot for v in emitted.planned.operands if v is not None and not v.known}
        frees = {slot for slot in mine if last[slot] == position} | {slot for slot in made if slot not in last}
        program.append(
            Line(emitted.node, tuple(source(v) for v in emitted.planned.operands), tuple(made), tuple(sorted(frees - kept)))
        )
    module.program = tuple(program)
    module.sources = tuple((name, source(value)) for name, value in outputs.items())  # type: ignore[misc]
    if any(depends_on_batch(setting) for e in live for setting in e.planned.settings.values()):
        module.batch_of = next(i for i, shape in enumerate(inputs.values()) if shape and shape[0] is None)
    module.eval()
    return OnnxNetwork(
        module=module,
        inputs=dict(inputs),
        dtypes=dict(dtypes),
        outputs=tuple(outputs),
        names=names,
        tensors={path: value.source or value.name for value, path in constants.items()},
        grids=dict(walk.grids),
        opset=opset,
        permutations={path: v.permutation for v, path in constants.items() if v.source and v.permutation is not None},
        cast=dict(walk.cast),
        rectified=dict(walk.rectified),
        nodes=dict(walk.nodes),
    )


def _arguments(inputs: Mapping[str, Shape]) -> tuple[str, ...]:
    made: list[str] = []
    for name in inputs:
        taken = ["self", *made, *keyword.kwlist]
        made.append(unique_name(name, taken))
    return tuple(made)


def _live(emitted: Sequence[Emitted], outputs: Mapping[str, Value]) -> list[Emitted]:
    wanted = {value.slot for value in outputs.values() if not value.known}
    kept = []
    for line in reversed(emitted):
        if any(value.slot in wanted for value in line.outputs):
            wanted |= {value.slot for value in line.planned.operands if value is not None and not value.known}
            kept.append(line)
    return kept[::-1]


def _register(module: OnnxModule, values: Sequence[Value | None]) -> dict[Value, str]:
    constants: dict[Value, str] = {}
    taken = set(dir(module))
    for value in values:
        if value is None or not value.known or value in constants:
            continue
        path = unique_name(value.source or value.name, taken)
        taken.add(path)
        tensor: Tensor = as_at_run_time(value.probes[0]).detach().clone(memory_format=torch.contiguous_format)
        if value.weight and tensor.is_floating_point():
            module.register_parameter(path, nn.Parameter(tensor))
        else:
            module.register_buffer(path, tensor)
        constants[value] = path
    return constants
