"""A fault of a real engine, not planted: ONNX Runtime's optimizer makes int32 of biases that do not fit."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import qkit
from qkit import zoo
from qkit.diagnosis.engine_parting import departure, side_by_side

pytest.importorskip("onnxruntime", reason="ONNX RUNTIME'S TESTS LEFT OUT: pip install '.[onnx]'")


def with_float_biases(path: Path) -> None:
    """Write the biases as plain floats, as exporters do that know nothing of the engine's optimizer."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and node.input[2] in made:
            codes, scale = (constants[name] for name in made[node.input[2]].input[:2])
            bias = (codes.astype(np.float64) * scale.astype(np.float64)).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(bias, f"{node.input[2]}_float"))
            node.input[2] = f"{node.input[2]}_float"
    onnx.save(model, path)


@pytest.mark.slow
def test_sixteen_bits_that_fail_in_the_engine_are_not_quantization(tmp_path: Path) -> None:
    from qkit.engines.onnx import runtime as onnxruntime

    case = zoo.load("mobilenet_v2_hostile")
    study = qkit.Study(case.model, case.calibration, case.evaluation, metric="top1", scheme="int8")
    study.calibrate(progress=False)
    wide = study.lane("int16")
    study.export(tmp_path / "int16.onnx", wide)
    with_float_biases(tmp_path / "int16.onnx")
    lane = onnxruntime.lane(tmp_path / "int16.onnx", graph=study.graph)
    assert lane.bits == 16
    scores = side_by_side(study, lane, limit=4)
    assert scores["simulated int16"].value == scores["float"].value
    if scores["onnxruntime int16"].value > 0.9:
        pytest.skip("this version of ONNX Runtime keeps biases that do not fit in float")
    found = study.diagnose(batches=4, engine=lane, progress=False)
    assert found.verdict.name == "not-quantization"
    cause = found.causes[0]
    assert (cause.kind, cause.layer) == ("engine-mismatch", "features.0.0")
    assert re.search(r"\bbias\b.*\b32\b.*\b100\.0%", cause.evidence)
    assert cause.gain.low > 0.3
    assert "WeightBiasQuantization" in cause.remedy.text
    # the cure that it names is one
    cured = onnxruntime.lane(tmp_path / "int16.onnx", graph=study.graph, disable=("WeightBiasQuantization",))
    assert departure(study, cured, wide, limit=1) is None
    assert side_by_side(study, cured, limit=4)["onnxruntime int16"].value == scores["float"].value
