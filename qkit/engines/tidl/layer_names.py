"""What TIDL calls the tensors of a network, by tap: so that a report can be read by somebody who only has TIDL's files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from qkit.engines.onnx_taps import onnx_taps
from qkit.engines.traces.formats import files_in
from qkit.engines.traces.names import Names, layer_infos
from qkit.errors import PlanError
from qkit.files import read_json
from qkit.graph import Graph


def layer_names(layer_map: Mapping[str, str] | str | Path, graph: Graph) -> dict[str, str]:
    """The target's name of every tap that the map knows.

    Parameters
    ----------
    layer_map
        Names by tap, or a file: TIDL's ``…layer_info.txt`` (columns ``layerId dataId name``, whose names are those of the ONNX
        file's tensors, letter by letter, with other signs between the words, or as torch's exporter makes them of a
        scope), a result folder of TI's tidlrunner that holds one, or a ``.json`` file with names by tap.

    Raises
    ------
    PlanError
        If the file is of neither kind, or no name of it is a tap of the graph.
    """
    known: dict[str, str] = {}
    if isinstance(layer_map, Mapping):
        given = {str(tap): str(name) for tap, name in layer_map.items()}
    else:
        given = _of_file(Path(layer_map))
        model = model_of(files_in(Path(layer_map))) if Path(layer_map).is_dir() else None
        known = {} if model is None else onnx_taps(model, graph)
    names = Names(graph)
    found: dict[str, str] = {}
    # a name that is the tap's own counts before one that an exporter made of it
    for made_of, name in sorted(given.items(), key=lambda item: item[0] not in graph.taps):
        op = names.find(made_of)[0]
        found.setdefault(known.get(made_of) or ("" if op is None else op.name), name)
    if not found.keys() & set(graph.taps):
        first = next(iter(given), "nothing")
        raise PlanError(
            f"the layer map knows no tap of {graph.model_name}: it has {first!r}, the network {graph.taps[0]!r}. Give names by "
            "tap."
        )
    return {tap: found[tap] for tap in graph.taps if tap in found}


def _of_file(path: Path) -> dict[str, str]:
    if path.suffix.lower() == ".json":
        data = read_json(path, "a layer map", cure="Name a .json file with names by tap.")
        if not isinstance(data, dict) or not all(isinstance(name, str) for name in data.values()):
            raise PlanError(f"{path.name} is not a layer map: write an object with a name for every tap.")
        return data
    if path.is_dir():
        # the folder of an analysis holds the same network in 32 bits beside its own
        infos = layer_infos(file for file in files_in(path) if "tidl32" not in file.relative_to(path).parts)
        if not infos:
            raise PlanError(f"{path} holds no layer_info.txt: give the folder that TIDL compiled the model into.")
        several = len(infos) > 1
        return {
            name: f"subgraph {subgraph}, dataId {data}" if several else f"dataId {data}"
            for subgraph, names in infos.items()
            for data, name in names.items()
        }
    if not path.is_file():
        raise PlanError(f"there is no layer map {path}: name TIDL's layer_info.txt or a .json file with names by tap.")
    infos = layer_infos([path])
    if not infos:
        raise PlanError(f"{path.name} is not a layer map: name TIDL's file, which ends in layer_info.txt, or a .json file.")
    return {name: f"dataId {data}" for names in infos.values() for data, name in names.items()}


def model_of(files: Iterable[Path]) -> Path | None:
    """The model that tidlrunner put beside its artifacts, of which every width has a copy; None where it is not clear."""
    found = {path.name: path for path in files if path.suffix.lower() == ".onnx" and path.parent.name == "model"}
    return next(iter(found.values())) if len(found) == 1 else None
