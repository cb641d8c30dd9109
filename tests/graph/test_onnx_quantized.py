"""Files with Q/DQ nodes or quantized operators: the float network, with the file's grids beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_node_cases import Array, compare, exported, floats, model_of, run, session, written
from onnx_torch_files import exported_file
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from qkit.errors import GraphError
from qkit.graph.onnx_file import read_onnx

RNG = np.random.default_rng(11)
node = helper.make_node


def codes(*shape: int, kind: Any = np.int8) -> Array:
    """Whole numbers of a type, away from its ends."""
    info = np.iinfo(kind)
    return RNG.integers(info.min // 2, info.max // 2, shape).astype(kind)


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """A few random images."""

    def __init__(self) -> None:
        self.left = iter([{"x": floats(4, 3, 12, 12, seed=seed)} for seed in range(3)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.left, None)


class Small(torch.nn.Module):
    """A residual network with pooling, a join, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.second = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.third = torch.nn.Conv2d(16, 6, 1)
        self.head = torch.nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        y = torch.sigmoid(self.second(x)) + x
        y = torch.nn.functional.max_pool2d(torch.cat([x, y], 1), 2)
        return self.head(torch.nn.functional.leaky_relu(self.third(y), 0.1).mean((2, 3)))  # type: ignore[no-any-return]


def float_file(folder: Path) -> Path:
    torch.manual_seed(4)
    return exported_file(Small(), (3, 12, 12), folder / "float.onnx")


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("style", [QuantFormat.QDQ, QuantFormat.QOperator])
@pytest.mark.parametrize("kinds", [(QuantType.QUInt8, QuantType.QInt8), (QuantType.QInt8, QuantType.QInt8)])
def test_a_file_that_onnx_runtime_quantized(style: QuantFormat, per_channel: bool, kinds: Any, tmp_path: Path) -> None:
    source, path = float_file(tmp_path), tmp_path / "int8.onnx"
    quantize_static(
        source, path, Batches(), quant_format=style, per_channel=per_channel, activation_type=kinds[0], weight_type=kinds[1]
    )
    net = read_onnx(path)
    feeds = {"x": floats(4, 3, 12, 12, seed=9)}
    made = run(net.module, feeds)
    close = np.abs(made[0] - session(source).run(None, feeds)[0]).max()
    assert close < 0.03, "the float network of the file, but for the rounding of its weights"
    compare(run(exported(net, feeds), feeds), made)
    assert np.abs(made[0] - session(path).run(None, feeds)[0]).max() < 0.1
    weights = {name: parameter for name, parameter in net.module.named_parameters() if parameter.ndim == 4}
    assert len(weights) == 3
    for name, parameter in weights.items():
        grid = net.grid_of(name)
        assert grid is not None
        assert grid.axis == (0 if per_channel else None)
        scale = torch.from_numpy(grid.scale).reshape(-1, *[1] * (parameter.ndim - 1)) if per_channel else float(grid.scale)
        on_grid = (parameter / scale).detach()
        assert torch.allclose(on_grid, on_grid.round(), atol=1e-3)
        assert grid.bits == 8
        assert grid.signed
    assert net.grids["x"].signed == (kinds[0] == QuantType.QInt8)
    taps = {*net.names.values(), *net.inputs}
    missing = [name for name in net.grids if name not in taps and name not in net.tensors.values()]
    assert not missing, "every grid belongs to a tap or a parameter"


def quantized_and_float(
    quantized: list[onnx.NodeProto],
    plain: list[onnx.NodeProto],
    constants: dict[str, Array],
    folder: Path,
    shape: tuple[Any, ...],
) -> tuple[Any, list[Array], list[Array], dict[str, Array]]:
    """The reader's network of a quantized file, its results, and those of ONNX Runtime for the float twin."""
    inputs, feeds = {"x": (np.float32, ("N", *shape))}, {"x": floats(3, *shape)}
    path = written(model_of(quantized, inputs, ["y"], constants), folder, "quantized.onnx")
    twin = written(model_of(plain, inputs, ["y"], constants), folder, "float.onnx")
    session(path).run(None, feeds)
    net = read_onnx(path)
    return net, run(net.module, feeds), session(twin).run(None, feeds), feeds


CONSTANTS = {
    "sx": np.float32(0.02),
    "zx": np.uint8(100),
    "sy": np.float32(0.3),
    "zy": np.uint8(120),
    "w": codes(5, 4, 3, 3),
    "sw": np.float32([0.01, 0.02, 0.015, 0.03, 0.01]),
    "zw": np.zeros(5, np.int8),
    "b": codes(5, kind=np.int16).astype(np.int32),
    "sb": np.float32([0.01, 0.02, 0.015, 0.03, 0.01]) * np.float32(0.02),
    "zb": np.zeros(5, np.int32),
}


def test_q_and_dq_are_passed_through_and_constants_are_made_float(tmp_path: Path) -> None:
    float_weights = [
        node("DequantizeLinear", ["w", "sw", "zw"], ["wf"], axis=0),
        node("DequantizeLinear", ["b", "sb", "zb"], ["bf"], axis=0),
    ]
    quantized = [
        node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        node("DequantizeLinear", ["xq", "sx", "zx"], ["xf"]),
        *float_weights,
        node("Conv", ["xf", "wf", "bf"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("QuantizeLinear", ["r", "sy", "zy"], ["rq"]),
        node("MaxPool", ["rq"], ["pq"], kernel_shape=[2, 2]),
        node("DequantizeLinear", ["pq", "sy", "zy"], ["y"]),
    ]
    plain = [
        *float_weights,
        node("Conv", ["x", "wf", "bf"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("MaxPool", ["r"], ["y"], kernel_shape=[2, 2]),
    ]
    net, made, truth, feeds = quantized_and_float(quantized, plain, CONSTANTS, tmp_path, (4, 9, 9))
    compare(made, truth)
    compare(run(exported(net, feeds), feeds), truth)
    assert set(net.grids) == {"x", "w", "b", "r", "pq"}
    assert (net.grids["x"].bits, net.grids["x"].signed, net.grids["x"].zero_point) == (8, False, 100)
    assert (net.grids["b"].bits, net.grids["b"].axis) == (32, 0)
    np.testing.assert_array_equal(net.grids["w"].scale, CONSTANTS["sw"])
    assert net.tensors["w"] == "w"
    assert net.names == {"nodes.conv_5": "c", "nodes.relu_6": "r", "nodes.maxpool_8": "pq"}
    assert {name for name, _ in net.module.named_parameters()} == {"w", "b"}


def test_float_weights_behind_q_and_dq_stay_as_they_are(tmp_path: Path) -> None:
    constants = {"v": floats(6, 5), "s": np.float32([0.01] * 5), "z": np.zeros(5, np.int8)}
    quantized = [
        node("QuantizeLinear", ["v", "s", "z"], ["vq"], axis=1),
        node("DequantizeLinear", ["vq", "s", "z"], ["vf"], axis=1),
        node("MatMul", ["x", "vf"], ["y"]),
    ]
    net, made, truth, _ = quantized_and_float(quantized, [node("MatMul", ["x", "v"], ["y"])], constants, tmp_path, (6,))
    compare(made, truth)
    grid = net.grid_of("v")
    assert grid is not None
    assert net.grids["v"].axis == 1
    assert net.permutations == {"v": (1, 0)}
    assert grid.axis == 0, "a linear layer has its weight the other way around"


def test_types_that_torch_does_not_have(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["f"]),
        node("DequantizeLinear", ["w", "sw"], ["wf"]),
        node("MatMul", ["f", "wf"], ["y"]),
    ]
    model = model_of(
        nodes, {"x": (np.float32, ("N", 6))}, ["y"], {"s": np.float32(1e-4), "sw": np.float32(0.1), "z": np.uint16(40000)}, 21
    )
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.INT4, [6, 2], list(range(-6, 6))))
    path = written(model, tmp_path)
    net = read_onnx(path)
    assert (net.grids["x"].bits, net.grids["x"].signed, int(net.grids["x"].zero_point)) == (16, False, 40000)
    assert (net.grids["w"].bits, net.grids["w"].signed) == (4, True)
    feeds = {"x": floats(2, 6)}
    weights = np.arange(-6, 6, dtype=np.float32).reshape(6, 2) * np.float32(0.1)
    np.testing.assert_allclose(run(net.module, feeds)[0], feeds["x"] @ weights, rtol=1e-5, atol=1e-6)


QLINEAR = {
    "QLinearConv": ([node("QLinearConv", ["xq", "sx", "zx", "w", "sw", "zw", "sy", "zy", "b"], ["yq"], pads=[1, 1, 1, 1])],
                    [node("DequantizeLinear", ["w", "sw", "zw"], ["wf"], axis=0), node("DequantizeLinear", ["b", "sb", "zb"], ["bf"], axis=0),
                     node("Conv", ["x", "wf", "bf"], ["y"], pads=[1, 1, 1, 1])]),
    "QLinearMatMul": ([node("QLinearMatMul", ["xq", "sx", "zx", "v", "sv", "zv", "sy", "zy"], ["yq"])],
                      [node("DequantizeLinear", ["v", "sv", "zv"], ["vf"]), node("MatMul", ["x", "vf"], ["y"])]),
    "QLinearAdd": ([node("QLinearAdd", ["xq", "sx", "zx", "xq", "sx", "zx", "sy", "zy"], ["yq"], domain="com.microsoft")],
                   [node("Add", ["x", "x"], ["y"])]),
    "QLinearMul": ([node("QLinearMul", ["xq", "sx", "zx", "v", "sv", "zv", "sy", "zy"], ["yq"], domain="com.microsoft")],
                   [node("DequantizeLinear", ["v", "sv", "zv"], ["vf"]), node("Mul", ["x", "vf"], ["y"])]),
    "QLinearSigmoid": ([node("QLinearSigmoid", ["xq", "sx", "zx", "sy", "zy"], ["yq"], domain="com.microsoft")],
                       [node("Sigmoid", ["x"], ["y"])]),
    "QLinearLeakyRelu": ([node("QLinearLeakyRelu", ["xq", "sx", "zx", "sy", "zy"], ["yq"], alpha=0.2, domain="com.microsoft")],
                         [node("LeakyRelu", ["x"], ["y"], alpha=0.2)]),
    "QLinearSoftmax": ([node("QLinearSoftmax", ["xq", "sx", "zx", "sy", "zy"], ["yq"], axis=-1, opset=13, domain="com.microsoft")],
                       [node("Softmax", ["x"], ["y"], axis=-1)]),
    "QLinearConcat": ([node("QLinearConcat", ["sy", "zy", "xq", "sx", "zx", "xq", "sx", "zx"], ["yq"], axis=1, domain="com.microsoft")],
                      [node("Concat", ["x", "x"], ["y"], axis=1)]),
    "QLinearGlobalAveragePool": ([node("QLinearGlobalAveragePool", ["xq", "sx", "zx", "sy", "zy"], ["yq"], domain="com.microsoft")],
                                 [node("GlobalAveragePool", ["x"], ["y"])]),
}  # fmt: skip


@pytest.mark.parametrize("operator", QLINEAR)
def test_a_quantized_operator_is_the_float_operation_on_grids(operator: str, tmp_path: Path) -> None:
    before, plain = QLINEAR[operator]
    quantized = [
        node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        *before,
        node("DequantizeLinear", ["yq", "sy", "zy"], ["y"]),
    ]
    constants = {**CONSTANTS, "v": codes(9, 9), "sv": np.float32(0.02), "zv": np.int8(0)}
    if operator == "QLinearMul":
        constants |= {"v": codes(9, 9, kind=np.uint8), "zv": np.uint8(30)}
    net, made, truth, feeds = quantized_and_float(quantized, plain, constants, tmp_path, (4, 9, 9))
    compare(made, truth)
    compare(run(exported(net, feeds), feeds), truth)
    assert {"x", "yq"} <= set(net.grids)
    assert float(net.grids["yq"].scale) == pytest.approx(0.3)
    assert "yq" in net.names.values()


def test_qgemm_reads_as_a_linear_layer(tmp_path: Path) -> None:
    constants = {
        **CONSTANTS,
        "v": codes(6, 5),
        "sv": np.float32(0.02),
        "zv": np.int8(0),
        "c": codes(5, kind=np.int16).astype(np.int32),
    }
    constants |= {"sc": np.float32(0.02) * np.float32(0.02), "zc": np.int32(0)}
    quantized = [
        node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        node("QGemm", ["xq", "sx", "zx", "v", "sv", "zv", "c", "sy", "zy"], ["yq"], domain="com.microsoft"),
        node("DequantizeLinear", ["yq", "sy", "zy"], ["y"]),
    ]
    plain = [
        node("DequantizeLinear", ["v", "sv", "zv"], ["vf"]),
        node("DequantizeLinear", ["c", "sc", "zc"], ["cf"]),
        node("Gemm", ["x", "vf", "cf"], ["y"]),
    ]
    net, made, truth, _ = quantized_and_float(quantized, plain, constants, tmp_path, (6,))
    compare(made, truth)
    assert net.grids["c"].bits == 32


def test_codes_as_inputs_are_made_float(tmp_path: Path) -> None:
    nodes = [node("DequantizeLinear", ["x", "s", "z"], ["f"]), node("Relu", ["f"], ["y"])]
    model = model_of(nodes, {"x": (np.uint8, ("N", 5))}, ["y"], {"s": np.float32(0.1), "z": np.uint8(9)})
    path = written(model, tmp_path)
    feeds = {"x": codes(3, 5, kind=np.uint8)}
    net = read_onnx(path)
    compare(run(net.module, feeds), session(path).run(None, feeds))
    assert net.dtypes == {"x": torch.uint8}
    assert set(net.grids) == {"f"}


def test_two_grids_of_one_tensor_are_both_noted(tmp_path: Path) -> None:
    nodes = [
        node("QuantizeLinear", ["x", "sx", "zx"], ["a"]),
        node("DequantizeLinear", ["a", "sx", "zx"], ["af"]),
        node("QuantizeLinear", ["x", "sy", "zy"], ["b"]),
        node("DequantizeLinear", ["b", "sy", "zy"], ["bf"]),
        node("Add", ["af", "bf"], ["y"]),
    ]
    net = read_onnx(written(model_of(nodes, {"x": (np.float32, ("N", 5))}, ["y"], CONSTANTS), tmp_path))
    assert list(net.grids) == ["x", "x:2"]


@pytest.mark.parametrize(
    ("nodes", "named"),
    [
        (
            [node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dyn"), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
            "dyn",
        ),
        (
            [
                node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
                node("ConvInteger", ["q", "w", "zx"], ["i"], name="whole"),
                node("Cast", ["i"], ["y"], to=1),
            ],
            "whole",
        ),
        (
            [
                node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
                node("Cast", ["q"], ["y"], to=1, name="on codes"),
            ],
            "on codes",
        ),
        (
            [
                node("QuantizeLinear", ["x", "sx", "zx"], ["q"]),
                node("DequantizeLinear", ["q", "sy", "zx"], ["y"], name="other grid"),
            ],
            "other grid",
        ),
    ],
)
def test_what_cannot_be_kept_in_float_is_refused_by_name(nodes: list[onnx.NodeProto], named: str, tmp_path: Path) -> None:
    path = written(model_of(nodes, {"x": (np.float32, ("N", 4, 9, 9))}, ["y"], CONSTANTS), tmp_path)
    with pytest.raises(GraphError, match=named):
        read_onnx(path)
