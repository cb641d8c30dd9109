"""Reading ONNX files that may be anything: what is wrong with one is an error that names it, and nothing beyond it is opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qkit.errors import QkitError
from qkit.files import explained

#: The greatest file that is read: what protobuf can hold.
MOST_BYTES = 2**31 - 1


def read(path: str | Path, *, most_bytes: int = MOST_BYTES) -> Any:
    """The file as an ``onnx.ModelProto`` that passed ONNX's checker.

    Raises
    ------
    QkitError
        If it is missing, too large, truncated or no ONNX model, or keeps weights in other files, which are not opened.
    """
    import onnx

    path = Path(path)
    with explained(path, "read"):
        size = path.stat().st_size
        if not path.is_file():
            raise QkitError(f"{path} is no file: name the .onnx file itself.")
        if size > most_bytes:
            raise QkitError(f"{path} has {size} bytes, more than the {most_bytes} that are read: is it an ONNX file?")
        data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # whatever protobuf raises; its exceptions have no types
        raise QkitError(f"{path} is no ONNX file, or a truncated one ({size} bytes): {error}. Export it again.") from error
    if not model.graph.node or not model.graph.output:
        raise QkitError(f"{path} holds no network ({size} bytes, no nodes or no outputs): export it again.")
    outside = [tensor.name for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise QkitError(
            f"{path} keeps {len(outside)} weights in other files ({outside[0]!r} first), which are not opened: save it as one "
            "file (onnx.save_model with save_as_external_data=False)."
        )
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise QkitError(f"{path} does not pass ONNX's checker: {str(error).splitlines()[0]}. Export it again.") from error
    return model


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor that the model stores: initializers and attributes, in subgraphs and functions too."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield from (attribute.t, *attribute.tensors)
            graphs.extend([g for g in (attribute.g, *attribute.graphs) if g.node or g.initializer])


def metadata(model: Any, prefix: str) -> dict[str, Any]:
    """Entries whose keys start so, without the prefix, read as JSON.

    Raises
    ------
    QkitError
        If one is no JSON.
    """
    found = {}
    for entry in model.metadata_props:
        if entry.key.startswith(prefix):
            try:
                found[entry.key.removeprefix(prefix)] = json.loads(entry.value)
            except (ValueError, RecursionError) as error:
                raise QkitError(f"the file's metadata {entry.key!r} is corrupt: {error}. Export the model again.") from error
    return found
