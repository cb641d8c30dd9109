"""A network that is a file with its weights, ``.onnx`` or ``.pt2``: what its input and its output look like.

Only the description in the file is read: no weights, and no code of it is run.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from qkit.errors import QkitError
from qkit.files import explained
from qkit.zoo.weightsfile import is_torchscript

#: Suffixes of files that a study takes as a network.
PROGRAMS = (".onnx", ".pt2")
#: What other files are, and how their network gets here.
_OTHERS = {
    ".tflite": ("a TFLite file", "convert it to ONNX (tflite2onnx, tf2onnx), or give the module that it was made of"),
    ".ts": ("a TorchScript program", "give the module that it was made of, or export that to ONNX"),
    ".torchscript": ("a TorchScript program", "give the module that it was made of, or export that to ONNX"),
    ".ptl": ("a TorchScript program for mobile devices", "give the module that it was made of, or export that to ONNX"),
    ".pte": ("an ExecuTorch program", "give the exported program that it was made of (.pt2), or the module"),
    ".h5": ("a Keras file", "convert it to ONNX (tf2onnx)"),
    ".keras": ("a Keras file", "convert it to ONNX (tf2onnx)"),
    ".pb": ("a TensorFlow file", "convert it to ONNX (tf2onnx)"),
    ".mlmodel": ("a Core ML file", "give the network that it was made of, as a module or as ONNX"),
    ".engine": ("a TensorRT engine", "give the network that it was made of, as a module or as ONNX"),
    ".trt": ("a TensorRT engine", "give the network that it was made of, as a module or as ONNX"),
}
#: Sizes of a tensor; None for one that is not fixed.
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Signature:
    """What a file says of its network.

    Attributes
    ----------
    inputs, outputs
        Shapes in order; None for one that the file does not say.
    """

    inputs: tuple[Shape | None, ...] = ()
    outputs: tuple[Shape | None, ...] = ()

    @property
    def image(self) -> Shape | None:
        """Shape of the only input; None if the file does not say it.

        Raises
        ------
        QkitError
            If there are several inputs, or if its one is no batch of images.
        """
        if len(self.inputs) > 1:
            raise QkitError(
                f"the network has {len(self.inputs)} inputs, and a folder of images gives one: give loaders (module:function)."
            )
        shape = self.inputs[0] if self.inputs else None
        if shape is not None and len(shape) != 4:
            raise QkitError(f"the network's input has the shape {shown(shape)}, which is no batch of images: give loaders.")
        return shape

    @property
    def classes(self) -> int | None:
        """How many class scores the only output has; None if the file does not say it.

        Raises
        ------
        QkitError
            If the output is no (N, classes).
        """
        if len(self.outputs) > 1:
            raise QkitError(f"the network has {len(self.outputs)} outputs; a classifier has one: give loaders and a metric.")
        shape = self.outputs[0] if self.outputs else None
        if shape is not None and len(shape) != 2:
            raise QkitError(f"the network's output has the shape {shown(shape)}; a classifier returns (images, classes).")
        return None if shape is None else shape[1]


def program_path(model: str | Path | nn.Module) -> Path | None:
    """The file that `model` names where that is a network to be analysed; None for names, factories and modules.

    Raises
    ------
    QkitError
        If it is a file of another kind, with the way that its network gets here; or if there is no such file.
    """
    if isinstance(model, nn.Module):
        return None
    path = Path(model)
    suffix = path.suffix.lower()
    if suffix in PROGRAMS:
        with explained(path, "read"):
            if not path.is_file():
                raise QkitError(f"The network {path} does not exist.")
        return path
    if suffix in _OTHERS:
        what, way = _OTHERS[suffix]
        raise QkitError(f"{path} is {what}, which is not read: {way}.")
    if suffix == ".pt" and is_torchscript(path):
        what, way = _OTHERS[".ts"]
        raise QkitError(f"{path} is {what}, which is not read: {way}.")
    return None


def signature(path: Path) -> Signature:
    """Shapes of a file's inputs and outputs.

    Raises
    ------
    QkitError
        If it cannot be read; `MissingExtra` if it is ONNX, and that package is not installed.
    """
    return _onnx(path) if path.suffix.lower() == ".onnx" else _pt2(path)


def shown(shape: Shape) -> str:
    """A shape for a reader: ``N x 3 x 224 x 224`` with a question mark for what is not fixed."""
    return " x ".join("?" if size is None else str(size) for size in shape)


def _onnx(path: Path) -> Signature:
    from qkit.engines.onnx.file_program import require

    require("onnx")
    import onnx

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:  # whatever protobuf raises; its exceptions have no types
        raise QkitError(
            f"{path} cannot be read as ONNX ({type(error).__name__}): it is damaged or another kind of file."
        ) from error
    if not graph.node and not graph.output:
        raise QkitError(f"{path} holds no network: it is not an ONNX file, or it is damaged. Export it again.")
    constants = {value.name for value in graph.initializer}

    def shape(value: Any) -> Shape | None:
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in kind.shape.dim)

    # files of old versions list their constants among the inputs
    inputs = tuple(shape(value) for value in graph.input if value.name not in constants)
    return Signature(inputs, tuple(shape(value) for value in graph.output))


def _pt2(path: Path) -> Signature:
    try:
        with explained(path, "read"), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            described = [n for n in names if n.endswith(("models/model.json", "serialized_exported_program.json"))]
            if not described:
                raise QkitError(f"{path} holds no exported program: save one with torch.export.save(program, path).")
            module = json.loads(archive.read(described[0]))["graph_module"]
        values = module["graph"]["tensor_values"]
        specs = module["signature"]
        inputs = [spec["user_input"] for spec in specs["input_specs"] if "user_input" in spec]
        outputs = [spec["user_output"] for spec in specs["output_specs"] if "user_output" in spec]
        return Signature(tuple(_sizes(values, i) for i in inputs), tuple(_sizes(values, o) for o in outputs))
    except (zipfile.BadZipFile, RuntimeError) as error:
        raise QkitError(f"{path} cannot be read as an exported program: it is damaged or another kind of file.") from error
    except (KeyError, TypeError, ValueError, AttributeError):
        # another version of the format: a study reads it by torch's own reader, and sizes are asked for
        return Signature()


def _sizes(values: Mapping[str, Any], spec: Mapping[str, Any]) -> Shape | None:
    tensor = spec["arg"].get("as_tensor")
    if tensor is None:
        return None
    return tuple(size.get("as_int") for size in values[tensor["name"]]["sizes"])
