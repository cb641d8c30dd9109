"""Which node of an ONNX file stands for a tensor or a tap, by the name that Model Explorer's ONNX adapter shows it under."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from qkit.engines.onnx.exporting import PREFIX
from qkit.engines.onnx.onnx_files import metadata, read
from qkit.engines.onnx.taps import mapping


def node_names(path: str | Path) -> dict[str, str]:
    """Names of the file's nodes by what they stand for: the tensor they make, their own name, the tap in a file of the kit.

    As in model-explorer-onnx, an input of the graph is ``[value] x``, a node without a name ``node``, and a name that another
    node has already gets a number: ``node_1``.

    Raises
    ------
    QkitError
        If the file cannot be read, or its metadata are corrupt.
    """
    model = read(path)
    names = {value.name: f"[value] {value.name}" for value in model.graph.input}
    own: dict[str, str] = {}
    times: Counter[str] = Counter()
    for node in model.graph.node:
        name = called = node.name or "node"
        while name in own:
            times[called] += 1
            name = f"{called}_{times[called]}"
        names |= {tensor: name for tensor in node.output if tensor}
        own[name] = name
    taps = mapping(metadata(model, PREFIX).get("taps", {}))
    tensors = {tap: mapping(stored).get("tensor") for tap, stored in taps.items()}
    by_tap = {tap: names[tensor] for tap, tensor in tensors.items() if tensor in names}
    # in the kit's own files a layer's node has the tap's name: that one rather than the node that quantizes its output
    return by_tap | own | names
