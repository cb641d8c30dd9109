"""One layer as arrays, for a vendor who has neither the network nor qkit: what goes in, weights, and what has to come out."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from qkit.errors import QkitError
from qkit.execution.capture import LaneTensor
from qkit.execution.loading import samples_at
from qkit.files import write_bytes
from qkit.report.contents.facts import environment_of
from qkit.version import __version__

if TYPE_CHECKING:
    from qkit.study import Study

#: Samples of the layer's tensors, and most images whose class changed.
SAMPLES, FLIPS = 4, 16


def attach(
    study: Study, path: str | Path, *, layer: str | None = None, samples: int = SAMPLES, flips: int = FLIPS, progress: bool = True
) -> Path:
    """Write one layer's tensors, and the images whose answer changes, as an ``.npz`` archive. Returns the path.

    It holds images of yours: think of whom it goes to.

    The arrays are named by what they are: ``input0``, ``input1``… (what the layer reads in the integer lane, float32),
    ``weight`` and ``weight_float``, ``bias`` (an engine rounds it to whole multiples of input scale times weight scale),
    ``output`` (of the integer lane) and ``output_float``; whatever is on a grid has ``…_codes``, ``…_scale`` and
    ``…_zero_point`` beside it. ``image0``… are the network's own inputs for these samples; ``flip_image0``…,
    ``flip_sample``, ``flip_label``, ``flip_float`` and ``flip_lane`` the images that change, their numbers in the data, and the
    classes. ``about`` is JSON: names, widths, operation and versions.

    Parameters
    ----------
    layer
        Tap of the layer; by default the one with the lowest local SQNR.
    samples
        How many evaluation samples' tensors, from the first batch on.
    flips
        Most images whose class the integer lane changes; none where the metric does not decide between classes.

    Raises
    ------
    QkitError
        If the suffix is not ``.npz``, there is no such layer, a number is below 1, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise QkitError(f"{path.name!r}: an attachment is an .npz archive; name it so.")
    if samples < 1 or flips < 0:
        raise QkitError(f"samples={samples}, flips={flips}: give at least one sample, and 0 or more images that change.")
    graph, lane = study.graph, study.narrow
    captured = study.capture(batches=1, progress=progress)
    op = graph.operation(layer or str(captured.table()[lane, "local sqnr"].astype(float).idxmin()))
    read = [graph.operations[index].name for index in op.inputs]
    output = captured[op.name]
    arrays: dict[str, np.ndarray] = {}
    for i, name in enumerate(read):
        _put(arrays, f"input{i}", captured[name][lane], samples)
    if op.weight is not None:
        _put(arrays, "weight", captured[op.weight][lane], None)
        arrays["weight_float"] = _array(graph.weights[op.weight])
    if op.bias is not None:
        arrays["bias"] = _array(graph.biases[op.bias])
    _put(arrays, "output", output[lane], samples)
    arrays["output_float"] = _array(output["float"].values[:samples])
    inputs = dict(samples_at(study.evaluation, range(min(samples, len(arrays["output"])))))
    arrays |= _inputs("image", list(inputs.values()))
    arrays |= _flips(study, lane, flips, progress=progress)
    about = {
        "qkit": __version__,
        "network": graph.model_name,
        "layer": op.name,
        "operation": op.kind,
        "reads": read,
        "onnx node": graph.nodes.get(op.name),
        "lane": lane,
        "clamp": None if op.act is None else [float(end) for end in op.act],
        "samples": len(arrays["output"]),
        "images whose class changes": len(arrays["flip_sample"]) if "flip_sample" in arrays else "not looked for",
        "environment": environment_of(study),
    }
    arrays["about"] = np.asarray(json.dumps(about))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue(), parents=True)
    return path


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().cpu().numpy())


def _put(arrays: dict[str, np.ndarray], name: str, tensor: LaneTensor, samples: int | None) -> None:
    """A lane's tensor, and its codes and grid where it has one."""
    arrays[name] = _array(tensor.values[:samples])
    if tensor.codes is not None and tensor.scale is not None and tensor.zero_point is not None:
        arrays[f"{name}_codes"] = _array(tensor.codes[:samples])
        arrays[f"{name}_scale"] = _array(tensor.scale)
        arrays[f"{name}_zero_point"] = _array(tensor.zero_point)


def _inputs(name: str, rows: list[Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
    """Samples of the network's inputs, stacked: one array for each input."""
    if not rows:
        return {}
    return {f"{name}{i}": np.stack([_array(row[key]) for row in rows]) for i, key in enumerate(rows[0])}


def _flips(study: Study, lane: str, most: int, *, progress: bool) -> dict[str, np.ndarray]:
    scores = study.evaluate(("float", lane), progress=progress)
    if most == 0 or scores.samples["float"].classes is None:
        return {}
    changed = scores.flips(lane).head(most)
    names: dict[str, Any] = {"label": "label", "float": "from", "lane": "to"}
    found = {f"flip_{name}": changed[column].to_numpy() for name, column in names.items()}
    rows = dict(samples_at(study.evaluation, changed.index))
    return {"flip_sample": changed.index.to_numpy(), **found, **_inputs("flip_image", [rows[int(n)] for n in changed.index])}
