"""Files that cannot be read: the error names the file, the node or the tensor, and says what to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_node_cases import floats, model_of, written

from qkit.errors import GraphError
from qkit.graph.onnx_file import read_onnx

node = helper.make_node
OPEN = {"x": (np.float32, ("N", 4, 6, 8))}


def refused(model: onnx.ModelProto, folder: Path, *words: str, **how: Any) -> None:
    """Reading fails with an error that has the file's name and all of these words."""
    path = written(model, folder)
    with pytest.raises(GraphError) as caught:
        read_onnx(path, **how)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"nothing\.onnx"):
        read_onnx(tmp_path / "nothing.onnx")
    for content in (b"", b"\x08\x99not a model\xff" * 9, b"PK\x03\x04"):
        path = tmp_path / "damaged.onnx"
        path.write_bytes(content)
        with pytest.raises(GraphError, match=r"damaged\.onnx"):
            read_onnx(path)
    model = model_of([node("Relu", ["x"], ["y"], name="A name with no accents")], OPEN, ["y"])
    (tmp_path / "bytes.onnx").write_bytes(model.SerializeToString().replace(b"Relu", b"\xff\xfelu"))
    with pytest.raises(GraphError, match=r"bytes\.onnx"):
        read_onnx(tmp_path / "bytes.onnx")
    whole = written(model_of([node("Conv", ["x", "w"], ["y"])], OPEN, ["y"], {"w": floats(3, 4, 3, 3)}), tmp_path)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(GraphError, match=r"cut\.onnx"):
        read_onnx(cut)


@pytest.mark.parametrize("opset", [7, 8, 23])
def test_opsets_that_are_not_read(opset: int, tmp_path: Path) -> None:
    refused(model_of([node("Relu", ["x"], ["y"])], OPEN, ["y"], opset=opset), tmp_path, f"opset {opset}", "9 to 22")


def test_a_file_without_the_main_domain(tmp_path: Path) -> None:
    model = model_of([node("Relu", ["x"], ["y"])], OPEN, ["y"])
    del model.opset_import[:]
    refused(model, tmp_path, "ai.onnx")


@pytest.mark.parametrize(
    ("operator", "domain", "words"),
    [
        ("NonMaxSuppression", "", ["extract_model"]),
        ("NonZero", "", ["extract_model"]),
        ("Scan", "", ["unrolled"]),
        ("RandomNormalLike", "", ["eval"]),
        ("SequenceConstruct", "", ["sequences"]),
        ("StringNormalizer", "", ["strings"]),
        ("Novel", "", ["ai.onnx"]),
        ("Novel", "my.domain", ["my.domain"]),
        ("NhwcMaxPool", "com.microsoft", ["com.microsoft", "optimized"]),
    ],
)
def test_operations_that_are_not_read(operator: str, domain: str, words: Sequence[str], tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["r"]), node(operator, ["r"], ["y"], name="the odd one", domain=domain)]
    refused(model_of(nodes, OPEN, ["y"]), tmp_path, operator, "the odd one", *words)


def test_control_flow_on_data(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [node("Relu", ["x"], ["r"])], "b", [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    )
    nodes = [
        node("ReduceMax", ["x"], ["m"], keepdims=0),
        node("Greater", ["m", "zero"], ["c"]),
        node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch),
    ]
    refused(model_of(nodes, OPEN, ["y"], {"zero": np.float32(0)}), tmp_path, "choice", "torch.where")
    body = helper.make_graph(
        [node("Identity", ["c"], ["d"])], "b", [], [helper.make_tensor_value_info("d", TensorProto.BOOL, None)]
    )
    nodes = [node("Loop", ["three", "", "x"], ["y"], name="again", body=body)]
    refused(model_of(nodes, OPEN, ["y"], {"three": np.int64(3)}), tmp_path, "again", "unrolled")


def test_shapes_that_depend_on_data(tmp_path: Path) -> None:
    nodes = [
        node("ReduceMax", ["x"], ["m"], keepdims=1, axes=[1, 2, 3]),
        node("Cast", ["m"], ["whole"], to=7),
        node("Reshape", ["whole", "flat"], ["size"]),
        node("Reshape", ["x", "size"], ["y"], name="by data"),
    ]
    refused(model_of(nodes, OPEN, ["y"], {"flat": np.array([-1], np.int64)}), tmp_path, "by data", "size", "extract_model")


def test_open_shapes(tmp_path: Path) -> None:
    model = model_of([node("Relu", ["x"], ["y"])], {"x": (np.float32, ("N", 4, "H", 8))}, ["y"])
    refused(model, tmp_path, "'x'", "shapes=")
    refused(model, tmp_path, "'wrong'", "'x'", shapes={"wrong": (1, 4, 6, 8)})
    refused(model, tmp_path, "'x'", shapes={"x": (1, 5, 6, 8)})
    refused(model, tmp_path, "'x'", shapes={"x": (1, 4, 6)})
    refused(model, tmp_path, "'x'", shapes={"x": (-1, 4, -1, 8)})


def test_files_for_one_image_say_so(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "shape"], ["y"], name="flat")]
    model = model_of(nodes, OPEN, ["y"], {"shape": np.array([1, 192], np.int64)})
    refused(model, tmp_path, "flat", "shapes=")
    net = read_onnx(written(model, tmp_path), shapes={"x": (1, 4, 6, 8)})
    assert net.inputs == {"x": (1, 4, 6, 8)}


def test_wrong_shapes_name_the_node(tmp_path: Path) -> None:
    model = model_of([node("Conv", ["x", "w"], ["y"], name="misfit")], OPEN, ["y"], {"w": floats(3, 5, 3, 3)})
    refused(model, tmp_path, "misfit", "4, 6, 8")


def test_tensors_that_nothing_makes(tmp_path: Path) -> None:
    refused(model_of([node("Add", ["x", "ghost"], ["y"], name="sum")], OPEN, ["y"]), tmp_path, "sum", "ghost")
    refused(model_of([node("Relu", ["x"], ["y"])], OPEN, ["other"]), tmp_path, "other")


def test_training_nodes(tmp_path: Path) -> None:
    norm = {name: np.abs(floats(4, seed=i)) for i, name in enumerate("sbmv")}
    nodes = [node("BatchNormalization", ["x", *norm], ["y"], name="norm", training_mode=1)]
    refused(model_of(nodes, OPEN, ["y"], norm), tmp_path, "norm", "training_mode")


def test_attributes_and_outputs_that_are_not_supported(tmp_path: Path) -> None:
    pool = node("MaxPool", ["x"], ["y", "places"], name="pool", kernel_shape=[2, 2])
    refused(model_of([pool], OPEN, ["y", "places"]), tmp_path, "pool", "places")
    one = {"x": (np.float32, (5, 2, 3))}
    weights = {"w": floats(1, 16, 3), "r": floats(1, 16, 4)}
    cell = node("LSTM", ["x", "w", "r"], ["y"], name="cell", hidden_size=4, clip=3.0)
    refused(model_of([cell], one, ["y"], weights), tmp_path, "cell", "clip")
    cell = node("LSTM", ["x", "w", "r"], ["y"], name="cell", hidden_size=4, activations=["Sigmoid", "Relu", "Tanh"])
    refused(model_of([cell], one, ["y"], weights), tmp_path, "cell", "Relu")


def test_strings_and_sequences_as_inputs(tmp_path: Path) -> None:
    refused(model_of([node("Identity", ["x"], ["y"])], {"x": (TensorProto.STRING, (2,))}, ["y"]), tmp_path, "'x'", "string")
    model = model_of([node("Identity", ["x"], ["y"])], OPEN, ["y"])
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None))
    refused(model, tmp_path, "'x'", "sequence")


def external(folder: Path, location: str, **entries: str) -> onnx.ModelProto:
    """A model whose weight lies in another file."""
    model = model_of([node("Conv", ["x", "w"], ["y"])], OPEN, ["y"], {})
    weight = numpy_helper.from_array(floats(3, 4, 3, 3), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    model.graph.initializer.append(weight)
    return model


def test_external_data_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    data = floats(3, 4, 3, 3).tobytes()
    (tmp_path / "outside.bin").write_bytes(data)
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    for location in ("../outside.bin", str(tmp_path / "outside.bin"), "link.bin", ""):
        refused(external(folder, location), folder, "'w'", "outside")
    (folder / "beside.bin").write_bytes(data)
    assert read_onnx(written(external(folder, "beside.bin"), folder)).tensors == {"w": "w"}


def test_external_data_that_are_missing_or_short(tmp_path: Path) -> None:
    refused(external(tmp_path, "none.bin"), tmp_path, "'w'", "none.bin")
    (tmp_path / "short.bin").write_bytes(b"1234")
    refused(external(tmp_path, "short.bin", length="432"), tmp_path, "'w'", "'short.bin'", "short ")
    refused(external(tmp_path, "short.bin", offset="400"), tmp_path, "'w'", "'short.bin'", "short ")
    refused(external(tmp_path, "short.bin", offset="-4"), tmp_path, "'w'")
    refused(external(tmp_path, "short.bin", offset="many"), tmp_path, "'w'", "'short.bin'", "damaged")
    refused(external(tmp_path, "short.bin"), tmp_path, "'w'", "damaged")


def test_a_batch_norm_with_the_outputs_of_training(tmp_path: Path) -> None:
    norm = {name: floats(4, seed=i, low=0.5) for i, name in enumerate("smbv")}
    for outputs, fine in ((["y", "", ""], True), (["y", "mean", "var", "saved", "also"], False)):
        model = model_of([node("BatchNormalization", ["x", *norm], outputs)], OPEN, ["y"], norm, opset=9)
        if fine:
            read_onnx(written(model, tmp_path))
        else:
            refused(model, tmp_path, "BatchNormalization", "training", "eval")


def test_a_reversed_sequence_is_no_list_of_tensors(tmp_path: Path) -> None:
    model = model_of([node("ReverseSequence", ["x", "n"], ["y"])], OPEN, ["y"], {"n": np.array([6, 6])})
    refused(model, tmp_path, "ReverseSequence")
    with pytest.raises(GraphError) as caught:
        read_onnx(tmp_path / "network.onnx")
    assert "optional" not in str(caught.value)
