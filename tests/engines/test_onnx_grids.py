"""A quantized ONNX file's grids as the plan: the lane has ONNX Runtime's numbers, and the float lane those of the float file."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor, nn

import qkit
from qkit.execution.lanes import Lane, run_lanes

IMAGES = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
node = helper.make_node


class Net(nn.Module):
    """ReLU behind a convolution, an addition and a linear layer; ReLU6; SiLU, which files write as two operations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.up = nn.Conv2d(8, 8, 1), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 5)
        with torch.no_grad():
            self.first.weight *= 4

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.first(x))
        x = torch.relu(self.second(x) + x)
        x = nn.functional.silu(self.up(self.third(x)))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))  # type: ignore[no-any-return]


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """The images, once."""

    def __init__(self) -> None:
        self.left = iter([{"x": IMAGES.numpy()}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


@pytest.fixture(scope="module")
def float_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    path = tmp_path_factory.mktemp("files") / "float.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Net().eval(), (IMAGES[:2],), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "n"}}, opset_version=17
        )
    return path


def truth(path: Path, images: Tensor = IMAGES) -> Tensor:
    """ONNX Runtime's output, without its optimizations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": images.numpy()})[0])


def lanes(study: qkit.Study, images: Tensor = IMAGES) -> tuple[Tensor, Tensor]:
    """Outputs in float and under the file's plan."""
    made = run_lanes(study.graph, [Lane("float"), Lane("file", study.plan)], (images,))
    return made["float"], made["file"]  # type: ignore[return-value]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("style", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_lanes_are_the_float_file_and_onnx_runtime(style: QuantFormat, symmetric: bool, float_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    # uint8 activations with int8 weights saturate in some processors' instructions, where the lane does not
    how = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "quant_format": style}
    quantize_static(float_file, path, Batches(), extra_options={"ActivationSymmetric": symmetric}, **how)
    kept = [n.op_type for n in onnx.load(path).graph.node if n.op_type in {"Relu", "Clip"}]
    assert bool(kept) == symmetric, "on asymmetric grids the quantizer takes activations out of the file"
    study = qkit.Study(path, [IMAGES])
    exact, simulated = lanes(study)
    wanted = truth(float_file)
    assert (exact - wanted).abs().max() < 0.02 * wanted.abs().max(), "but for the weights' rounding"
    step = float(study.plan.grids[study.graph.taps[-1]].params.scale)
    differences = ((simulated - truth(path)).abs() / step).round()
    assert differences.max() <= 1
    assert (differences > 0).float().mean() < 0.05
    assert any("activations" in remark for remark in study.remarks) != symmetric


def test_tensors_that_the_file_leaves_in_float_are_no_integers(float_file: Path, tmp_path: Path) -> None:
    convolutions = [n.name for n in onnx.load(float_file).graph.node if n.op_type == "Conv"]
    path = tmp_path / "part.onnx"
    quantize_static(float_file, path, Batches(), nodes_to_exclude=convolutions)
    study = qkit.Study(path, [(IMAGES, torch.zeros(16, dtype=torch.long))])
    assert study.graph.share.macs == 1.0, "an engine could compute all of it on integers"
    # (8 inputs x 6 outputs x 2 x 2) x 12 x 12 of the transposed convolution and two linear layers, of all
    whole = (3 * 8 * 9 + 8 * 8 * 9 + 8 * 8) * 144
    part = 8 * 6 * 4 * 144 + 6 * 8 + 8 * 5
    assert study.share.macs == pytest.approx(part / (part + whole))
    assert f"{100 * (1 - study.share.macs):.1f} % of the multiply-accumulates" in study.verdict(progress=False).reason
    assert any("grid" in remark and "first.weight" in remark for remark in study.remarks)


RNG = np.random.default_rng(0)
NORM = {
    "gamma": RNG.uniform(0.5, 2.0, 8) * np.array([1, -1, 1, 1, 0, 1, -1, 1]),
    "beta": RNG.normal(size=8),
    "mean": RNG.normal(size=8),
    "var": RNG.uniform(0.5, 2.0, 8),
}
SIGNED = RNG.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8)
UNSIGNED = RNG.integers(0, 256, (8, 3, 3, 3)).astype(np.uint8)
PER_CHANNEL = (RNG.uniform(0.5, 2.0, 8) * 0.003).astype(np.float32)


def pair(name: str, scale: str, zero: str = "yz") -> list[onnx.NodeProto]:
    """Nodes that put a tensor onto a grid and take it back, as ``<name>_d``."""
    return [
        node("QuantizeLinear", [name, scale, zero], [f"{name}_q"]),
        node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_d"]),
    ]


def quantized_file(folder: Path, middle: list[onnx.NodeProto], last: str, **weights: Any) -> Path:
    """An input on a grid, a convolution ``c`` with quantized weights, what is in the middle, and a grid on `last`."""
    codes = {"w": SIGNED, "ws": PER_CHANNEL, "wz": np.zeros(8, np.int8), **weights}
    grids = {"xs": np.float32(0.03), "cs": np.float32(0.2), "ys": np.float32(0.05), "yz": np.uint8(100)}
    nodes = [
        *pair("x", "xs"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["w_d"], axis=0),
        node("Conv", ["x_d", "w_d"], ["c"], pads=[1, 1, 1, 1]),
        *middle,
        *pair(last, "ys"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info(f"{last}_d", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.asarray(v, np.float32) if np.asarray(v).dtype.kind == "f" else np.asarray(v), k)
            for k, v in {**codes, **grids, **NORM}.items()
        ],
    )
    path = folder / "made.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def bn(x: str, y: str) -> onnx.NodeProto:
    return node("BatchNormalization", [x, "gamma", "beta", "mean", "var"], [y])


RELU = node("Relu", ["n"], ["r"])


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"ws": np.float32(0.005), "wz": np.int8(0)},
        {"w": UNSIGNED, "ws": np.float32(0.004), "wz": np.uint8(120)},
        {"w": UNSIGNED, "ws": PER_CHANNEL, "wz": np.arange(100, 140, 5).astype(np.uint8)},
    ],
    ids=["per channel", "per tensor", "affine", "affine per channel"],
)
def test_a_norm_behind_a_quantized_weight_scales_its_grid(weights: dict[str, Any], tmp_path: Path) -> None:
    path = quantized_file(tmp_path, [bn("c", "n"), RELU], "r", **weights)
    study = qkit.Study(path, [IMAGES])
    assert study.graph.weights.keys() == {"w"}
    _, simulated = lanes(study)
    differences = ((simulated - truth(path)).abs() / 0.05).round()
    assert differences.max() <= 1
    assert (differences > 0).float().mean() < 2e-3


@pytest.mark.parametrize(
    ("middle", "taps"),
    [
        ([*pair("c", "cs"), node("Relu", ["c_d"], ["r"])], ("x", "c", "r")),
        ([*pair("c", "cs"), bn("c_d", "n"), RELU], ("x", "c", "r")),
        ([*pair("c", "cs"), node("Sigmoid", ["c_d"], ["s"]), *pair("s", "ys"), node("Mul", ["c_d", "s_d"], ["r"])], "xcsr"),
    ],
    ids=["relu", "norm", "silu"],
)
def test_a_tensor_that_the_file_has_on_a_grid_is_not_fused_away(middle: Any, taps: Any, tmp_path: Path) -> None:
    path = quantized_file(tmp_path, middle, "r")
    study = qkit.Study(path, [IMAGES])
    assert tuple(study.graph.taps) == tuple(taps)
    _, simulated = lanes(study)
    differences = ((simulated - truth(path)).abs() / 0.05).round()
    assert (differences > 0).float().mean() < 2e-3, "of equal codes in front, the same code behind"


def test_a_second_grid_of_one_tensor_is_named(tmp_path: Path) -> None:
    path = quantized_file(tmp_path, [*pair("c", "cs"), *pair("c_d", "ys"), node("Relu", ["c_d_d"], ["r"])], "r")
    study = qkit.Study(path, [IMAGES])
    assert any("not simulated" in remark and "c:2" in remark for remark in study.remarks)


def test_the_scheme_is_that_of_the_files_widths_unless_one_is_given(float_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "int16.onnx"
    how = {"activation_type": QuantType.QInt16, "weight_type": QuantType.QInt16}
    quantize_static(float_file, path, Batches(), extra_options={"ActivationSymmetric": True}, **how)
    study = qkit.Study(path, [IMAGES])
    assert study.has_file_grids
    assert study.lane("int16") is study.plan
    assert study.lane("int8").grids["x"].params.bits == 8
    assert qkit.Study(path, [IMAGES], scheme="int8").plan.grids["x"].params.bits == 8
