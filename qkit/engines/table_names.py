"""What somebody else's table calls the layers of a network: nodes of an ONNX file, layers of TIDL, exporters' scopes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from qkit.engines.onnx_taps import onnx_taps
from qkit.engines.tidl.layer_names import layer_names
from qkit.engines.traces.names import Names
from qkit.graph import Graph


def table_names(
    table: Iterable[str], graph: Graph, layer_map: Mapping[str, str] | str | Path | None = None
) -> dict[str, tuple[str, ...]]:  # fmt: skip
    """The table's names of every tap that it calls otherwise; several where it has more than one row for a layer.

    Parameters
    ----------
    table
        Its names.
    layer_map
        The ``.onnx`` file whose nodes or tensors it names, or what :func:`qkit.engines.tidl.layer_names` takes. Without one, and
        for what it does not name, a name has to be a tap's but for the signs between its words, or an exporter's
        (``/layer1/layer1.0/conv1/Conv_output_0``).

    Raises
    ------
    QkitError
        If the layer map cannot be read, or knows nothing of the network.
    """
    names = Names(graph)
    known: dict[str, str] = {}
    if isinstance(layer_map, Mapping) or (layer_map is not None and Path(layer_map).suffix.lower() != ".onnx"):
        known = {name: tap for tap, name in layer_names(layer_map, graph).items()}
    elif layer_map is not None:
        known = onnx_taps(layer_map, graph)
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(table):
        op = names.find(name)[0] if name not in known else None
        tap = known.get(name) or (None if op is None else op.name)
        if name not in graph.taps and tap in graph.taps:
            found.setdefault(tap, []).append(name)
    return {tap: tuple(given) for tap, given in found.items()}
