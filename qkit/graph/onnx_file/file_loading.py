"""ONNX files from disk: parsed, with external data from the file's own folder only, functions written out, opset checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from qkit.errors import GraphError, MissingExtra, installing
from qkit.files import explained

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

OLDEST, NEWEST = 9, 22
"""Opsets of the ai.onnx domain that are read."""

MAIN = ("", "ai.onnx")


def load(path: Path) -> tuple[ModelProto, dict[str, int]]:
    """The model of a file with all its weights, and the opset of each domain.

    Raises
    ------
    MissingExtra
        If onnx is not installed.
    GraphError
        If the file is missing or damaged, its external data are missing or outside its folder, or its opset is not read.
    """
    try:
        import onnx
        import onnx.inliner
    except ImportError as error:
        raise MissingExtra(f"ONNX files need onnx, which cannot be imported ({error}): {installing('onnx')}.") from error
    with explained(path, "read", GraphError):
        if not path.is_file():
            raise GraphError(f"{path} is not a file. Give the path of an .onnx file.")
        try:
            model = onnx.load(path, load_external_data=False)
        except OSError:
            raise
        except Exception as error:  # protobuf's errors have no common base
            raise GraphError(f"{path} is not an ONNX file, or it is damaged ({_first_line(error)}). Export it again.") from error
    if not model.graph.node and not model.graph.output:
        raise GraphError(f"{path} holds no network: it is not an ONNX file, or it is damaged. Export it again.")
    opsets = {"" if entry.domain in MAIN else entry.domain: entry.version for entry in model.opset_import}
    if not OLDEST <= opsets.get("", 0) <= NEWEST:
        found = f"opset {opsets['']}" if "" in opsets else "no opset of the ai.onnx domain"
        raise GraphError(
            f"{path} has {found}; opsets {OLDEST} to {NEWEST} are read. Export it at one of these, or convert it with "
            "onnx.version_converter.convert_version."
        )
    for tensor in _tensors_of(model.graph):
        _load_external(tensor, path)
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:
            name = model.functions[0].name
            raise GraphError(f"{path}: its functions ({name!r}, say) cannot be written out ({_first_line(error)}).") from error
    return model, opsets


def _tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors_of(inner)


def _load_external(tensor: TensorProto, path: Path) -> None:
    from onnx import TensorProto

    if tensor.data_location != TensorProto.EXTERNAL:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = path.resolve().parent
    found = (folder / location).resolve()
    if not location or not found.is_relative_to(folder):
        raise GraphError(
            f"{path}: the weight {tensor.name!r} is stored in {location!r}, which is outside the file's folder. Put the data "
            "beside the file and save it again; qkit does not read files from elsewhere."
        )
    if not found.is_file():
        raise GraphError(f"{path}: {location!r}, which holds the weight {tensor.name!r}, is not there. Put it beside the file.")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError as error:
        raise GraphError(f"{path}: where the weight {tensor.name!r} lies in {location!r} is damaged. Export it again.") from error
    with explained(found, "read", GraphError), found.open("rb") as stream:
        available = found.stat().st_size - offset
        if offset < 0 or available < max(length, 0):
            raise GraphError(f"{path}: {location!r} is too short for the weight {tensor.name!r}. Copy or export it again.")
        stream.seek(offset)
        tensor.raw_data = stream.read(length if length >= 0 else available)
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def element_types() -> dict[int, torch.dtype]:
    """ONNX's element types that can be read, and the types that they have here: half and bfloat16 are float32."""
    from onnx import TensorProto as Kind

    return {
        Kind.FLOAT: torch.float32,
        Kind.DOUBLE: torch.float64,
        Kind.FLOAT16: torch.float32,
        Kind.BFLOAT16: torch.float32,
        Kind.INT8: torch.int8,
        Kind.INT16: torch.int16,
        Kind.INT32: torch.int32,
        Kind.INT64: torch.int64,
        Kind.UINT8: torch.uint8,
        Kind.UINT16: torch.int32,
        Kind.UINT32: torch.int64,
        Kind.UINT64: torch.int64,
        Kind.BOOL: torch.bool,
        Kind.INT4: torch.int8,
        Kind.UINT4: torch.uint8,
    }


def element_type(code: int, where: str) -> torch.dtype:
    """The type that a tensor of an ONNX element type has here.

    Raises
    ------
    GraphError
        Naming `where`, if tensors of that type cannot be read.
    """
    types = element_types()
    if code not in types:
        raise GraphError(
            f"{where} has elements of type {type_name(code)}, which are not supported. Export the network in float32."
        )
    return types[code]


def integer_type(code: int) -> tuple[int, bool] | None:
    """Bits of an ONNX integer type, and whether it is signed; None for other types."""
    found = re.fullmatch(r"(u?)int(\d+)", type_name(code))
    return None if found is None else (int(found[2]), not found[1])


def type_name(code: int) -> str:
    """ONNX's name of an element type, in small letters."""
    from onnx import TensorProto

    known = code in TensorProto.DataType.values()
    return TensorProto.DataType.Name(code).lower() if known else f"number {code}"


def to_tensor(proto: TensorProto, where: str) -> Tensor:
    """The tensor that a proto holds, of the type that it has here."""
    import numpy as np
    from onnx import numpy_helper

    dtype = element_type(proto.data_type, where)
    try:
        array = numpy_helper.to_array(proto)
    except Exception as error:
        raise GraphError(f"{where} is damaged ({_first_line(error)}). Export the file again.") from error
    wide = array.astype({torch.float32: np.float32, torch.int32: np.int32, torch.int64: np.int64}.get(dtype, array.dtype))
    if dtype in {torch.int8, torch.uint8}:
        wide = array.astype(np.int8 if dtype == torch.int8 else np.uint8)
    return torch.from_numpy(np.array(wide, copy=True, order="C").reshape(tuple(proto.dims)))


def attributes_of(node: NodeProto, label: str) -> dict[str, Any]:
    """Attributes of a node by name: numbers, strings, lists, torch tensors, subgraphs."""
    return {attribute.name: _attribute(attribute, f"{label}: its attribute {attribute.name!r}") for attribute in node.attribute}


def _attribute(attribute: AttributeProto, where: str) -> Any:
    from onnx import AttributeProto, helper

    kind = attribute.type
    if kind == AttributeProto.TENSOR:
        return to_tensor(attribute.t, where)
    if kind in {AttributeProto.SPARSE_TENSOR, AttributeProto.TYPE_PROTO, AttributeProto.TENSORS, AttributeProto.SPARSE_TENSORS}:
        raise GraphError(
            f"{where} is a sparse tensor, a list of tensors or a type, which is not supported. Store it as one tensor."
        )
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if kind == AttributeProto.GRAPH:
        return value
    return [part.decode("utf-8", "replace") if isinstance(part, bytes) else part for part in value] if kind > 5 else value


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
