"""What somebody else's table calls the layers of a network: nodes of an ONNX file, layers of TIDL, exporters' scopes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from qkit.engines.traces.names import Names
from qkit.graph import Graph


def table_names(
    table: Iterable[str], graph: Graph, layer_map: Mapping[str, str] | str | Path | None = None
) -> dict[str, str]:  # fmt: skip
    """The table's name of every tap that it calls otherwise.

    Parameters
    ----------
    table
        Its names.
    layer_map
        The ``.onnx`` file whose nodes it names, or what :func:`qkit.engines.tidl.layer_names` takes. Without one, and for what
        it does not name, a name has to be a tap's but for the signs between its words, or an exporter's
        (``/layer1/layer1.0/conv1/Conv_output_0``).

    Raises
    ------
    QkitError
        If the layer map cannot be read, or knows nothing of the network.
    """
    given = list(dict.fromkeys(table))
    names = Names(graph)
    found: dict[str, str] = {}
    for made_of, name in () if layer_map is None else _mapped(layer_map, graph).items():
        op = names.find(made_of)[0]
        if op is not None and name in given:
            found.setdefault(op.name, name)
    taken = {*found.values(), *graph.taps}
    for name in given:
        op = None if name in taken else names.find(name)[0]
        if op is not None and op.name not in given:
            found.setdefault(op.name, name)
    return found


def _mapped(layer_map: Mapping[str, str] | str | Path, graph: Graph) -> Mapping[str, str]:
    if not isinstance(layer_map, Mapping) and Path(layer_map).suffix.lower() == ".onnx":
        # it needs the packages of that engine
        from qkit.engines.onnx.node_names import node_names

        return node_names(layer_map)
    from qkit.engines.tidl import layer_names

    return layer_names(layer_map, graph)
