"""Which tap every node and tensor of somebody else's ONNX file is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from qkit.engines.traces.names import Names
from qkit.graph import Graph

#: What the kit, and engines, compute together with what is before it.
_FUSED = frozenset({"Relu", "Clip", "BatchNormalization", "Identity", "QuantizeLinear", "DequantizeLinear"})


def onnx_taps(path: str | Path, graph: Graph) -> dict[str, str]:
    """The tap that each node and tensor of an ONNX file is, by its name.

    An activation that alone reads a layer is the layer's own, as in the kit.

    Raises
    ------
    QkitError
        If the file cannot be read.
    """
    # reading it needs the package onnx
    from qkit.engines.onnx.node_names import node_names
    from qkit.engines.onnx.onnx_files import read

    shown, model = node_names(path), read(path).graph
    names = Names(graph)
    readers = Counter(name for node in model.node for name in node.input)
    readers.update(value.name for value in model.output)
    found = {value.name: op.name for value in model.input if (op := names.find(value.name)[0]) is not None}
    for node in model.node:
        made = [tensor for tensor in node.output if tensor]
        # torch's exporter calls a tensor by its node, but for those of the graph's outputs
        candidates = [*made, node.name, f"{node.name}_output_0"]
        op = next((op for name in candidates if name and (op := names.find(name)[0]) is not None), None)
        before = node.input[0] if node.input else ""
        tap = op.name if op is not None else None
        if tap is None and node.op_type in _FUSED and readers[before] == 1:
            tap = found.get(before)
        if tap is not None:
            found |= dict.fromkeys([*made, *filter(None, [node.name]), *(shown[tensor] for tensor in made)], tap)
    # in a file of the kit the metadata say it
    return found | {shown[tap]: tap for tap in graph.taps if tap in shown}
