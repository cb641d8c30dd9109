"""Files of one node for the tests of the ONNX reader, and the comparison with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from qkit.graph.onnx_file import OnnxNetwork, read_onnx

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """One node: `inputs` are arrays (inputs of the file), `("const", array)`, or None for what is left out."""

    operator: str
    inputs: Sequence[Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: int = 1
    domain: str = ""
    fixed: bool = False
    """The batch is not left open."""
    tolerance: float = 1e-5
    note: str = ""

    def __repr__(self) -> str:
        shapes = "-".join("x".join(map(str, a.shape)) for a in self.inputs if isinstance(a, np.ndarray))
        how = ",".join(f"{k}={v}".replace(" ", "") for k, v in self.attributes.items() if not isinstance(v, onnx.TensorProto))
        return f"{self.operator}-{self.opset}[{shapes}]{how}{self.note}"


def const(value: Any, dtype: Any = np.float32) -> tuple[str, Array]:
    """An input that is an initializer."""
    return "const", np.asarray(value, dtype=dtype)


def floats(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0) -> Array:
    """Numbers between `low` and `high`."""
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float32)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Any, Sequence[Any]]],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model; inputs are given by type (numpy's, or a number of ONNX's) and shape, in which a string is an open dimension."""
    kinds = {
        name: kind if isinstance(kind, int) else helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        for name, (kind, _) in inputs.items()
    }
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info(name, kinds[name], list(shape)) for name, (_, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10 if opset > 20 else 8)


def model_of_case(case: Case) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The file of one node, and what to feed it."""
    names, feeds, constants = [], {}, {}
    for position, given in enumerate(case.inputs):
        name = f"in{position}"
        if given is None:
            name = ""
        elif isinstance(given, tuple):
            constants[name] = given[1]
        else:
            feeds[name] = given
        names.append(name)
    outputs = [f"out{i}" for i in range(case.outputs)]
    node = helper.make_node(case.operator, names, outputs, name="the_node", domain=case.domain, **case.attributes)
    described = {
        name: (array.dtype, (array.shape if case.fixed or array.ndim == 0 else ("N", *array.shape[1:])))
        for name, array in feeds.items()
    }
    return model_of([node], described, outputs, constants, case.opset), feeds


def session(path: Path | str) -> onnxruntime.InferenceSession:
    """ONNX Runtime, as the file is, on one thread."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def written(model: onnx.ModelProto, folder: Path, name: str = "network.onnx") -> Path:
    """The model in a file."""
    path = folder / name
    onnx.save(model, path)
    return path


def as_list(outputs: Tensor | dict[str, Tensor]) -> list[Tensor]:
    """The outputs of a module in order."""
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


def run(module: torch.nn.Module, feeds: Mapping[str, Array]) -> list[Array]:
    """The module's outputs."""
    with torch.inference_mode():
        return [out.numpy() for out in as_list(module(*(torch.from_numpy(array) for array in feeds.values())))]


def compare(mine: Sequence[Array], truth: Sequence[Array], tolerance: float = 1e-5) -> None:
    """Equal shapes; floats within the tolerance of the largest, the rest equal."""
    assert len(mine) == len(truth)
    for got, want in zip(mine, truth, strict=True):
        assert got.shape == want.shape
        if want.dtype.kind == "f":
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(1.0, float(np.abs(want).max(initial=0))))
        else:
            np.testing.assert_array_equal(got, want)


def exported(net: OnnxNetwork, feeds: Mapping[str, Array], *, twice: bool = True) -> torch.nn.Module:
    """The module through torch.export, with the batch left open where the file does."""
    auto = torch.export.Dim.AUTO
    dynamic = tuple({0: auto} if shape and shape[0] is None else {} for shape in net.inputs.values())
    example = tuple(
        torch.from_numpy(np.concatenate([a, a]) if d and twice else a) for a, d in zip(feeds.values(), dynamic, strict=True)
    )
    return torch.export.export(net.module, example, dynamic_shapes=dynamic, strict=False).module()


def check(case: Case, folder: Path, *, export: bool = False) -> OnnxNetwork:
    """The node's results are those of ONNX Runtime."""
    model, feeds = model_of_case(case)
    path = written(model, folder)
    truth = session(path).run(None, feeds)
    net = read_onnx(path)
    compare(run(net.module, feeds), truth, case.tolerance)
    if export and feeds:
        compare(run(exported(net, feeds), feeds), truth, case.tolerance)
    return net
