"""Attention, norms and pointwise functions exported for ONNX Runtime: its codes, and what its optimizer would make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attention_networks import NETWORKS, attention_study
from torch import Tensor, nn
from torch.nn import functional as F

import qkit
from qkit.engines.compare import compare

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from qkit.engines.onnx.exporting import export  # noqa: E402
from qkit.engines.onnx.runtime import OnnxLane, lane  # noqa: E402

SCHEMES = ("int8", "int8-per-tensor", "int8-symmetric", "int16", "int8-weights-int16-activations")
DEFAULT = {("vit", "int8"), ("swin", "int16")}
CASES = [
    pytest.param(name, scheme, marks=() if (name, scheme) in DEFAULT else pytest.mark.slow)
    for name in NETWORKS
    for scheme in SCHEMES
]


def written(study: qkit.Study, folder: Path) -> OnnxLane:
    export(study, None, folder / "net.onnx")
    return lane(folder / "net.onnx", graph=study.graph, precise=True)


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_codes_are_within_a_step_from_equal_inputs(name: str, scheme: str, tmp_path: Path) -> None:
    study = attention_study(name, scheme)
    engine = written(study, tmp_path)
    found = compare(study, engine, progress=False)
    assert found.first is None, repr(found)
    assert not found.missing
    counted = [sums.local for sums in found.taps.values()]
    assert all(steps.count for steps in counted), "every tap is on a grid"
    assert sum(s.same + s.one for s in counted) >= 0.999 * sum(s.count for s in counted)
    assert min(steps.within_one for steps in counted) >= 0.999
    assert engine.deviation(study.evaluation) == 0.0
    if scheme.startswith("int8") and study.scheme.activation.bits == 8:
        # a linear layer without bias on three axes or more is a product like those of two activations
        products = [op for op in study.graph.operations if op.kind == "matmul" or (op.kind == "linear" and not op.bias)]
        assert not {"Conv", "Gemm", "MatMul", "Concat"} & ran_in_float(engine), engine.kernels
        assert engine.kernels.get("QLinearMatMul", 0) == len(products)
    assert not {"MatMulNBits", "DynamicQuantizeMatMul"} & set(engine.kernels)


def ran_in_float(engine: OnnxLane) -> set[str]:
    """Operators that compute a tap in float."""
    return {engine.kernel(tap) for tap in engine.taps}


class Layers(nn.Module):
    """Two linear layers on three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(40, 24), nn.Linear(24, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))).mean(1)


@pytest.fixture(scope="module")
def layers() -> qkit.Study:
    torch.manual_seed(0)
    return qkit.Study(Layers().eval(), [torch.randn(16, 6, 40)], scheme="int8-weights-int16-activations")


def test_eight_bit_weights_with_a_wider_input_are_guarded_and_the_fault_is_named(layers, tmp_path):
    """ONNX Runtime makes MatMulNBits of them, which rounds its input to 8 bits."""
    exported = export(layers, None, tmp_path / "net.onnx")
    assert any("MatMulNBits" in note and "first, second" in note for note in exported.notes)
    assert compare(layers, lane(tmp_path / "net.onnx"), progress=False).agrees
    model = onnx.load(tmp_path / "net.onnx")
    for tensor in model.graph.initializer:
        if tensor.name.endswith("/wide"):
            array = onnx.numpy_helper.to_array(tensor)
            assert array.dtype == np.int16
            assert np.abs(array).max() <= 127
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.int8), tensor.name))
    onnx.save(model, tmp_path / "plain.onnx")
    plain = lane(tmp_path / "plain.onnx")
    assert plain.kernels["MatMulNBits"] == 2
    assert any("MatMulNBits of 2" in note for note in plain.notes)
    found = compare(layers, plain, progress=False)
    assert found.first == "first"
    assert {tap: found.faults[tap].kind for tap in ("first", "second")} == {"first": "input-width", "second": "input-width"}


class Apart(nn.Module):
    """Grids with nothing in between that an engine would compute: clamps behind what they do not fuse into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.LayerNorm(14), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = F.relu6(torch.cat([x, torch.relu(self.norm(x))], 1)) * F.hardtanh(torch.cat([F.silu(x), x], 1))
        return self.head(torch.relu(y).mean((2, 3)))


def test_two_grids_in_a_row_stay_two(tmp_path):
    """What ONNX Runtime does with the file as it is deployed, no tap asked for, against what it does with all taps."""
    torch.manual_seed(0)
    study = qkit.Study(Apart().eval(), [torch.randn(16, 3, 16, 16)])
    study.calibrate("minmax", progress=False)
    engine = written(study, tmp_path)
    assert engine.deviation(study.evaluation) == 0.0
    assert compare(study, engine, progress=False).agrees
    model = onnx.load(tmp_path / "net.onnx")
    guards = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Max"}
    assert set(guards) == {":relu/apart", ":relu6/apart", ":relu#2/apart"}
    for node in list(model.graph.node):
        for i, name in enumerate(node.input):
            node.input[i] = guards.get(name, name)
        if node.op_type == "Max":
            model.graph.node.remove(node)
    onnx.save(model, tmp_path / "plain.onnx")
    deployed = [lane(tmp_path / name, precise=True, taps=None).kernels["QuantizeLinear"] for name in ("net.onnx", "plain.onnx")]
    assert deployed[1] < deployed[0], "the guard is needed"


def test_what_the_integer_softmax_multiplies_with_is_said(tmp_path):
    class Choose(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x, -1) * x

    study = qkit.Study(Choose(), [3.0 * torch.randn(64, 12, generator=torch.Generator().manual_seed(0))])
    study.calibrate("minmax", progress=False)
    study = study.with_plan(study.plan.with_range(":softmax", 0.0, 1.0))
    engine = written(study, tmp_path)
    assert engine.kernel(":softmax") == "QLinearSoftmax"
    found = compare(study, engine, progress=False)
    assert found.agrees
    # 1 / 255 is a little more in float32
    assert found.faults[":softmax"].kind == "rounding"
    assert " 254," in found.reasons[":softmax"]


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 19, 20])
def test_earlier_opsets_have_the_same_codes(opset, tmp_path):
    """Without Gelu (before 20) and without 16 bits."""
    study = attention_study("vit")
    export(study, None, tmp_path / "net.onnx", opset=opset)
    engine = lane(tmp_path / "net.onnx", graph=study.graph, precise=True)
    assert compare(study, engine, progress=False).agrees
    assert engine.deviation(study.evaluation) == 0.0
