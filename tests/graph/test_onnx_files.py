"""Whole ONNX files: shapes with an open batch, names, copies, torch's exporters, subgraphs, external data."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnx_node_cases import compare, exported, floats, model_of, run, session, written
from onnx_torch_files import exported_file
from torch import Tensor, nn

from qkit.graph.onnx_file import OnnxNetwork, read_onnx

node = helper.make_node
OPEN = {"x": (np.float32, ("N", 4, 6, 8))}


def i64(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def read_and_compare(path: Path, shape: tuple[int, ...], **how: Any) -> OnnxNetwork:
    """Read a file of one input; as it is and exported, it gives ONNX Runtime's numbers at several batches."""
    net = read_onnx(path, **how)
    truth = session(path)
    name = truth.get_inputs()[0].name
    program = exported(net, {name: floats(2, *shape)})
    for batch in (1, 2, 5):
        feeds = {name: floats(batch, *shape, seed=batch)}
        want = truth.run(None, feeds)
        compare(run(net.module, feeds), want, 1e-4)
        compare(run(program, feeds), want, 1e-4)
    return net


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + F.silu(self.depthwise(x))
        x = F.interpolate(self.up(x), size=(x.shape[2] * 3, x.shape[3] * 3), mode="bilinear")
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True, norm_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height * width).permute(0, 2, 1)
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1)
        return self.block(x)[:, 0]  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.columns = nn.Conv2d(3, 6, (16, 3))
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(10, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.columns(x)[:, :, 0].transpose(1, 2)
        x, (h, _) = self.lstm(x)
        return self.gru(x.transpose(0, 1))[0].transpose(0, 1), h[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dynamo", "opset"),
    [
        (Convolutional, False, 11),
        (Convolutional, False, 17),
        (Convolutional, True, 18),
        pytest.param(Convolutional, True, 20, marks=pytest.mark.slow),
        (Transformer, False, 14),
        (Transformer, False, 17),
        pytest.param(Transformer, True, 20, marks=pytest.mark.slow),
        pytest.param(Recurrent, False, 9, marks=pytest.mark.slow),
        (Recurrent, False, 17),
        pytest.param(Recurrent, True, 18, marks=pytest.mark.slow),
    ],
)
def test_files_of_torchs_exporters(kind: type[nn.Module], dynamo: bool, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(3)
    path = exported_file(kind().eval(), (3, 16, 16), tmp_path / "network.onnx", opset=opset, dynamo=dynamo)
    net = read_and_compare(path, (3, 16, 16))
    assert next(iter(net.inputs.values()))[0] is None
    assert len(net.outputs) == (2 if kind is Recurrent else 1)


@pytest.mark.slow
def test_torchvision_files(tmp_path: Path, torchvision_models: Any) -> None:
    torch.manual_seed(0)
    model = torchvision_models.shufflenet_v2_x0_5(weights=None).eval()
    path = exported_file(model, (3, 64, 64), tmp_path / "network.onnx")
    net = read_and_compare(path, (3, 64, 64))
    kinds = {type(module.operator) for name, module in net.module.named_modules() if name.startswith("nodes.")}
    assert kinds == {str}


def shape_arithmetic(batch_first: bool = True) -> list[onnx.NodeProto]:
    """``x`` reshaped to (batch, channels, all pixels) by arithmetic on its shape."""
    return [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"], axis=0),
        node("Gather", ["shape", "one"], ["channels"], axis=0),
        node("Slice", ["shape", "two_list", "four_list"], ["pixels"]),
        node("ReduceProd", ["pixels"], ["count"], keepdims=1),
        node("Unsqueeze", ["batch"], ["batch_list"], axes=[0]),
        node("Unsqueeze", ["channels"], ["channels_list"], axes=[0]),
        node("Concat", ["batch_list", "channels_list", "count"], ["new_shape"], axis=0),
        node("Reshape", ["x", "new_shape"], ["y"]),
    ]


NUMBERS = {"zero": np.int64(0), "one": np.int64(1), "two_list": i64(2), "four_list": i64(4)}


def test_shapes_are_folded_but_for_the_batch(tmp_path: Path) -> None:
    path = written(model_of(shape_arithmetic(), OPEN, ["y"], NUMBERS, 11), tmp_path)
    net = read_and_compare(path, (4, 6, 8))
    assert net.names == {"nodes.reshape_9": "y"}
    assert net.inputs == {"x": (None, 4, 6, 8)}
    assert not dict(net.module.named_buffers())


def test_the_batch_in_a_product_and_as_a_number(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"], axis=0),
        node("Mul", ["batch", "six"], ["rows"]),
        node("Unsqueeze", ["rows"], ["rows_list"], axes=[0]),
        node("Concat", ["rows_list", "minus"], ["flat_shape"], axis=0),
        node("Reshape", ["x", "flat_shape"], ["flat"]),
        node("Cast", ["batch"], ["batch_float"], to=1),
        node("Div", ["flat", "batch_float"], ["mean"]),
        node("ConstantOfShape", ["shape"], ["zeros"]),
        node("Reshape", ["mean", "shape"], ["back"]),
        node("Add", ["back", "zeros"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "six": np.int64(6), "minus": i64(-1)}
    read_and_compare(written(model_of(nodes, OPEN, ["y"], constants, 11), tmp_path), (4, 6, 8))


def test_a_range_over_the_batch_and_a_mask_of_its_size(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"], axis=0),
        node("Range", ["zero", "batch", "one"], ["numbers"]),
        node("Cast", ["numbers"], ["as_float"], to=1),
        node("Reshape", ["as_float", "column"], ["numbers_column"]),
        node("Equal", ["shape", "minus"], ["is_open"]),
        node("Where", ["is_open", "ones", "shape"], ["wanted"]),
        node("Expand", ["bias", "wanted"], ["mask"]),
        node("Add", ["x", "mask"], ["shifted"]),
        node("Mul", ["shifted", "numbers_column"], ["y"]),
    ]
    constants = {**NUMBERS, "column": i64(-1, 1, 1, 1), "minus": i64(-1), "ones": i64(1, 1, 1, 1), "bias": floats(1, 4, 1, 8)}
    read_and_compare(written(model_of(nodes, OPEN, ["y"], constants, 13), tmp_path), (4, 6, 8))


def test_open_sizes_are_given(tmp_path: Path) -> None:
    model = model_of(shape_arithmetic(), {"x": (np.float32, ("N", 4, "H", "W"))}, ["y"], NUMBERS, 11)
    path = written(model, tmp_path)
    net = read_and_compare(path, (4, 5, 3), shapes={"x": (-1, 4, 5, 3)})
    assert net.inputs == {"x": (None, 4, 5, 3)}
    fixed = read_onnx(path, shapes={"x": (2, 4, 5, 3)})
    assert fixed.inputs == {"x": (2, 4, 5, 3)}
    feeds = {"x": floats(2, 4, 5, 3)}
    compare(run(exported(fixed, feeds), feeds), session(path).run(None, feeds))


def test_a_fixed_batch_can_be_opened(tmp_path: Path) -> None:
    path = written(model_of([node("Flatten", ["x"], ["y"])], {"x": (np.float32, (1, 4, 6))}, ["y"]), tmp_path)
    assert read_onnx(path).inputs == {"x": (1, 4, 6)}
    net = read_onnx(path, shapes={"x": (-1, 4, 6)})
    assert net.inputs == {"x": (None, 4, 6)}
    assert run(net.module, {"x": floats(5, 4, 6)})[0].shape == (5, 24)


def several_inputs(folder: Path) -> Path:
    nodes = [
        node("Conv", ["image:0", "layers.0/weight"], ["conv out"]),
        node("Add", ["conv out", "mask"], ["sum"]),
        node("Relu", ["sum"], ["y:0"]),
        node("Identity", ["sum"], ["copy"]),
        node("Neg", ["image:0"], ["nobody reads this"]),
    ]
    inputs = {
        "image:0": (np.float32, ("N", 3, 8, 8)),
        "mask": (np.float32, ("N", 1, 6, 6)),
        "layers.0/weight": (np.float32, (2, 3, 3, 3)),
    }
    return written(model_of(nodes, inputs, ["y:0", "copy"], {"layers.0/weight": floats(2, 3, 3, 3)}), folder)


def test_names_are_those_of_the_file(tmp_path: Path) -> None:
    path = several_inputs(tmp_path)
    net = read_onnx(path)
    assert list(net.inputs) == ["image:0", "mask"], "an initializer is not an input"
    assert net.outputs == ("y:0", "copy")
    assert net.names == {"nodes.conv_1": "conv out", "nodes.add_2": "sum", "nodes.relu_3": "y:0"}
    assert net.tensors == {"layers_0_weight": "layers.0/weight"}
    assert [name for name, _ in net.module.named_parameters()] == ["layers_0_weight"]
    assert net.opset == 17
    feeds = {"image:0": floats(3, 3, 8, 8), "mask": floats(3, 1, 6, 6)}
    truth = session(path).run(None, feeds)
    compare(run(net.module, feeds), truth)
    compare(run(exported(net, feeds), feeds), truth)
    image, mask = (torch.from_numpy(array) for array in feeds.values())
    by_name = net.module(mask=mask, image_0=image)
    assert list(by_name) == ["y:0", "copy"]
    compare([out.detach().numpy() for out in by_name.values()], truth)


def test_modules_are_copied_pickled_and_trained(tmp_path: Path) -> None:
    path = several_inputs(tmp_path)
    net = read_onnx(path)
    feeds = {"image:0": floats(2, 3, 8, 8), "mask": floats(2, 1, 6, 6)}
    truth = session(path).run(None, feeds)
    for module in (copy.deepcopy(net.module), pickle.loads(pickle.dumps(net.module))):
        compare(run(module, feeds), truth)
        assert not module.training
        with torch.no_grad():
            next(module.parameters()).zero_()
    compare(run(net.module, feeds), truth)
    net.module(*(torch.from_numpy(array) for array in feeds.values()))["copy"].sum().backward()
    assert next(net.module.parameters()).grad is not None
    assert all(not module._forward_hooks for module in net.module.modules())


def test_weights_that_are_shared_stay_one_parameter(tmp_path: Path) -> None:
    nodes = [
        node("Gather", ["table", "x"], ["rows"]),
        node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        node("MatMul", ["rows", "turned"], ["y"]),
    ]
    path = written(model_of(nodes, {"x": (np.int64, ("N", 3))}, ["y"], {"table": floats(7, 4)}), tmp_path)
    net = read_onnx(path)
    feeds = {"x": np.array([[0, 6, 2], [1, 1, 5]], np.int64)}
    compare(run(net.module, feeds), session(path).run(None, feeds))
    assert set(net.tensors.values()) == {"table"}


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_floating_point_types_are_float32(kind: Any, tmp_path: Path) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Cast", ["c"], ["d"], to=11), node("Cast", ["d"], ["y"], to=1)]
    path = written(model_of(nodes, {"x": (kind, ("N", 3, 8, 8))}, ["y"], {"w": floats(2, 3, 3, 3).astype(kind)}), tmp_path)
    net = read_onnx(path)
    name = {np.float16: "float16", np.float64: "double"}[kind]
    assert net.cast == {"x": name, "w": name}
    assert net.dtypes == {"x": torch.float32}
    x, w = floats(2, 3, 8, 8), floats(2, 3, 3, 3).astype(kind).astype(np.float32)
    compare(run(net.module, {"x": x}), [F.conv2d(torch.from_numpy(x), torch.from_numpy(w)).numpy()])


def with_if(condition: list[onnx.NodeProto], **how: Any) -> onnx.ModelProto:
    """An If whose branches use tensors from outside and have names of their own, one of them taken outside too."""
    branches = []
    for sign, name in (("Relu", "then_branch"), ("Neg", "else_branch")):
        inner = [node("Mul", ["x", "w"], ["scaled"]), node(sign, ["scaled"], ["result"])]
        result = helper.make_tensor_value_info("result", TensorProto.FLOAT, None)
        scale = numpy_helper.from_array(np.float32(3.0), "w")
        branches.append((name, helper.make_graph(inner, name, [], [result], [scale])))
    chosen = node("If", ["condition"], ["z"], name="choice", **dict(branches))
    return model_of(
        [*condition, chosen, node("Add", ["z", "bias"], ["y"])], OPEN, ["y"], {**NUMBERS, "bias": np.float32(1.0)}, **how
    )


def test_an_if_on_a_shape_is_resolved(tmp_path: Path) -> None:
    condition = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "one"], ["channels"], axis=0),
        node("Equal", ["channels", "zero"], ["condition"]),
    ]
    net = read_and_compare(written(with_if(condition), tmp_path), (4, 6, 8))
    assert "nodes.neg_6" in net.names


def test_what_no_output_needs_is_left_out(tmp_path: Path) -> None:
    nodes = [node("Relu", ["x"], ["y"]), node("NonZero", ["y"], ["places"]), node("Cast", ["places"], ["more"], to=1)]
    assert list(read_onnx(written(model_of(nodes, OPEN, ["y"]), tmp_path)).names) == ["nodes.relu_1"]


def test_functions_of_the_file_are_written_out(tmp_path: Path) -> None:
    model = model_of([node("Twice", ["x"], ["y"], domain="mine")], OPEN, ["y"], {})
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    read_and_compare(written(model, tmp_path), (4, 6, 8))


def test_external_data_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    model = model_of([node("Conv", ["x", "w"], ["y"])], OPEN, ["y"], {"w": floats(3, 4, 3, 3)})
    onnx.save(model, path, save_as_external_data=True, location="network.data", size_threshold=0)
    assert (tmp_path / "network.data").exists()
    read_and_compare(path, (4, 6, 8))


def test_constants_and_inputs_as_outputs(tmp_path: Path) -> None:
    nodes = [node("Identity", ["x"], ["same"]), node("Shape", ["x"], ["shape"]), node("Identity", ["w"], ["weight"])]
    path = written(model_of(nodes, OPEN, ["same", "shape", "weight"], {"w": floats(3)}), tmp_path)
    net = read_onnx(path)
    feeds = {"x": floats(2, 4, 6, 8)}
    compare(run(net.module, feeds), session(path).run(None, feeds))


@pytest.mark.slow
def test_onnx_is_loaded_when_a_file_is_read_only() -> None:
    script = (
        "import sys, qkit, qkit.graph.onnx_file; sys.exit(any(name.split('.')[0].startswith('onnx') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
