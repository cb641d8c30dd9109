"""ONNX Runtime as a lane, and engines against the simulation."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qkit
from qkit import zoo
from qkit.engines.compare import compare, score
from qkit.engines.lane import EngineBatch, EngineTensor
from qkit.engines.onnx.exporting import export
from qkit.errors import DataError, MissingExtra, QkitError
from qkit.execution.loading import batches
from qkit.quant.plan import FLOAT

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from onnx_cases import SCHEMES, exported, plan_of, small_study  # noqa: E402

from qkit.engines.onnx import file_program  # noqa: E402
from qkit.engines.onnx import runtime as onnxruntime  # noqa: E402
from qkit.engines.onnx import session as onnx_session  # noqa: E402


@pytest.fixture(scope="module")
def study() -> qkit.Study:
    return small_study()


@pytest.fixture(scope="module")
def file(study, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "int8.onnx"
    export(study, None, path)
    return path


@pytest.fixture(scope="module")
def lane(study, file):
    return onnxruntime.lane(file, graph=study.graph, precise=True)


def network(name: str) -> qkit.Study:
    case = zoo.load(name)
    return qkit.Study(case.model, case.calibration, case.evaluation, scheme="int8")


def test_the_lane_has_every_tap_in_the_plans_codes(study, lane):
    batch = next(lane.run(study.evaluation))
    assert list(batch.taps) == list(study.graph.taps)
    for tap, tensor in batch.taps.items():
        params = study.plan[tap].params
        assert tensor.params == params
        assert tensor.codes.dtype == params.dtype
        assert tensor.codes.shape == (16, *study.graph.operation(tap).shape[1:])
        expected = (tensor.codes.double() - float(params.zero_point)) * float(params.scale)
        assert torch.allclose(tensor.values.double(), expected, rtol=1e-6)
    assert lane.bits == 8
    assert lane.plan == study.plan


def test_a_closed_lane_has_no_session(study, file):
    with onnxruntime.lane(file) as lane:
        running = lane.run(study.evaluation)
        next(running)
        session = weakref.ref(lane._prepared.session)
    lane.close()
    for action in (lambda: next(lane.run(study.evaluation)), lambda: lane.kernels, lambda: lane.deviation(study.evaluation)):
        with pytest.raises(QkitError, match="closed"):
            action()
    running.close()
    assert session() is None
    assert lane.taps, "what it would yield is still said"


def test_int8_runs_in_integer_kernels_and_the_taps_change_nothing(study, lane, file):
    bare = onnxruntime.lane(file, taps=None)
    for kernels in (lane.kernels, bare.kernels):
        assert kernels["QLinearConv"] == 4
        assert kernels["QGemm"] == 1
        assert not {"Conv", "Gemm", "Add", "Concat", "AveragePool"} & set(kernels)
    assert {lane.kernel(tap) for tap in ("stem", "depthwise", "side")} == {"QLinearConv"}
    assert lane.deviation(study.evaluation) == 0.0
    assert next(bare.run(study.evaluation)).taps == {}
    assert not any("taps=None" in note for note in lane.notes)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_agree_within_one_step_on_equal_inputs(study, scheme, tmp_path):
    lane = exported(study, scheme, tmp_path)
    found = compare(study, lane, batches=None, progress=False)
    table = found.table()
    assert found.first is None
    assert found.samples == 48
    assert not found.missing
    assert float(table["equal inputs"]["more"].max()) <= 0.001
    assert lane.bits == {"int16": 16}.get(scheme, lane.bits)
    assert any("dequantizing" in note for note in lane.notes) == (scheme in {"int16", "mixed"})
    scores = score(study, lane, progress=False)
    assert scores.loss(lane.name, "simulated").low <= 0.0 <= scores.loss(lane.name, "simulated").high


def _check_network(study: qkit.Study, scheme: str, folder: Path) -> None:
    lane = exported(study, scheme, folder)
    found = compare(study, lane, progress=False)
    table = found.table()
    assert found.first is None, repr(found)
    assert float(table["equal inputs"]["more"].max()) <= 0.001
    assert lane.deviation(study.evaluation) == 0.0
    if scheme.startswith("int8"):
        assert not {"Conv", "Gemm", "Add", "Concat", "GlobalAveragePool"} & set(lane.kernels), lane.kernels
        assert lane.kernels["QLinearConv"] == sum(op.kind == "conv" for op in study.graph.operations)
    scores = score(study, lane, progress=False)
    difference = scores.loss(lane.name, "simulated")
    assert difference.low <= 0.0 <= difference.high


def test_a_bundled_network_agrees(tmp_path):
    _check_network(network("vgg_small"), "int8", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2_hostile", "resnet_small", "inception_small"])
def test_bundled_networks_agree_under_every_scheme(name, tmp_path):
    study = network(name)
    for scheme in SCHEMES:
        _check_network(study, scheme, tmp_path)


@pytest.mark.slow
def test_the_optimizers_fault_with_biases_is_shown_named_and_avoided(tmp_path):
    """Sixteen bits on both sides: float biases become int32, which those that do not fit leave as the most negative number."""
    study = network("vgg_small")
    path = tmp_path / "plain.onnx"
    export(study, study.lane("int16"), path, guard_biases=False)
    lane = onnxruntime.lane(path)
    assert any("WeightBiasQuantization" in note and "features.4" in note for note in lane.notes)
    found = compare(study, lane, progress=False)
    assert found.first == "features.4"
    assert "32 bits" in found.reasons["features.4"]
    assert "most negative" in found.reasons["features.7"]
    # every tap that differs is explained, and the others agree: nothing is blamed on layers further on
    assert {tap for tap, sums in found.taps.items() if not sums.agrees} <= set(found.reasons)
    assert found.taps["avgpool"].agrees
    scores = score(study, lane, progress=False)
    assert scores.loss(lane.name, "simulated").low > 0.1
    for spared in (
        onnxruntime.lane(path, disable=("WeightBiasQuantization",)),
        onnxruntime.lane(path, optimization="none"),
        exported(study, "int16", tmp_path),
    ):
        assert compare(study, spared, progress=False).first is None
        assert not any("int32" in note for note in spared.notes)
    assert any(
        re.search(r"\ball\b.*\bWeightBiasQuantization$", note)
        for note in onnxruntime.lane(path, disable=("WeightBiasQuantization",)).notes
    )


@pytest.mark.slow
def test_an_engine_is_scored_by_its_own_outputs(study, lane):
    found = study.evaluate(["float", "int8"], engine=lane, batches=2, progress=False)
    outputs = [batch.outputs for batch in lane.run(study.evaluation, limit=2)]
    with torch.no_grad():
        exact = [study.model(x) for x in study.evaluation[:2]]
    agree = torch.cat([(y.argmax(1) == f.argmax(1)).double() for y, f in zip(outputs, exact, strict=True)]).numpy()
    assert list(found.lanes) == ["float", "int8", lane.name]
    np.testing.assert_array_equal(found.lanes[lane.name], agree)
    beside = score(study, lane, batches=2, progress=False)
    np.testing.assert_array_equal(found.lanes[lane.name], beside.lanes[lane.name])
    assert found.loss(lane.name).value == pytest.approx(1.0 - agree.mean())
    with pytest.raises(QkitError, match=re.escape(lane.name)):
        study.evaluate(["float"], engine=[lane, lane], batches=2, progress=False)


def test_float_files_are_lanes_too(study, tmp_path):
    export(study, FLOAT, tmp_path / "float.onnx")
    lane = onnxruntime.lane(tmp_path / "float.onnx", graph=study.graph)
    assert lane.bits == 32
    found = compare(study, lane, progress=False)
    assert found.agrees
    assert all(tensor.codes is None for tensor in next(lane.run(study.evaluation)).taps.values())
    assert float(found.table()["sqnr"]["equal inputs"].min()) > 100.0


class Shuffled:
    """An engine that computes as the simulation does but for what a test makes of a tap."""

    name, bits, notes = "mock", 8, ("a note",)

    def __init__(self, study: qkit.Study, change) -> None:
        self.study, self.change = study, change

    def run(self, loader, *, limit=None):
        from qkit.execution.lanes import Lane, run_lanes

        for batch in batches(loader, limit):
            taps: dict[str, EngineTensor] = {}
            lanes = [Lane("s", self.study.plan)]
            outputs = run_lanes(
                self.study.graph,
                lanes,
                batch.inputs,
                observe=lambda s, v, taps=taps: taps.__setitem__(s.name, EngineTensor(v["s"].clone())),
            )
            yield EngineBatch(batch, {k: v for k, v in self.change(taps).items() if v is not None}, outputs["s"])


def test_a_difference_is_found_where_it_arises(study):
    step = float(study.plan["depthwise"].params.scale)

    def off(taps):
        values = taps["depthwise"].values
        return taps | {"depthwise": EngineTensor(torch.where(values > 0, values - 3 * step, values))}

    found = compare(study, Shuffled(study, off), progress=False)
    assert found.first == "depthwise"
    assert found.taps["depthwise"].local.largest == 3
    # the next layer computed on other inputs than the engine's values say: it differs from equal inputs too, but stem does not
    assert found.taps["stem"].agrees
    assert "depthwise" in found.summary
    json.dumps(found.to_dict(), allow_nan=False)
    assert "depthwise" in found._repr_html_()


class Gain(nn.Module):
    """Multiplies by a number that is computed from another input than the images."""

    def forward(self, x, exposure):
        return torch.relu(x) * exposure.mean()


def test_a_tap_may_be_a_number_alone(tmp_path):
    draw = torch.Generator().manual_seed(0)
    data = [(torch.randn(4, 3, 8, 8, generator=draw), torch.rand(4, 1, generator=draw)) for _ in range(2)]
    study = qkit.Study(Gain(), [(pair, None) for pair in data], metric="agreement")
    assert () in [op.shape for op in study.graph.operations if op.quantized]
    study.export(tmp_path / "gain.onnx")
    assert compare(study, onnxruntime.lane(tmp_path / "gain.onnx", precise=True), progress=False).agrees


def test_what_is_no_number_differs(study):
    def broken(taps):
        values = taps["depthwise"].values.clone()
        values[0] = float("nan")
        return taps | {"depthwise": EngineTensor(values)}

    found = compare(study, Shuffled(study, broken), progress=False)
    assert found.first == "depthwise"
    assert found.taps["depthwise"].local.within_one == pytest.approx(15 / 16)
    json.dumps(found.to_dict(), allow_nan=False)


def test_products_that_saturate_are_told_from_other_faults(study, file, monkeypatch):
    """An engine that agrees as soon as its products do not saturate: that is the reason, and only where it agrees then."""
    step = float(study.plan["depthwise"].params.scale)

    def off(*taps):
        return Shuffled(study, lambda v: v | {t: EngineTensor(v[t].values + 7 * step * (v[t].values > 0)) for t in taps})

    engine = off("depthwise", "side")
    engine.unsaturated = off("side")
    found = compare(study, engine, progress=False)
    assert "VNNI" in found.reasons["depthwise"]
    assert "VNNI" not in found.reasons.get("side", "")
    monkeypatch.setattr(onnxruntime, "saturates", lambda: True)
    lane = onnxruntime.lane(file, graph=study.graph)
    assert lane.unsaturated.precise
    assert lane.unsaturated.unsaturated is None
    assert any("precise=True" in note for note in lane.notes)
    assert onnxruntime.lane(file, graph=study.graph, optimization="none").unsaturated is None


class Shared(nn.Module):
    """One convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(torch.relu(self.conv(x)))


@pytest.mark.slow
def test_the_precise_mode_takes_weights_that_two_layers_read(tmp_path):
    study = qkit.Study(Shared().eval(), [torch.randn(4, 3, 8, 8)])
    export(study, None, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    # a file of others, in which both layers read one DequantizeLinear
    second = next(node for node in model.graph.node if node.op_type == "Conv" and node.input[1].endswith("#2"))
    second.input[1] = second.input[1].removesuffix("#2")
    onnx.save(model, tmp_path / "other.onnx")
    for path in (tmp_path / "net.onnx", tmp_path / "other.onnx"):
        assert compare(study, onnxruntime.lane(path, precise=True), progress=False).agrees
        model = onnx.load(path)
        onnx_session._part(model)
        weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
        read = [name for node in model.graph.node for name in node.input if name in weights]
        assert len(read) == len(set(read)) == 4


class Attention(nn.Module):
    """Two softmaxes over 36 places: one whose probabilities are all alike, one with great ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        y = self.conv(x).flatten(2)
        return self.head((y * torch.softmax(y * 0.01, -1)).sum(-1) + (y * torch.softmax(y * 4.0, -1)).sum(-1))


@pytest.fixture(scope="module")
def attention() -> qkit.Study:
    generator = torch.Generator().manual_seed(0)
    study = qkit.Study(Attention().eval(), [torch.randn(8, 3, 8, 8, generator=generator)])
    study.calibrate("minmax", progress=False)
    return study


@pytest.mark.slow
def test_softmaxes_of_small_probabilities_are_kept_from_the_integer_kernel(attention, tmp_path):
    exported = export(attention, None, tmp_path / "net.onnx")
    assert any("Abs" in note and ":softmax" in note for note in exported.notes)
    lane = onnxruntime.lane(tmp_path / "net.onnx", precise=True)
    assert [lane.kernel(tap) for tap in (":softmax", ":softmax#2")] == ["Abs", "QLinearSoftmax"]
    assert compare(attention, lane, progress=False).agrees


@pytest.mark.parametrize("code", [0, 255])
def test_a_softmax_that_overflows_is_named(attention, code):
    """ONNX Runtime before 1.32, in its own arithmetic: a table of exponentials up to float32's end over length and e^5."""

    def overflow(taps):
        x, grid = taps[":mul"].values, attention.plan.params(":softmax")
        room = np.float32(np.exp(np.log(np.finfo(np.float32).max / x.shape[-1]) - 5))
        table = room * np.exp((x - x.amax(-1, keepdim=True)).numpy())
        with np.errstate(over="ignore"):
            scaled = table * np.floor(np.float32(1) / grid.scale.numpy())
        codes = np.where(np.isinf(scaled), code, np.rint(scaled / table.sum(-1, keepdims=True)).clip(0, 255))
        return taps | {":softmax": EngineTensor(torch.from_numpy(codes.astype(np.float32)) * grid.scale)}

    found = compare(attention, Shuffled(attention, overflow), progress=False)
    assert found.first == ":softmax"
    assert re.search(r"\bsoftmax\b.*\b36\b", found.reasons[":softmax"])
    assert ("least" if code == 0 else "greatest") in found.reasons[":softmax"]


@pytest.mark.parametrize(
    ("rounding", "words"),
    [(lambda x: torch.floor(x), "rounded down"), (lambda x: torch.trunc(x), "towards zero"), (lambda x: torch.ceil(x), None)],
)
def test_other_rounding_is_a_reason_where_it_explains_the_codes(study, rounding, words):
    from qkit.execution.lanes import Lane, run_lanes

    params = study.plan["average"].params
    scale, zero = float(params.scale), float(params.zero_point)
    exact: dict[str, torch.Tensor] = {}
    plan = study.plan.without(["average"])
    run_lanes(
        study.graph,
        [Lane("s", plan)],
        (study.evaluation[0],),
        observe=lambda s, v: exact.__setitem__(s.name, v["s"].double().clone()),
    )

    def cut(taps):
        codes = rounding(exact["average"] / scale).clamp(params.qmin - zero, params.qmax - zero)
        return taps | {"average": EngineTensor((codes * scale).float())}

    found = compare(study, Shuffled(study, cut), progress=False)
    assert found.taps["average"].local.shares[1] > 0.2
    if words is None:
        assert "another order" in found.reasons["average"]
    else:
        assert words in found.reasons["average"]


def test_taps_that_an_engine_does_not_yield_are_computed_from_those_it_does(study):
    found = compare(study, Shuffled(study, lambda taps: taps | {"stem": None, "project": None}), progress=False)
    assert found.missing == ("stem", "project")
    assert found.agrees
    with pytest.raises(QkitError, match=r"\btaps\b.*\bwhat\b"):
        compare(study, Shuffled(study, lambda taps: {"what": taps["stem"]}), progress=False)
    with pytest.raises(DataError, match=r"^stem .*\(1, 2\)"):
        compare(study, Shuffled(study, lambda taps: taps | {"stem": EngineTensor(torch.zeros(1, 2))}), progress=False)


class Calibration:
    """Batches for onnxruntime's own quantizer."""

    def __init__(self, name: str, data: list[torch.Tensor]) -> None:
        self.batches = iter([{name: batch.numpy()} for batch in data])

    def get_next(self):
        return next(self.batches, None)


def _foreign(study: qkit.Study, folder: Path) -> Path:
    path = folder / "float.onnx"
    example = next(iter(study.evaluation))[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = ({0: torch.export.Dim("n")},)
        torch.onnx.export(
            study.model,
            (example,),
            str(path),
            dynamo=True,
            opset_version=18,
            external_data=False,
            dynamic_shapes=size,
            verbose=False,
        )
    return path


@pytest.mark.slow
def test_files_of_other_tools_are_matched_by_module_paths(study, tmp_path):
    """torch's exporter, then onnxruntime's own quantizer: two tools that know nothing of the kit."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    path = _foreign(study, tmp_path)
    float_lane = onnxruntime.lane(path, graph=study.graph)
    assert set(study.graph.taps) - set(float_lane.taps) <= {":cat"}
    assert float_lane.bits == 32
    assert compare(study, float_lane, progress=False).agrees
    quantized = tmp_path / "quantized.onnx"
    name = onnx.load(path).graph.input[0].name
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            str(path), str(quantized), Calibration(name, list(study.calibration)), quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
        )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)
    lane = onnxruntime.lane(quantized, graph=study.graph, precise=True)
    assert lane.bits == 8
    assert {"input", "stem", "depthwise", "project", "side", "classify"} <= set(lane.taps)
    assert set(lane.plan.grids) >= {"stem", "stem.weight", "depthwise.weight", "classify.weight"}
    found = compare(study, lane, progress=False)
    assert found.first is None, repr(found)
    unnamed = onnxruntime.lane(quantized)
    assert unnamed.plan is None
    assert name in unnamed.taps


def _channels_last(batch: str | int) -> onnx.ModelProto:
    """A file whose input is (N, 6, 5, 3) and whose tap, behind a transposed convolution's output, is channels last as well."""
    helper, to = onnx.helper, onnx.numpy_helper.from_array
    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    constants = [to(weight, "0.weight"), to(np.float32(0.05), "s"), to(np.uint8(128), "z")]
    nodes = [
        helper.make_node("Transpose", ["x"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["nchw", "0.weight"], ["y"], name="/0/Conv"),
        helper.make_node("Transpose", ["y"], ["last"], perm=[0, 2, 3, 1], name="/0/Transpose"),
        helper.make_node("QuantizeLinear", ["last", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["out"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", 1, [batch, 6, 5, 3])], [value("out", 1, [batch, 6, 5, 4])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_channels_last_files_and_fixed_batches(tmp_path):
    path = tmp_path / "last.onnx"
    onnx.save(_channels_last(2), path)
    conv = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False)).eval()
    with torch.no_grad():
        conv[0].weight.copy_(torch.from_numpy(onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]).copy()))
    study = qkit.Study(conv, [torch.randn(5, 3, 6, 5)])
    lane = onnxruntime.lane(path)
    batch = next(lane.run(study.evaluation))
    # five samples through a file for two; the tap by its own name, in the file's layout
    assert batch.taps["last"].codes.shape == (5, 6, 5, 4)
    expected = torch.clamp(torch.round(conv(study.evaluation[0]).detach() / 0.05) + 128, 0, 255).permute(0, 2, 3, 1)
    assert (batch.taps["last"].codes.int() - expected.int()).abs().max() <= 1
    from qkit.engines.onnx.runtime import _order

    assert _order((5, 6, 5, 4), (1, 4, 6, 5), "0") == (0, 3, 1, 2)
    assert _order((5, 4, 6, 5), (1, 4, 6, 5), "0") is None
    with pytest.raises(DataError, match=r"^0 .*\(5, 5, 6, 4\).*\(1, 4, 6, 5\).*\blayout\b"):
        _order((5, 5, 6, 4), (1, 4, 6, 5), "0")
    with pytest.raises(DataError, match=r"^0 .*\(5, 4, 6, 6\).*\(1, 4, 6, 5\)(?!.*\blayout\b)"):
        _order((5, 4, 6, 6), (1, 4, 6, 5), "0")


def test_truncated_and_corrupt_files_are_errors_that_name_the_file(file, tmp_path):
    whole = file.read_bytes()
    broken = tmp_path / "broken.onnx"
    for data in (b"", b"not onnx", whole[: len(whole) // 2], whole[:-1], b"\x80\x04cos\nsystem\n", bytes(1000)):
        broken.write_bytes(data)
        with pytest.raises(QkitError, match=r"broken\.onnx"):
            onnxruntime.lane(broken)
    with pytest.raises(QkitError, match=r"missing\.onnx "):
        onnxruntime.lane(tmp_path / "missing.onnx")
    with pytest.raises(QkitError, match=rf"{re.escape(str(tmp_path))} .*\.onnx\b"):
        onnxruntime.lane(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["broken.onnx"]


def test_a_byte_flipped_anywhere_is_an_error_or_a_lane_but_no_crash(study, file, tmp_path):
    whole = bytearray(file.read_bytes())
    rng = np.random.default_rng(1)
    for position in rng.integers(0, len(whole), 25):
        data = bytearray(whole)
        data[position] ^= 0xFF
        path = tmp_path / "flipped.onnx"
        path.write_bytes(bytes(data))
        with contextlib.suppress(QkitError):
            next(onnxruntime.lane(path, graph=study.graph).run(study.evaluation))
    assert [p.name for p in tmp_path.iterdir()] == ["flipped.onnx"]


def _edited(file: Path, path: Path, **entries: object) -> Path:
    model = onnx.load(file)
    for entry in model.metadata_props:
        key = entry.key.removeprefix("qkit.")
        if key in entries:
            entry.value = entries[key] if isinstance(entries[key], str) else json.dumps(entries[key])
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"plan": "{"}, "metadata 'qkit.plan' "),
        ({"plan": "[" * 100_000}, "metadata 'qkit.plan' "),
        ({"plan": {"format": 99}}, r"\bplan\b.*\b99\b"),
        ({"format": 99}, "format 99"),
        ({"taps": {"stem": {"tensor": "no/such", "offset": 0, "integer": True}}}, "'no/such'.*'stem'"),
        ({"taps": {"stem": {"tensor": 3, "offset": 0, "integer": True}}}, r"\btap 'stem'"),
        ({"taps": {"stem": {"tensor": "stem/values", "offset": 0, "integer": True}}}, r"'stem/values'.*'stem'.*\bquantized\b"),
        ({"taps": []}, r"\btaps\b"),
    ],
)
def test_metadata_that_do_not_fit_are_errors(file, tmp_path, entries, words):
    with pytest.raises(QkitError, match=words):
        onnxruntime.lane(_edited(file, tmp_path / "edited.onnx", **entries))


def test_outputs_that_the_file_does_not_have(study, file, tmp_path):
    lane = onnxruntime.lane(_edited(file, tmp_path / "edited.onnx", outputs=[0, 7]))
    with pytest.raises(QkitError, match="output 7"):
        next(lane.run(study.evaluation))


def test_a_grid_that_was_edited_in_the_file_is_taken_and_said(study, file, tmp_path):
    model = onnx.load(file)
    for tensor in model.graph.initializer:
        if tensor.name == "depthwise/scale":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(0.125, np.float32), tensor.name))
    onnx.save(model, tmp_path / "edited.onnx")
    lane = onnxruntime.lane(tmp_path / "edited.onnx", graph=study.graph)
    assert any(note.startswith("depthwise ") and "grid" in note for note in lane.notes)
    found = compare(study, lane, progress=False)
    assert any(note.endswith(": depthwise") for note in found.notes)
    assert float(found.plan["depthwise"].params.scale) == 0.125
    # its bias still is at the old scale further on, which equal inputs show where it is
    assert found.taps["depthwise"].agrees


def test_weights_in_other_files_are_not_opened(file, tmp_path):
    model = onnx.load(file)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    path = tmp_path / "outside.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(QkitError, match=r"outside\.onnx .*\b1 weights\b"):
        onnxruntime.lane(path)


def test_too_large_files_are_not_read(file):
    from qkit.engines.onnx.onnx_files import read

    with pytest.raises(QkitError, match=rf"{re.escape(file.name)} .*\b{file.stat().st_size} bytes\b.*\b100\b"):
        read(file, most_bytes=100)


def test_unknown_operators_and_wrong_batches(study, file, lane, tmp_path):
    model = onnx.load(file)
    model.graph.node[-1].domain = "nobody.knows"
    model.opset_import.append(onnx.helper.make_opsetid("nobody.knows", 1))
    onnx.save(model, tmp_path / "custom.onnx")
    with pytest.raises(QkitError, match=r"custom\.onnx"):
        onnxruntime.lane(tmp_path / "custom.onnx")
    for wrong in (torch.zeros(2, 3, 17, 16), torch.zeros(2, 3, 16, 16, dtype=torch.float64), torch.zeros(2, 5, 16, 16)):
        with pytest.raises(DataError, match="input"):
            next(lane.run([wrong]))


def test_unknown_settings_are_errors(file):
    with pytest.raises(QkitError, match=r"none, basic, extended, all.*'most'"):
        onnxruntime.lane(file, optimization="most")
    with pytest.raises(QkitError, match=r"'stemm'.*\bstem\b"):
        onnxruntime.lane(file, taps=["stemm"])
    with pytest.raises(QkitError, match="threads"):
        onnxruntime.lane(file, threads=0)
    assert list(onnxruntime.lane(file, taps=["stem"]).taps) == ["stem"]


def test_a_missing_extra_is_named(file, monkeypatch):
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(file_program.importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match=r"pip install '\.\[onnx\]'"):
        onnxruntime.lane(file)


def test_a_shorter_run_says_so(study, lane):
    assert len(list(lane.run(study.evaluation, limit=2))) == 2
    assert dataclasses.is_dataclass(lane)
    assert "int8.onnx" in repr(lane)
    assert plan_of(study, "int8") == lane.plan
