"""ONNX files: what is in them, against onnx's checker and reference implementation, and what is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import mixed_network
from torch import nn

import qkit
from qkit.engines.onnx import exporting as onnx_export
from qkit.engines.onnx import file_program
from qkit.engines.onnx.exporting import export
from qkit.errors import MissingExtra, PlanError, QkitError
from qkit.execution.lanes import Lane, lane_weight, run_lanes
from qkit.quant.plan import FLOAT, Codes, Plan

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
from onnx_cases import exported, plan_of, small_study  # noqa: E402


@pytest.fixture(scope="module")
def study() -> qkit.Study:
    return small_study()


@pytest.fixture(scope="module")
def written(study, tmp_path_factory) -> onnx_export.Exported:
    return export(study, None, tmp_path_factory.mktemp("onnx") / "int8.onnx")


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_every_tap_and_weight_is_in_the_file_and_the_checker_passes(study, written):
    model = onnx.load(written.path)
    onnx.checker.check_model(model, full_check=True)
    made = {name for node in model.graph.node for name in node.output}
    assert set(written.taps) == set(study.graph.taps)
    assert all(stored.integer and stored.tensor in made for stored in written.taps.values())
    assert model.opset_import[0].version == 21
    assert not any(node.domain for node in model.graph.node)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert written.size == written.path.stat().st_size


def test_the_plan_comes_back_from_the_metadata(study, written):
    properties = {entry.key: json.loads(entry.value) for entry in onnx.load(written.path).metadata_props}
    assert Plan.from_dict(properties["qkit.plan"]) == study.plan
    assert set(properties["qkit.taps"]) == set(study.graph.taps)


def test_no_path_of_this_machine_is_in_the_file(written):
    data = written.path.read_bytes()
    assert b".py" not in data
    assert str(Path.home()).encode() not in data


def test_weights_are_the_plans_codes_with_one_scale_a_channel(study, written):
    stored = arrays(written.path)
    for name, weight in study.graph.weights.items():
        scale = stored[f"{name}/scale"]
        assert stored[f"{name}/codes"].dtype == np.int8
        assert scale.shape == (weight.shape[0],)
        values = stored[f"{name}/codes"].astype(np.float64) * scale.reshape(-1, *[1] * (weight.ndim - 1))
        np.testing.assert_allclose(values, lane_weight(study.graph, study.plan, name).numpy(), rtol=1e-6)


def test_biases_are_int32_at_the_scale_of_input_times_weight(study, written):
    stored = arrays(written.path)
    bias = study.graph.biases["project.bias"].double().numpy()
    scale = float(study.plan["depthwise"].params.scale) * stored["project.weight/scale"].astype(np.float64)
    codes = stored["project/bias/codes"]
    assert codes.dtype == np.int32
    np.testing.assert_array_equal(codes, np.round(bias / scale))
    np.testing.assert_allclose(stored["project/bias/scale"], scale, rtol=1e-6)


def test_one_sided_activations_are_uint8_from_zero(study, written):
    stored = arrays(written.path)
    assert stored["depthwise/zero_point"] == 0
    assert stored["depthwise/zero_point"].dtype == np.uint8
    assert stored["input/zero_point"] == int(study.plan["input"].params.zero_point) + 128


def test_the_reference_implementation_computes_what_the_lane_does(study, written):
    """ONNX's own evaluator in Python, every operation as the standard words it."""
    from onnx.reference import ReferenceEvaluator

    batch = next(iter(study.evaluation))[:4]
    (output,) = ReferenceEvaluator(str(written.path)).run(None, {onnx.load(written.path).graph.input[0].name: batch.numpy()})
    simulated = run_lanes(study.graph, [Lane("s", study.plan)], (batch,))["s"].numpy()
    step = float(study.plan["classify"].params.scale)
    steps = np.abs(np.round((output - simulated) / step))
    assert steps.max() <= 1
    assert (steps == 0).mean() > 0.9


@pytest.mark.slow
def test_codes_chosen_otherwise_are_written_as_they_are(study, tmp_path):
    grid = study.plan["project.weight"]
    codes = torch.randint(-127, 128, study.graph.weights["project.weight"].shape, dtype=torch.int8)
    plan = study.plan.with_grid("project.weight", dataclasses.replace(grid, codes=Codes(codes)))
    export(study, plan, tmp_path / "m.onnx")
    np.testing.assert_array_equal(arrays(tmp_path / "m.onnx")["project.weight/codes"], codes.numpy())


@pytest.mark.slow
def test_corrections_are_added_to_biases_also_where_a_layer_has_none(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    study = qkit.Study(model, [torch.randn(4, 3, 8, 8)])
    plan = dataclasses.replace(study.plan, corrections={"0": (0.5, -0.25, 0.0, 1.0)})
    lane = exported(study.with_plan(plan), "int8", tmp_path)
    got = next(lane.run(study.evaluation)).taps["0"].values
    seen: dict[str, torch.Tensor] = {}
    run_lanes(
        study.graph, [Lane("s", plan)], (study.evaluation[0],), observe=lambda s, v: seen.__setitem__(s.name, v["s"].clone())
    )
    assert float((got - seen["0"]).abs().max()) <= 1.01 * float(plan["0"].params.scale)
    assert not torch.equal(got, next(exported(study, "int8", tmp_path).run(study.evaluation)).taps["0"].values)


@pytest.mark.slow
def test_float_plans_give_the_folded_float_network(study, tmp_path):
    done = export(study, FLOAT, tmp_path / "float.onnx")
    model = onnx.load(done.path)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in model.graph.node}
    assert not any(stored.integer for stored in done.taps.values())


@pytest.mark.slow
def test_mixed_widths_are_in_one_file(study, tmp_path):
    done = export(study, plan_of(study, "mixed"), tmp_path / "mixed.onnx")
    kinds = Counter(a.dtype.name for name, a in arrays(done.path).items() if name.endswith("/zero_point"))
    assert kinds["uint8"]
    assert kinds["uint16"]
    assert kinds["int8"]
    assert kinds["int16"]


@pytest.mark.slow
def test_grids_of_fewer_bits_are_cut_and_that_is_said(tmp_path):
    study = small_study("int4-weights")
    four = dataclasses.replace(study.plan["stem"].spec, bits=4)
    plan = study.plan.with_range("stem", 0.0, 3.0, spec=four)
    done = export(study, plan, tmp_path / "four.onnx")
    assert any("Clip" in note and "stem" in note for note in done.notes)
    weights = arrays(done.path)["project.weight/codes"]
    assert weights.dtype == np.int8
    assert np.abs(weights).max() <= 7
    from qkit.engines.onnx.runtime import lane

    codes = next(lane(done.path).run(study.evaluation)).taps["stem"].codes
    assert (int(codes.min()), int(codes.max())) == (-8, 7)


@pytest.mark.slow
def test_biases_that_do_not_fit_keep_their_values_exactly(tmp_path):
    """Sixteen bits on both sides and a great bias: guarded, it is the very float, as integers."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
        model[0].bias.copy_(torch.tensor([3.1415927, -0.1, 1e-20, 0.0]))
    study = qkit.Study(model, [torch.rand(4, 3, 4, 4) * 1e-2], scheme="int16")
    done = export(study, None, tmp_path / "m.onnx")
    stored = arrays(done.path)
    values = stored["0/bias/codes"].astype(np.float32) * stored["0/bias/scale"]
    np.testing.assert_array_equal(values, model[0].bias.detach().numpy())
    assert any(re.search(r"\bbiases\b.*\b1\b.*\bscales\b.*: 0$", note) for note in done.notes)
    plain = export(study, None, tmp_path / "plain.onnx", guard_biases=False)
    assert "0/bias/codes" not in arrays(plain.path)
    assert any(re.search(r"\bbiases\b.*\b1\b.*\bfloat: 0$", note) for note in plain.notes)


class Structured(nn.Module):
    """Two inputs, a dictionary of outputs with a nested tuple, one convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 2)

    def forward(self, a, b):
        a, b = torch.relu(self.conv(a)), self.conv(b)
        return {"sum": a + b, "more": (self.head(a.mean((2, 3))), b)}


@pytest.mark.slow
def test_several_inputs_and_structured_outputs(tmp_path):
    batch = (torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8))
    study = qkit.Study(Structured().eval(), [(batch, torch.zeros(4))], metric=lambda out, t: out["sum"].flatten(1).mean(1))
    lane = exported(study, "int8", tmp_path)
    outputs = next(lane.run(study.evaluation)).outputs
    simulated = run_lanes(study.graph, [Lane("s", study.plan)], batch)["s"]
    assert set(outputs) == {"sum", "more"}
    for got, expected in ((outputs["sum"], simulated["sum"]), *zip(outputs["more"], simulated["more"], strict=True)):
        assert got.shape == expected.shape
        assert float((got - expected).abs().max()) < 0.1 * float(expected.abs().max())
    assert set(lane.taps) == set(study.graph.taps)


@pytest.mark.slow
def test_the_exporter_leaves_model_and_random_state_alone(study, tmp_path):
    before = {k: v.clone() for k, v in study.model.state_dict().items()}
    state = torch.random.get_rng_state()
    export(study, None, tmp_path / "m.onnx")
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in study.model.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.slow
def test_what_onnx_cannot_carry_is_refused_by_name(study, tmp_path):
    per_channel = dataclasses.replace(study.plan["stem"].spec, per_channel=True)
    plan = study.plan.with_range("stem", torch.zeros(8), torch.ones(8), spec=per_channel, axis=1)
    with pytest.raises(PlanError, match=r"stem.*per channel"):
        export(study, plan, tmp_path / "m.onnx")
    with pytest.raises(PlanError, match=r"16 bits.*opset 21"):
        export(study, study.lane("int16"), tmp_path / "m.onnx", opset=19)
    with pytest.raises(QkitError, match=r"^opset=17: .*\bopset 18\b"):
        export(study, study.plan, tmp_path / "m.onnx", opset=17)
    with pytest.raises(PlanError, match="'nowhere'"):
        export(study, study.plan.with_grid("nowhere", study.plan["stem"]), tmp_path / "m.onnx")
    with pytest.raises(PlanError, match=r"\bplan\b.*qkit\.FLOAT"):
        export(study.graph, None, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.pt", "missing/model.onnx"])
def test_paths_that_cannot_be_written(study, tmp_path, name):
    with pytest.raises(QkitError, match=r"onnx|folder"):
        export(study, None, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("call", ["write", "replace"])
def test_a_write_that_fails_leaves_the_earlier_file(study, tmp_path, monkeypatch, call):
    """A full disk, in the middle of the file and at the rename."""
    path = tmp_path / "m.onnx"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def half(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[:1000])
        full()

    monkeypatch.setattr(*((Path, "write_bytes", half) if call == "write" else (os, "replace", full)))
    with pytest.raises(QkitError, match=r"m\.onnx ") as refused:
        export(study, None, path)
    assert isinstance(refused.value.__cause__, OSError)
    assert refused.value.__cause__.errno == errno.ENOSPC
    monkeypatch.undo()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("m.onnx", "old")]


def test_a_missing_extra_is_named(study, tmp_path, monkeypatch):
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(file_program.importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match=r"'\.\[onnx\]'"):
        export(study, None, tmp_path / "m.onnx")


def test_hostile_names_are_only_names(tmp_path):
    layers = nn.ModuleDict({"/etc/evil": nn.Conv2d(3, 4, 3), "a b<script>": nn.ReLU()})

    class Hostile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return self.layers["a b<script>"](self.layers["/etc/evil"](x))

    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    study = qkit.Study(Hostile().eval(), [torch.randn(4, 3, 8, 8)])
    lane = exported(study, "int8", inside)
    assert next(lane.run(study.evaluation)).outputs.shape == (4, 4, 6, 6)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [inside / "int8.onnx"]


@pytest.mark.slow
def test_the_graph_alone_is_enough(tmp_path):
    study = small_study()
    done = export(study.graph, study.plan, tmp_path / "m.onnx")
    assert "plan 'int8'" in repr(done)
    assert done.to_dict()["taps"]["stem"]["integer"]
    assert mixed_network().training is False


@pytest.mark.slow
def test_plans_that_share_torchs_part_give_the_files_that_they_give_alone(study, tmp_path):
    layer = next(op for op in study.graph.operations if op.bias is not None)
    corrected = dataclasses.replace(study.plan, corrections={layer.name: (0.25,) * len(study.graph.biases[layer.bias])})
    plans = {"int8": study.plan, "without one": study.plan.without(["stem"]), "corrected": corrected}
    programs: onnx_export.Programs = {}
    for name, plan in plans.items():
        alone, shared = tmp_path / f"{name}-alone.onnx", tmp_path / f"{name}.onnx"
        export(study, plan, alone)
        export(study, plan, shared, programs=programs)
        assert alone.read_bytes() == shared.read_bytes()
    export(study, dataclasses.replace(study.plan, name="again"), tmp_path / "again.onnx", programs=programs)
    assert 1 < len(programs) <= len(plans)
