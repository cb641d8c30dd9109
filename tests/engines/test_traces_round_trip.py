"""What the writer writes in every form comes back as the lane's own tensors, and a right trace raises no alarm."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trace_cases import at, kinds, read, study, written

import qkit
from qkit.diagnosis.engine_parting import causes_of_alignment
from qkit.engines import traces
from qkit.engines.lane import EngineLane
from qkit.engines.traces import Entry, Manifest, TraceError
from qkit.engines.traces.names import Names, TidlName
from qkit.engines.traces.trace_folders import scan
from qkit.execution.lanes import Lane, run_lanes
from qkit.quant.grids import quantize

FORMS: dict[str, dict[str, Any]] = {
    "npy": {"kind": "npy"},
    "npy of all frames": {"kind": "npy", "per_frame": False},
    "npy NHWC": {"kind": "npy", "layout": "NHWC"},
    "npz": {"kind": "npz", "naming": "exporter"},
    "npz of all frames": {"kind": "npz", "per_frame": False},
    "raw": {"kind": "raw"},
    "raw NHWC, divided": {"kind": "raw", "layout": "NHWC", "convention": "divide", "per_frame": False},
    "tidl": {"kind": "tidl", "convention": "divide"},
    "tidl in three subgraphs, exporter's names": {"kind": "tidl", "subgraphs": 3, "naming": "exporter"},
    "tidl on four cores": {"kind": "tidl", "cores": 4},
    "tidl, older": {"kind": "tidl", "form": "plain"},
    "tidl, by configuration": {"kind": "tidl", "form": "config", "cores": 2},
}


def truth(lane: str, frames: int, network: str = "resnet_small") -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The lane's tensors and outputs for the first frames, from the executor."""
    made = study(network)
    found: dict[str, torch.Tensor] = {}
    inputs = next(iter(made.evaluation))[0]
    out = run_lanes(
        made.graph,
        [Lane("x", made.lane(lane))],
        (inputs,),
        observe=lambda op, values: found.update({op.name: values["x"][:frames].clone()}),
    )
    return found, out["x"][:frames]


@pytest.mark.parametrize("lane", ["float", pytest.param("int16", marks=pytest.mark.slow), "int8"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_back(tmp_path: Path, form: str, lane: str) -> None:
    made = study("resnet_small")
    found = read(written(tmp_path, lane=lane, frames=3, **FORMS[form]))
    assert found.alignment.ok
    assert kinds(found) == set(), str(found.alignment)
    assert found.taps == made.graph.taps
    assert found.bits == {"float": 32, "int16": 16, "int8": 8}[lane]
    values, outputs = truth(lane, 3)
    (batch,) = found.run(made.evaluation)
    assert batch.batch.size == 3
    torch.testing.assert_close(batch.batch.targets, next(iter(made.evaluation))[1][:3])
    torch.testing.assert_close(batch.outputs, outputs)
    for tap, expected in values.items():
        tensor = batch.taps[tap]
        assert tensor.values.dtype == torch.float32
        torch.testing.assert_close(tensor.values, expected.contiguous(), rtol=1e-6, atol=0)
        params = made.lane(lane).params(tap)
        if params is None:
            assert tensor.codes is None
        else:
            assert tensor.params is not None
            assert tensor.codes is not None
            torch.testing.assert_close(tensor.codes, quantize(expected, params).contiguous())
            torch.testing.assert_close(tensor.params.scale, params.scale, rtol=1e-6, atol=0)
            assert int(tensor.params.zero_point) == int(params.zero_point)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mobilenet_v2_lite", "mobilenet_v2_hostile"])
@pytest.mark.parametrize("lane", ["float", "int16", "int8"])
def test_no_false_alarm(tmp_path: Path, network: str, lane: str) -> None:
    """Of the hostile network too, whose int8 lane is far from float."""
    found = read(written(tmp_path, network, lane=lane, frames=8, kind="npz"), network)
    assert found.alignment.ok
    assert found.taps == study(network).graph.taps
    assert {kind for kind, _ in kinds(found)} <= {"differs", "constant"}
    assert causes_of_alignment(found.alignment) == []


@pytest.mark.parametrize("scheme", ["int8-power-of-two", "int8-symmetric"])
def test_a_device_with_other_ranges_raises_no_alarm(tmp_path: Path, scheme: str) -> None:
    """On the hostile network: nothing of its deep layers is left, and that is no misalignment."""
    name = "mobilenet_v2_hostile"
    found = read(written(tmp_path, name, lane=study(name).with_scheme(scheme).plan, frames=4, kind="npy"), name)
    assert found.alignment.ok
    assert {kind for kind, _ in kinds(found)} <= {"differs", "constant"}


def test_dumps_under_layer_names(tmp_path: Path) -> None:
    folder = written(tmp_path, kind="reference", naming="exporter", frames=3, lane="int8")
    found = read(folder, kind="reference")
    assert found.alignment.ok
    assert found.bits == 8
    assert "256 values" in found.notes[-1]
    values, _ = truth("int8", 3)
    for tap in found.taps:
        torch.testing.assert_close(found.tensor(tap).values, values[tap].contiguous(), rtol=0, atol=0)
    with pytest.raises(TraceError, match=r"\b93 files\b.*trace\.json .*kind='reference'"):
        read(folder)


def test_dumps_of_tflite_are_nhwc(tmp_path: Path) -> None:
    found = read(written(tmp_path, kind="reference", frames=3, layout="NHWC"), kind="reference")
    assert found.alignment.ok
    assert {kind for kind, _ in kinds(found, "mended")} == {"layout"}
    values, _ = truth("float", 3)
    for tap in found.taps:
        torch.testing.assert_close(found.tensor(tap).values, values[tap].contiguous(), rtol=0, atol=0)


def test_codes_and_numbers_give_the_grid(tmp_path: Path) -> None:
    """TIDL's .y have neither sign nor scale; beside *_float.bin both follow."""
    folder = written(tmp_path, kind="tidl", lane="int8", frames=2)
    (folder / "trace.json").unlink()
    found = read(folder)
    assert found.alignment.ok
    assert kinds(found) == set()
    for tap in found.taps:
        params, own = study("resnet_small").plan.params(tap), found.tensor(tap).params
        assert params is not None
        assert own is not None
        torch.testing.assert_close(own.scale, params.scale, rtol=1e-4, atol=0)
        assert (int(own.zero_point), own.qmin, own.qmax) == (int(params.zero_point), params.qmin, params.qmax)


def test_codes_alone_need_a_dtype_and_get_a_scale(tmp_path: Path) -> None:
    folder = written(tmp_path, kind="tidl", lane="int8", frames=4)
    (folder / "trace.json").unlink()
    for path in folder.rglob("*_float.bin"):
        path.unlink()
    with pytest.raises(TraceError, match=r"^input: .*\.y .*int8 .*uint8\b.*trace\.json.*\"data_id\": 1"):
        read(folder)
    grids = study("resnet_small").plan
    dtype = str(grids.params("conv1").dtype).removeprefix("torch.")  # type: ignore[union-attr]
    found = read(folder, manifest=Manifest(defaults=Entry(dtype=dtype)))
    assert found.alignment.ok
    assert {kind for kind, _ in kinds(found)} == {"no-scale"}
    for tap in found.taps:
        expected, own = grids.params(tap), found.tensor(tap).params
        assert expected is not None
        assert own is not None
        assert float(own.scale) == pytest.approx(float(expected.scale), rel=0.03), tap
        assert abs(int(own.zero_point) - int(expected.zero_point)) <= 3, tap
    assert re.search(r"input: .*\bscale\b.*\b30\b", " ".join(found.notes))


def test_frames_and_samples(tmp_path: Path) -> None:
    made = study("resnet_small")
    folder = written(tmp_path, frames=12)
    found = read(folder, frames=5)
    assert found.frames == 5
    inputs, targets = next(iter(made.evaluation))
    found = traces.read(folder, made, progress=False, samples=range(12))
    assert found.alignment.ok
    # samples spread over batches of another size: each batch has those that it holds
    loader = [(inputs[i : i + 5], targets[i : i + 5]) for i in range(0, 20, 5)]
    got = list(found.run(loader))
    assert [batch.batch.size for batch in got] == [5, 5, 2]
    values, _ = truth("float", 12)
    torch.testing.assert_close(torch.cat([b.taps["layer2.0:add"].values for b in got]), values["layer2.0:add"].contiguous())
    assert [b.batch.size for b in found.run(loader, limit=1)] == [5]
    with pytest.raises(TraceError, match=r"\bsamples .*\b3 samples\b.*\b12 frames"):
        read(folder, samples=[0, 1, 2])
    with pytest.raises(TraceError, match=r"^samples\b"):
        read(folder, samples=[0] * 12)


def test_frames_that_are_told_to_be_other_samples(tmp_path: Path) -> None:
    made = study("resnet_small")
    inputs, targets = next(iter(made.evaluation))
    chosen = [7, 3, 9, 20]
    folder = traces.write(made, tmp_path / "x", frames=4, inputs=[inputs[chosen]])
    found = traces.read(folder, made, samples=chosen, progress=False)
    assert found.alignment.ok
    assert found.samples == tuple(chosen)
    assert kinds(found) == set()
    (batch,) = found.run([(inputs, targets)])
    torch.testing.assert_close(batch.batch.inputs[0], inputs[sorted(chosen)])
    torch.testing.assert_close(batch.taps["input"].values, inputs[sorted(chosen)])


def test_without_inputs_only_names_and_shapes_are_compared(tmp_path: Path) -> None:
    graph = study("resnet_small").graph
    found = traces.read(written(tmp_path, frames=2), graph, progress=False)
    assert found.alignment.ok
    assert found.alignment.checked == 0
    assert "shapes" in found.notes[0]
    assert found.alignment.table()["correlation"].isna().all()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3), channels=st.integers(1, 5), height=st.integers(1, 9), width=st.integers(1, 5),
    cores=st.integers(1, 4), dtype=st.sampled_from(["int8", "uint8", "int16", "uint16", "float32"]),
    whole=st.booleans(), seed=st.integers(0, 99), form=st.sampled_from(["subgraph", "plain", "config"]), data=st.data(),
)  # fmt: skip
def test_cores_are_put_one_below_the_other(
    tmp_path_factory: pytest.TempPathFactory, batch: int, channels: int, height: int, width: int, cores: int, dtype: str,
    whole: bool, seed: int, form: Any, data: st.DataObject,
) -> None:  # fmt: skip
    """By numpy's own concatenation; the height in a name is the whole's or the core's own."""
    folder = tmp_path_factory.mktemp("cores")
    batch = 1 if form == "config" else batch
    array = np.random.default_rng(seed).integers(0, 100, (batch, channels, height, width)).astype(dtype)
    pieces = [piece for piece in np.array_split(array, cores, axis=2) if piece.size]
    for core, piece in enumerate(pieces):
        name = TidlName(
            3,
            channels,
            height if whole else piece.shape[2],
            width,
            dtype == "float32",
            batch=batch,
            core=core if len(pieces) > 1 else None,
        )
        (folder / name.format(form)).write_bytes(piece.tobytes())
    graph = study("resnet_small").graph
    trace = scan(folder, Names(graph), manifest=Manifest(defaults=Entry(dtype=dtype)))
    (tensor,) = trace.tensors
    assert trace.frames == batch
    np.testing.assert_array_equal(tensor.take(range(batch)), array.reshape(batch, -1))
    some = data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=4))
    spots = np.arange(0, channels * height * width, 2)
    np.testing.assert_array_equal(tensor.take(some, spots), array.reshape(batch, -1)[some][:, spots])


def test_codes_of_two_cores_may_be_of_either_width(tmp_path: Path) -> None:
    """Two cores, the whole's height in the names: 8 bits of their own rows or 16 bits of half the rows."""
    array = np.arange(2 * 4 * 3, dtype="<i2").reshape(1, 2, 4, 3)
    for core in (0, 1):
        rows = array[:, :, 2 * core : 2 * core + 2]
        (tmp_path / TidlName(1, 2, 4, 3, False, core=core).format()).write_bytes(rows.tobytes())
    names = Names(study("resnet_small").graph)
    with pytest.raises(TraceError, match=r"C7x_0_\S+\.y: .*\b8 bits\b.*\b16\b.*trace\.json"):
        scan(tmp_path, names)
    (tensor,) = scan(tmp_path, names, manifest=Manifest(defaults=Entry(dtype="int16"))).tensors
    np.testing.assert_array_equal(tensor.take([0])[0], array.reshape(-1))


def test_a_cores_missing_file(tmp_path: Path) -> None:
    folder = written(tmp_path, kind="tidl", cores=3, frames=1)
    victim = next(folder.rglob("C7x_2_*subgraph_0_0002*"))
    victim.unlink()
    with pytest.raises(TraceError, match=r"C7x_1_\S+\.bin: .*\[1, 3\]"):
        read(folder)


@pytest.mark.parametrize("kind", ["npy", "raw", "tidl", "npz"])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str) -> None:
    folder = written(tmp_path, kind=kind, frames=3)
    victim = sorted(p for p in folder.rglob("*") if p.suffix in (".npy", ".bin", ".npz") and p.stat().st_size > 3000)[1]
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(TraceError, match=victim.name.replace(".", r"\.")):
        read(folder)


@pytest.mark.parametrize("kind", ["npy", "raw", "tidl"])
def test_a_missing_frame_is_an_error(tmp_path: Path, kind: str) -> None:
    folder = written(tmp_path, kind=kind, frames=3)
    next((folder / "frame_0001").glob("*conv1*" if kind != "tidl" else "*_0002_*")).unlink()
    with pytest.raises(TraceError, match=r"conv1 .*\b2 frames\b.*\b3\b|conv1: .*\bframe 1 .*conv1\.bin.* 0 to 2"):
        read(folder)


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    folder = written(tmp_path, kind="tidl", frames=1)
    file = next(folder.rglob("*_0002_*_float.bin"))
    file.with_name(file.name.replace("00032x", "0032x")).write_bytes(file.read_bytes())
    with pytest.raises(TraceError, match=r"_00012_0032x00032_float\.bin .*_00012_00032x00032_float\.bin "):
        read(folder)


def test_a_raw_file_without_a_dtype_is_an_error(tmp_path: Path) -> None:
    np.zeros((1, 3, 32, 32), "<f4").tofile(tmp_path / "in.bin")
    for entry, message in [
        (Entry(file="in.bin", tap="input", shape=(1, 3, 32, 32)), r"\bdtype .*in\.bin \(input\)"),
        (Entry(file="in.bin", tap="input", dtype="float32"), r"\bshape .*in\.bin \(input\)"),
        (
            Entry(file="in.bin", tap="input", dtype="float64", shape=(1, 3, 32, 32)),
            r"in\.bin .*\b12288\b.*float64.*\b24576\b.*int32 .*float32",
        ),
        (Entry(file="no.bin", tap="input", dtype="float32", shape=(1, 3, 32, 32)), r"'no\.bin' .*\binput\b"),
        (Entry(file="{frame}.bin", tap="input", dtype="float32", shape=(1, 3, 32, 32)), r"'\{frame\}\.bin'.*\binput\b"),
    ]:
        with pytest.raises(TraceError, match=message):
            read(tmp_path, manifest=Manifest((entry,)))
    with pytest.raises(TraceError, match=r"\b1 files\b.*\bin\.bin\b.*trace\.json .*kind='reference'"):
        read(tmp_path)


def test_nothing_is_written_outside(tmp_path: Path) -> None:
    (tmp_path / "trace").mkdir()
    (tmp_path / "trace" / "theirs").touch()
    with pytest.raises(TraceError, match=r"trace .*\btheirs\b"):
        written(tmp_path)
    assert [p.name for p in (tmp_path / "trace").iterdir()] == ["theirs"]


def test_reading_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    folder = written(tmp_path, kind="npz", frames=2, change=at("conv1", lambda a: a * 2))
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")}
    read(folder)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")} == before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what a process has open is not told here")
@pytest.mark.parametrize("kind", ["npy", "npz", "raw"])
def test_a_lane_keeps_no_file_open(tmp_path: Path, kind: Any) -> None:
    found = read(written(tmp_path, kind=kind, frames=2))
    (batch,) = found.run(study("resnet_small").evaluation)
    opened = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
    assert not [line for line in (*opened, *Path("/proc/self/maps").read_text().splitlines()) if str(tmp_path) in line]
    assert batch.taps, "its tensors are copies"


@pytest.mark.parametrize("kind", ["npy", "npz", "raw", "tidl"])
def test_hostile_module_names_stay_in_the_folder(tmp_path: Path, kind: Any) -> None:
    model = torch.nn.Sequential()
    for name in ("/etc/evil", "file", "C:x", "x" * 400, " "):
        model.add_module(name, torch.nn.Conv2d(3, 3, 3, padding=1))
    images = torch.randn(4, 3, 8, 8)
    made = qkit.Study(model.eval(), calibration=[images], metric="agreement")
    folder = traces.write(made, tmp_path / "deep" / "folder", kind=kind, frames=2, lane="int8")
    assert all(path.is_relative_to(folder) for path in tmp_path.rglob("*") if path.is_file())
    found = traces.read(folder, made, progress=False)
    assert found.alignment.ok
    assert set(found.taps) == set(made.graph.taps)
    lane: EngineLane = found
    assert [batch.batch.size for batch in lane.run([images])] == [2]


def test_the_manifest_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    made = Manifest.from_dict(json.loads(block))
    assert [entry.dtype for entry in made.tensors] == ["int8", "float32", "int8"]
    assert made.find("x", data_id=17).step == (1 / 12.25,)
