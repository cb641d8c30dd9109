"""What layers take, from the JSON of TI's model inspector (``inspector/modelinspector.json``, by ``tidlrunner-cli inspect``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from qkit.engines.traces.formats import TraceError, file_size
from qkit.engines.traces.names import subgraph_of
from qkit.files import read_json

#: The inspector puts histograms of all layers into the file.
_MAX_BYTES = 1 << 30
_CURE = "Name the modelinspector.json that tidlrunner-cli inspect writes, or the result folder."
_COLUMNS = {"µs": "proctime_us", "cycles": "layer_cycles"}
_MEMORY = {"L2 KB": "l2_kb", "MSMC KB": "msmc_kb", "DDR KB": "ddr_kb"}


def inspected(path: Path, bits: int | None, clock_mhz: float | None) -> list[dict[str, Any]]:
    """A row per layer that has figures, as in `layer_times`, with the ONNX nodes that it is made of in ``nodes``.

    Raises
    ------
    TraceError
        If the file is not the inspector's, has no figures, or nothing says the width or the clock.
    """
    file_size(path, _MAX_BYTES)
    data = read_json(path, "the inspector's JSON", error=TraceError, cure=_CURE)
    subgraphs = _at(data, "runtime", "subgraphs")
    if not isinstance(subgraphs, Mapping) or not all(isinstance(graph, Mapping) for graph in subgraphs.values()):
        raise TraceError(f"{path} is not the inspector's: it has no runtime.subgraphs. {_CURE}")
    source = "board" if _at(data, "metadata", "performance_source") == "evm_hardware" else "estimate"
    rows = []
    seen = set()
    for key, graph in subgraphs.items():
        width = bits if bits is not None else graph.get("tensor_bits")
        if not isinstance(width, int) or isinstance(width, bool):
            raise TraceError(f"{path} does not say at how many bits {key} was compiled: give bits=8 or bits=16.")
        layers = graph.get("layers")
        for layer in layers if isinstance(layers, list) else []:
            figures = _at(layer, "performance")
            if not isinstance(figures, Mapping) or all(figures.get(name) is None for name in _COLUMNS.values()):
                continue
            where = f"{path}, {key}, layer {layer.get('layer_id')!r}"
            number = layer.get("layer_id")
            if not isinstance(number, int) or (key, number) in seen:
                raise TraceError(f"{where}: its number is missing, or another layer's too. {_CURE}")
            seen.add((key, number))
            row = {column: _number(figures.get(name), where, name) for column, name in _COLUMNS.items()}
            row |= {column: _number(_at(figures, "memory", name), where, name) for column, name in _MEMORY.items()}
            if math.isnan(row["µs"]):
                if clock_mhz is None:
                    raise TraceError(f"{where} has cycles and no time: give clock_mhz=, the C7x's clock on that board.")
                row["µs"] = row["cycles"] / clock_mhz
            nodes = _at(layer, "onnx_mapping", "onnx_node_names")
            rows.append(
                {
                    **row,
                    "bits": width,
                    "name": str(layer.get("layer_name") or f"{key}, layer {number}"),
                    "type": str(layer.get("layer_type") or ""),
                    "number": number,
                    "subgraph": subgraph_of(str(key).removeprefix("tidl_")),
                    "source": source,
                    "nodes": tuple(map(str, nodes)) if isinstance(nodes, list) else (),
                }
            )
    if not rows:
        raise TraceError(f"{path} has no times of layers: the inspector found none. Compile and inspect again.")
    return rows


def _at(data: Any, *keys: str) -> Any:
    for key in keys:
        data = data.get(key) if isinstance(data, Mapping) else None
    return data


def _number(value: Any, where: str, name: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise TraceError(f"{where}: {name} is {value!r}, not a number of 0 or more. Inspect again.")
    return float(value)
