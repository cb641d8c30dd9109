"""What vendors read: TIDL's options and prototxt, encodings, ranges; what is written comes back, what is corrupt is refused."""

from __future__ import annotations

import functools
import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_networks import mixed_network
from strategies import specs
from torch import Tensor

import qkit
from qkit.engines import tidl
from qkit.engines.plan_files import encodings, ranges
from qkit.errors import PlanError
from qkit.execution.observing import observe
from qkit.graph import Graph, build
from qkit.quant.calibration import make_plan
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.plan import FLOAT, Codes, Grid, Plan
from qkit.quant.schemes import PRESETS, scheme_of

IMAGES = [torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3)) for _ in range(2)]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build(mixed_network(), IMAGES[0])


@functools.cache
def plan_of(graph: Graph, scheme: str) -> Plan:
    return make_plan(graph, observe(graph, IMAGES, progress=False), scheme_of(scheme))


# ---- strategies: any plan of the network that the kit's rules can make


BOUNDS = st.tuples(st.floats(-1e4, 0.0, width=32), st.floats(0.0, 1e4, width=32))


@st.composite
def grids(draw: Any, channels: int | None = None, axis: int | None = None) -> Grid:
    spec = draw(specs)
    weight = channels is not None
    per_channel = weight and draw(st.booleans())
    bounds = [draw(BOUNDS) for _ in range(channels if per_channel else 1)]
    low, high = (torch.tensor([b[i] for b in bounds], dtype=torch.float64) for i in (0, 1))
    spec = replace(spec, per_channel=per_channel)
    params = spec.params(low, high, axis=axis) if per_channel else spec.params(low[0], high[0])
    return Grid(spec, params, "manual", weight)


@st.composite
def plans(draw: Any, graph: Graph) -> Plan:
    found: dict[str, Grid] = {}
    for name in draw(st.sets(st.sampled_from([*graph.taps, *graph.weights]), min_size=1, max_size=4)):
        op = graph.operation(name)
        weight = name in graph.weights
        channels = graph.weights[name].shape[op.weight_axis] if weight else None
        found[name] = draw(grids(channels, op.weight_axis if weight else None))
    return Plan(
        found, draw(st.sampled_from([None, 16, 32, 64])), draw(st.text(max_size=8)), {}, draw(st.sampled_from([None, 24]))
    )


MANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---- encodings


@pytest.mark.parametrize("version", ["0.6.1", "1.0.0"])
@pytest.mark.parametrize("scheme", list(PRESETS))
def test_encodings_come_back(graph: Graph, tmp_path: Path, scheme: str, version: Any) -> None:
    plan = plan_of(graph, scheme)
    assert encodings.write(plan, tmp_path / "e.json", version=version) == ()
    found = encodings.read(tmp_path / "e.json", graph)
    assert found == plan
    order = [name for op in graph.operations for name in (op.weight, op.name) if name in plan.grids]
    assert (found.name, list(found.grids)) == (plan.name, order)
    assert {n: g.weight for n, g in found.grids.items()} == {n: g.weight for n, g in plan.grids.items()}


@pytest.mark.slow
@MANY
@given(data=st.data())
@pytest.mark.parametrize("version", ["0.6.1", "1.0.0"])
def test_any_plan_comes_back_from_encodings(graph: Graph, tmp_path: Path, version: Any, data: st.DataObject) -> None:
    plan = data.draw(plans(graph))
    if version == "0.6.1" and any(g.params.bits < 4 for g in plan.grids.values()):
        with pytest.raises(PlanError, match="at least 4"):
            encodings.write(plan, tmp_path / "e.json", version=version)
        return
    encodings.write(plan, tmp_path / "e.json", version=version)
    assert encodings.read(tmp_path / "e.json", graph) == plan


def reach(entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest value of an entry of 1.0.0 as AIMET's documentation defines scale and offset."""
    scale, offset = np.array(entry["scale"], np.float64), np.array(entry["offset"], np.float64)
    return offset * scale, (2 ** entry["bw"] - 1 + offset) * scale


@pytest.mark.parametrize("scheme", ["int8", "int8-symmetric", "int16"])
def test_encodings_mean_the_plans_values(graph: Graph, tmp_path: Path, scheme: str) -> None:
    plan = plan_of(graph, scheme)
    encodings.write(plan, tmp_path / "new.json")
    encodings.write(plan, tmp_path / "old.json", version="0.6.1")
    new, old = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("new", "old"))
    assert (new["version"], old["version"]) == ("1.0.0", "0.6.1")
    for key in ("activation_encodings", "param_encodings"):
        assert {entry["name"] for entry in new[key]} == set(old[key])
        for entry in new[key]:
            params = plan[entry["name"]].params
            low, high = reach(entry)
            step = params.scale.double().reshape(-1).numpy()
            np.testing.assert_allclose(high, params.hi.reshape(-1).numpy(), rtol=1e-12)
            # weights leave out the least code, which 1.0.0 has no way to say
            np.testing.assert_allclose(low, params.lo.reshape(-1).numpy() - step * plan[entry["name"]].spec.narrow, rtol=1e-12)
            assert entry["enc_type"] == ("PER_TENSOR" if params.axis is None else "PER_CHANNEL")
            for channel, lo, hi in zip(old[key][entry["name"]], params.lo.reshape(-1), params.hi.reshape(-1), strict=True):
                assert channel["min"] == pytest.approx(float(lo), rel=1e-12)
                assert channel["max"] == pytest.approx(float(hi), rel=1e-12)
                assert channel["min"] == pytest.approx(channel["offset"] * channel["scale"], rel=1e-12)
                assert channel["is_symmetric"] in {"True", "False"}


def test_a_file_that_the_kit_did_not_write(graph: Graph, tmp_path: Path) -> None:
    scales = [0.01 * (i + 1) for i in range(8)]
    document = {
        "version": "1.0.0",
        "producer": "another tool",
        "activation_encodings": [
            {"name": "image", "dtype": "INT", "enc_type": "PER_TENSOR", "bw": 8, "is_sym": False, "scale": [0.02], "offset": [-100.0]},
            {"name": ":add", "dtype": "FLOAT", "bw": 16},
        ],
        "param_encodings": [
            {"name": "stem.weight", "dtype": "INT", "enc_type": "PER_CHANNEL", "bw": 8, "is_sym": True, "scale": scales,
             "offset": [-128] * 8},
            {"name": "side.bias", "dtype": "INT", "enc_type": "PER_TENSOR", "bw": 32, "is_sym": True, "scale": [1e-6],
             "offset": [-(2**31)]},
        ],
    }  # fmt: skip
    (tmp_path / "e.json").write_text(json.dumps(document))
    plan = encodings.read(tmp_path / "e.json", graph, names={"input": "image"})
    assert list(plan.grids) == ["input", "stem.weight"]
    assert plan.bias_bits == 32
    grid = plan["input"].params
    # (0 - 100) * 0.02 to (255 - 100) * 0.02
    assert (float(grid.lo), float(grid.hi)) == (pytest.approx(-2.0), pytest.approx(3.1))
    assert (grid.qmin, grid.qmax, int(grid.zero_point)) == (-128, 127, -28)
    weights = plan["stem.weight"].params
    assert (weights.axis, weights.qmin, weights.qmax) == (0, -128, 127)
    assert weights.scale.tolist() == torch.tensor(scales, dtype=torch.float32).tolist()
    assert not bool(weights.zero_point.any())


def test_names_of_another_file(graph: Graph, tmp_path: Path) -> None:
    plan = plan_of(graph, "int8")
    names = {name: f"/graph/{i}/Conv_output_0" for i, name in enumerate(plan.grids)}
    encodings.write(plan, tmp_path / "e.json", names=names)
    assert "stem.weight" not in (tmp_path / "e.json").read_text()
    assert encodings.read(tmp_path / "e.json", graph, names=names) == plan
    ranges.write(plan, tmp_path / "r.json", names=names)
    assert ranges.read(tmp_path / "r.json", graph, names=names) == plan
    for wrong, message in (
        ({"stem": "a", "input": "a"}, r"\bstem .*\binput .*'a'"),
        ({"nothing": "a"}, r"^names= .*'nothing'"),
        ({"stem": ""}, r"^names= .*\bstem .*''"),
        ({"stem": "input"}, r"\bstem .*\binput .*'input'"),
    ):
        with pytest.raises(PlanError, match=message):
            encodings.write(plan, tmp_path / "e.json", names=wrong)


def test_what_files_do_not_hold_is_said(graph: Graph, tmp_path: Path) -> None:
    plan = plan_of(graph, "int8")
    codes = Codes(torch.zeros_like(graph.weights["side.weight"], dtype=torch.int8))
    plan = plan.with_grid("side.weight", replace(plan["side.weight"], codes=codes))
    plan = replace(plan, corrections={"side": (0.1,) * 4})
    for notes in (encodings.write(plan, tmp_path / "e.json"), ranges.write(plan, tmp_path / "r.json")):
        assert len(notes) == 2
        assert "side.weight" in notes[0]
        assert "1 layers" in notes[1]


def entry_of(**changes: Any) -> dict[str, Any]:
    entry = {"name": "input", "dtype": "INT", "enc_type": "PER_TENSOR", "bw": 8, "is_sym": False, "scale": [0.1], "offset": [-7]}
    return {k: v for k, v in {**entry, **changes}.items() if v is not ...}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (entry_of(name="nobody"), "nobody"),
        (entry_of(name=3), r"entry 0: .*'name' .*'3'"),
        (entry_of(scale=...), "scale"),
        (entry_of(scale=[0.0]), "scale"),
        (entry_of(scale=[-1.0]), "scale"),
        (entry_of(scale=[1e200]), r"input: .*\blarge\b"),
        (entry_of(scale=["0.1"]), "scale"),
        (entry_of(scale=[True]), "scale"),
        (entry_of(scale=[]), "scale"),
        (entry_of(scale=[0.1, 0.1]), "2 scales"),
        (entry_of(offset=[0.5]), "offset"),
        (entry_of(offset=[10]), "zero point"),
        (entry_of(offset=[-(2**40)]), r"input: .*\blarge\b"),
        (entry_of(bw=32), "32 bits"),
        (entry_of(bw=True), "bw"),
        (entry_of(is_sym="False"), "is_sym"),
        (entry_of(is_sym=True), "symmetric"),
        (entry_of(enc_type="PER_BLOCK"), "PER_BLOCK"),
        (entry_of(enc_type="PER_CHANNEL"), "per channel"),
        (entry_of(name="stem.weight", enc_type="PER_CHANNEL", scale=[0.1] * 3, offset=[-7] * 3), "3 channels"),
        (7, r"activation_encodings: .*\bentry 0\b.*\bencoding\b"),
    ],
)
def test_corrupt_encodings(graph: Graph, tmp_path: Path, entry: Any, message: str) -> None:
    path = tmp_path / "e.json"
    path.write_text(json.dumps({"version": "1.0.0", "activation_encodings": [entry], "param_encodings": []}))
    with pytest.raises(PlanError, match=message) as raised:
        encodings.read(path, graph)
    assert "e.json" in str(raised.value)


@pytest.mark.parametrize("read", [encodings.read, ranges.read])
@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "null", '{"version": 1}', '{"version": "9.9"}', "[" * 100_000, '{"a": NaN}', '{"a": 1, "a": 2}', "\ud800",
     '{"version": "1.0.0", "activation_encodings": {}, "tensors": []}', '{"version": "0.6.1", "activation_encodings": [], "tensors": 1}',
     '{"version": "1.0.0", "activation_encodings": [], "param_encodings": [], "qkit": {"bias_bits": 1}, "bias_bits": 1}'],
)  # fmt: skip
def test_files_that_are_none(graph: Graph, tmp_path: Path, read: Any, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(PlanError, match=r"x\.json"):
        read(path, graph)
    with pytest.raises(PlanError, match=r"missing\.json "):
        read(tmp_path / "missing.json", graph)


def test_contradicting_old_encodings(graph: Graph, tmp_path: Path) -> None:
    good = {"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "max": 2.54, "min": -0.01, "offset": -1, "scale": 0.01}

    def read(*channels: dict[str, Any], name: str = "input") -> Plan:
        document = {"version": "0.6.1", "activation_encodings": {name: list(channels)}, "param_encodings": {}}
        (tmp_path / "o.json").write_text(json.dumps(document))
        return encodings.read(tmp_path / "o.json", graph)

    assert float(read(good)["input"].params.hi) == pytest.approx(2.54)
    for change in ({"max": 5.0}, {"min": -1.0}, {"offset": 3}, {"scale": 0.0}, {"scale": -0.01}, {"max": "2.54"}):
        with pytest.raises(PlanError):
            read({**good, **change})
    with pytest.raises(PlanError, match=r"o\.json, activation_encodings, input: .*\blist\b"):
        read()
    with pytest.raises(PlanError, match="per channel"):
        read(good, good)


@MANY
@given(junk=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
                         lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(
                             "name dtype enc_type bw is_sym scale offset min max bits axis input stem.weight".split()), x, max_size=5),
                         max_leaves=12))  # fmt: skip
def test_junk_is_refused_or_read_but_never_breaks(graph: Graph, tmp_path: Path, junk: Any) -> None:
    for version, wrap in (("1.0.0", lambda x: [x]), ("0.6.1", lambda x: {"input": x}), ("0.6.1", lambda x: {"input": [x]})):
        document = {"version": version, "activation_encodings": wrap(junk), "param_encodings": wrap(junk), "qkit": junk}
        (tmp_path / "j.json").write_text(json.dumps(document))
        _read_or_refuse(encodings.read, tmp_path / "j.json", graph)
    (tmp_path / "j.json").write_text(json.dumps({"tensors": {"input": junk}}))
    _read_or_refuse(ranges.read, tmp_path / "j.json", graph)


def _read_or_refuse(read: Any, path: Path, graph: Graph) -> None:
    try:
        plan = read(path, graph)
    except PlanError:
        return
    assert isinstance(plan, Plan)


# ---- ranges


@pytest.mark.parametrize("scheme", list(PRESETS))
def test_ranges_come_back(graph: Graph, tmp_path: Path, scheme: str) -> None:
    plan = plan_of(graph, scheme)
    assert ranges.write(plan, tmp_path / "r.json") == ()
    assert ranges.read(tmp_path / "r.json", graph) == plan
    written = json.loads((tmp_path / "r.json").read_text())["tensors"]
    assert written["stem"]["max"] == float(plan["stem"].params.hi)
    assert written["stem"]["bits"] == plan["stem"].params.bits


@MANY
@given(data=st.data())
def test_any_plan_comes_back_from_ranges(graph: Graph, tmp_path: Path, data: st.DataObject) -> None:
    plan = data.draw(plans(graph))
    ranges.write(plan, tmp_path / "r.json")
    assert ranges.read(tmp_path / "r.json", graph) == plan


def test_ranges_by_hand(graph: Graph, tmp_path: Path) -> None:
    low, high = [-0.5] * 8, [0.5] * 8
    document = {"tensors": {"stem": {"min": 0, "max": 6}, "stem.weight": {"min": low, "max": high, "axis": 0}}}
    (tmp_path / "mine.json").write_text(json.dumps(document))
    plan = ranges.read(tmp_path / "mine.json", graph)
    assert plan.name == "mine"
    assert plan["stem"].params == QuantSpec(8, symmetric=False).params(0.0, 6.0)
    expected = QuantSpec(8, per_channel=True).params(torch.tensor(low), torch.tensor(high), axis=0)
    assert plan["stem.weight"].params == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"min": 0}, r"stem: .*'max'"),
        ({"min": 2, "max": 1}, r"stem: .*\[2, 1\]"),
        ({"min": 0, "max": 1, "bits": 40}, r"stem: .*\bbits=40\b"),
        ({"min": 0, "max": 1, "bits": 7.5}, r"stem: .*'bits'"),
        ({"min": 0, "max": 1, "symetric": True}, r"stem: .*'symetric'.*\bsymmetric\b"),
        ({"min": 0, "max": 1, "symmetric": 1}, r"stem: .*'symmetric' .*'1'"),
        ({"min": [0, 0], "max": [1, 1]}, r"stem: .*\baxis\b"),
        ({"min": [0, 0], "max": [1], "axis": 0}, r"stem: .*\b2 .*\b1 "),
        ({"min": [0] * 3, "max": [1] * 3, "axis": 1}, r"stem: .*\b3 channels\b.*\b1\b.*\(4, 8, 16, 16\)"),
        ({"min": [0], "max": [1], "axis": 9}, r"stem: .*\baxis 9\b.*\(4, 8, 16, 16\)"),
        ({"min": 0, "max": 1, "weight": True}, r"stem: .*\bweight\b"),
    ],
)
def test_corrupt_ranges(graph: Graph, tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"tensors": {"stem": entry}}))
    with pytest.raises(PlanError, match=message):
        ranges.read(tmp_path / "r.json", graph)


def test_a_grid_that_no_rule_makes(graph: Graph, tmp_path: Path) -> None:
    odd = QuantParams(torch.tensor(0.1), torch.tensor(3, dtype=torch.int32), 0, 100)
    plan = Plan({"stem": Grid(QuantSpec(8, symmetric=False), odd, "manual")})
    with pytest.raises(PlanError, match=r"^stem .*\b0\.\.100\b.*plan\.save"):
        ranges.write(plan, tmp_path / "r.json")
    encodings.write(plan, tmp_path / "e.json")
    assert encodings.read(tmp_path / "e.json", graph) == plan


# ---- TIDL


def wide_layers(graph: Graph, scheme: str = "int8-symmetric") -> Plan:
    plan, wide = plan_of(graph, scheme), make_plan(graph, observe(graph, IMAGES, progress=False), scheme_of(scheme).at_bits(16))
    return plan.with_grids({name: wide[name] for name in ("stem", "stem.weight", "project.weight", ":add")})


@pytest.mark.parametrize(
    ("scheme", "bits", "style"),
    [
        ("int8", 8, 4),
        ("int8-symmetric", 8, 0),
        ("int8-power-of-two", 8, 1),
        ("int16", 16, 4),
        ("int8-per-channel-power-of-two", 8, 1),
    ],
)
def test_widths_and_styles(graph: Graph, scheme: str, bits: int, style: int) -> None:
    plan = plan_of(graph, scheme)
    options = tidl.compile_options(plan, graph)
    assert options["tensor_bits"] == bits
    assert options["advanced_options:quantization_scale_type"] == style
    assert tidl.bits_from_options(options, graph) == dict.fromkeys((*graph.taps, *graph.weights), bits)
    # a scale per channel needs its switch, which accuracy_level 9 has; the asymmetric style has one anyway
    per_channel = style != 4 and any(grid.params.axis is not None for grid in plan.grids.values())
    assert options["accuracy_level"] == (9 if per_channel else 1)
    assert options.get("advanced_options:channel_wise_quantization", 0) == int(per_channel)


def test_layers_in_sixteen_bits(graph: Graph) -> None:
    plan = wide_layers(graph)
    options = tidl.compile_options(plan, graph)
    assert options["tensor_bits"] == 8
    assert options["advanced_options:output_feature_16bit_names_list"] == "stem, :add"
    assert options["advanced_options:params_16bit_names_list"] == "project"
    widths = {name: grid.spec.bits for name, grid in plan.grids.items()}
    assert tidl.bits_from_options(options, graph) == widths
    names = {"stem": "/stem/Relu_output_0", "project": "42"}
    renamed = tidl.compile_options(plan, graph, names=names)
    assert renamed["advanced_options:output_feature_16bit_names_list"] == "/stem/Relu_output_0, :add"
    assert tidl.bits_from_options(renamed, graph, names=names) == widths
    assert all(isinstance(value, (str, int)) and not isinstance(value, bool) for value in renamed.values())


def test_the_float_network_is_for_the_pc(graph: Graph) -> None:
    options = tidl.compile_options(FLOAT, graph)
    assert options["tensor_bits"] == 32
    assert set(tidl.bits_from_options(options, graph).values()) == {32}


def test_calibration_and_imports(graph: Graph) -> None:
    plan = plan_of(graph, "int8")
    options = tidl.compile_options(plan, graph, accuracy_level=0, calibration_frames=30, calibration_iterations=20)
    assert options["accuracy_level"] == 0
    assert options["advanced_options:calibration_frames"] == 30
    assert options["advanced_options:calibration_iterations"] == 20
    options = tidl.compile_options(plan, graph, prequantized="onnx", quant_params="ranges.prototxt")
    assert options["advanced_options:prequantized_model"] == 1
    assert options["advanced_options:quant_params_proto_path"] == "ranges.prototxt"
    assert tidl.compile_options(plan, graph, prequantized="tflite")["advanced_options:quantization_scale_type"] == 3
    for wrong in ({"accuracy_level": 3}, {"calibration_frames": 0}, {"calibration_iterations": 1.5}, {"prequantized": "tf"}):
        with pytest.raises(PlanError):
            tidl.compile_options(plan, graph, **wrong)  # type: ignore[arg-type]


def test_what_tidl_does_otherwise(graph: Graph, caplog: pytest.LogCaptureFixture) -> None:
    def notes(plan: Plan, **options: Any) -> str:
        return "\n".join(tidl.not_carried(plan, graph, **options))

    assert "with_ranges" in notes(plan_of(graph, "int8-symmetric"))
    assert notes(plan_of(graph, "int8-symmetric"), quant_params="x") == ""
    assert re.search(r"16 bits .*\bweights\b.*: \w", notes(plan_of(graph, "int8-weights-int16-activations")))
    assert re.search(r"\basymmetric .*\bper channel\b.*: \w", notes(plan_of(graph, "int8-per-tensor")))
    assert re.search(r"\bsymmetric .*\baffine\b.*: input, average", notes(plan_of(graph, "int8")))
    assert "deny_list:layer_name: stem" in notes(plan_of(graph, "int8").without(["stem"]))
    assert "accuracy_level 0" in notes(plan_of(graph, "int8-symmetric"), accuracy_level=0)
    wide = make_plan(graph, observe(graph, IMAGES, progress=False), scheme_of("int16"))
    assert re.search(r"\bwidth\b.*: :cat", notes(plan_of(graph, "int8").with_grids({":cat": wide[":cat"]})))
    corrected = replace(plan_of(graph, "int8"), corrections={"side": (0.0,) * 4})
    assert "biases" in notes(corrected)
    assert "biases" not in notes(plan_of(graph, "int8"))
    with caplog.at_level(logging.WARNING):
        tidl.compile_options(corrected, graph)
    assert "biases" in caplog.text


def test_grids_that_tidl_has_none_of(graph: Graph) -> None:
    plan = plan_of(graph, "int8")
    with pytest.raises(PlanError, match=r"stem\.weight .*\b4 bits\b.*TIDL .*\b8\b.*\b16\b"):
        tidl.compile_options(plan_of(graph, "int4-weights"), graph)
    affine = plan.with_range("side.weight", -0.1, 1.0, spec=QuantSpec(8, symmetric=False))
    with pytest.raises(PlanError, match=r"side\.weight .*zero point\b.*TIDL"):
        tidl.compile_options(affine, graph)
    per_channel = plan.with_range("stem", torch.zeros(8), torch.ones(8), spec=QuantSpec(8, per_channel=True), axis=1)
    with pytest.raises(PlanError, match=r"^stem .*per channel\b.*TIDL"):
        tidl.compile_options(per_channel, graph)
    with pytest.raises(PlanError, match=r"'other'.*\bMixed\b"):
        tidl.compile_options(Plan({"other": plan["stem"]}), graph)


@pytest.mark.parametrize("name", ["a,b", "a b", "", 'x"', "a\n", "tab\t", "\x00", 5])
def test_hostile_names(graph: Graph, name: Any) -> None:
    with pytest.raises(PlanError, match=rf"^stem .*{re.escape(repr(name))}"):
        tidl.compile_options(wide_layers(graph), graph, names={"stem": name})
    with pytest.raises(PlanError, match=r"^names= .*\btaps\b"):
        tidl.compile_options(wide_layers(graph), graph, names={"stem": ":add"})


@pytest.mark.parametrize(
    "options",
    [{"tensor_bits": 4}, {"tensor_bits": "eight"}, {"tensor_bits": True}, {"tensor_bits": None},
     {"advanced_options:output_feature_16bit_names_list": "nobody"}, {"advanced_options:params_16bit_names_list": ["stem"]}],
)  # fmt: skip
def test_corrupt_options(graph: Graph, options: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        tidl.bits_from_options(options, graph)


def test_options_of_others(graph: Graph) -> None:
    options = {"tensor_bits": "8", "debug_level": 3, "advanced_options:output_feature_16bit_names_list": " stem ,side,"}
    bits = tidl.bits_from_options(options, graph)
    assert {name for name, width in bits.items() if width == 16} == {"stem", "stem.weight", "side", "side.weight"}
    wide = {"tensor_bits": 16, "advanced_options:output_feature_16bit_names_list": "stem"}
    assert set(tidl.bits_from_options(wide, graph).values()) == {16}


def prototxt(names: list[str]) -> str:
    """A file as TI's documentation describes it."""
    blocks = "".join(
        f'layers {{\n  layer_name: "{name}"\n  layer_type: "TIDL_ConvolutionLayer"\n  bit_depth: 8\n  outputs {{\n    min: -1.5\n'
        "    max: 4.0\n    size: 1\n    scale: 32.0\n    zero_point: 0\n  }\n  weights { min: -0.25 max: 0.5 }  # kept\n}\n"
        for name in names
    )
    return f"# TIDL\nnum_layers: {len(names)}\nquant_type: SYMMETRIC\n{blocks}"


def test_ranges_for_tidl(graph: Graph) -> None:
    plan = plan_of(graph, "int8-symmetric")
    text = prototxt(["stem", "elsewhere", "side#1"])
    names = {"side": "side#1"}
    edited = tidl.with_ranges(text, plan, graph, names=names)
    found = tidl.ranges_from_prototxt(edited, graph, names=names)
    assert set(found) == {"stem", "stem.weight", "side", "side.weight"}
    for tensor, (low, high) in found.items():
        assert low == float(plan[tensor].params.lo.min())
        assert high == float(plan[tensor].params.hi.max())
    # nothing else has changed
    strip = [line for line in text.splitlines() if "min" not in line and "max" not in line]
    assert [line for line in edited.splitlines() if "min" not in line and "max" not in line] == strip
    assert edited.count("min: -1.5") == 1
    assert "# kept" in edited


def test_prototxt_that_cannot_be_used(graph: Graph) -> None:
    plan = plan_of(graph, "int8-symmetric")
    good = prototxt(["stem"])
    for text in (
        "",
        "num_layers: 0",
        good[:-3],
        good + "}",
        good.replace("4.0", "nan"),
        good.replace("4.0", "four"),
        "{" * 50,
        "a" * 10**5,
    ):
        with pytest.raises(PlanError, match="prototxt"):
            tidl.with_ranges(text, plan, graph)
    with pytest.raises(PlanError, match=r"prototxt .*\bMixed\b.*names="):
        tidl.with_ranges(prototxt(["other"]), plan, graph)
    with pytest.raises(PlanError, match=r"^stem .*zero point -64\b.*prequantized='onnx'"):
        tidl.with_ranges(good, plan_of(graph, "int8").with_range("stem", -1.0, 3.0), graph)


def test_the_study_will_do_as_well(tmp_path: Path) -> None:
    data: list[Tensor] = IMAGES
    study = qkit.Study(mixed_network(), data)
    study.calibrate(progress=False)
    encodings.write(study.plan, tmp_path / "e.json")
    ranges.write(study.plan, tmp_path / "r.json")
    assert encodings.read(tmp_path / "e.json", study) == ranges.read(tmp_path / "r.json", study) == study.plan
    assert study.with_plan(encodings.read(tmp_path / "e.json", study)).score() == study.score()
