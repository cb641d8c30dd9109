"""Planted misalignments, on the networks' real layers: each is found, named, and undone where that is unambiguous."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from trace_cases import at, kinds, read, study, written

from qkit.diagnosis.engine_parting import causes_of_alignment
from qkit.engines import traces
from qkit.engines.traces import MisalignedTraceError
from qkit.engines.traces.matching import channel_order, correlation, frame_correlations, frame_order
from qkit.execution.lanes import Lane, run_lanes
from qkit.files import file_name
from qkit.graph.operation import Operation
from qkit.graph.table import UNBOUNDED

NETWORKS = {"resnet_small": ("layer1.0:add", "layer2.1.conv1"), "mobilenet_v2_lite": ("features.4.conv.2", "features.7.conv.0.0")}
# the second network's layers are twice as many
nets = pytest.mark.parametrize("network", ["resnet_small", pytest.param("mobilenet_v2_lite", marks=pytest.mark.slow)])
both = pytest.mark.parametrize("lane", ["float", "int8"])


def same(found: traces.TraceLane, network: str, lane: str = "float", taps: list[str] | None = None) -> None:
    """The lane's tensors are those of the right trace."""
    made = study(network)
    values = tensors(network, lane)
    inputs = next(iter(made.evaluation))[0][: found.frames]
    got = torch.cat([b.batch.inputs[0] for b in found.run(made.evaluation)])
    torch.testing.assert_close(got, inputs)
    for batch in found.run(made.evaluation):
        for tap in taps or found.taps:
            torch.testing.assert_close(batch.taps[tap].values, values[tap][: found.frames], rtol=1e-4, atol=1e-5)


@functools.lru_cache(maxsize=8)
def tensors(network: str, lane: str) -> dict[str, torch.Tensor]:
    """A lane's tensors on the first batch, from the executor."""
    made = study(network)
    values: dict[str, torch.Tensor] = {}
    inputs = next(iter(made.evaluation))[0]

    def look(op: Operation, lanes: Mapping[str, torch.Tensor]) -> None:
        values[op.name] = lanes["x"][:16].contiguous().clone()

    run_lanes(made.graph, [Lane("x", made.lane(lane))], (inputs,), observe=look)
    return values


@nets
@both
@pytest.mark.parametrize("axes", [(0, 2, 3, 1), (0, 1, 3, 2), (0, 3, 2, 1)])
def test_layout(tmp_path: Path, network: str, lane: str, axes: tuple[int, ...]) -> None:
    """NHWC, H and W swapped, NWHC, stored without a word or a shape that would tell."""
    tap = NETWORKS[network][0]
    folder = written(tmp_path, network, lane=lane, change=at(tap, lambda a: a.transpose(axes).reshape(a.shape)))
    found = read(folder, network)
    assert kinds(found) == {("layout", tap)}
    (problem,) = [p for p in found.alignment.problems if p.kind == "layout"]
    assert "N" + "".join("NCHW"[i] for i in axes[1:]) in problem.found
    assert problem.severity == "mended"
    assert problem.confidence > 0.5
    same(found, network, lane)
    strict = read(folder, network, mend=False)
    assert not strict.alignment.ok
    with pytest.raises(MisalignedTraceError, match="trace-alignment"):
        next(strict.run(study(network).evaluation))


@nets
def test_a_shape_that_says_the_layout(tmp_path: Path, network: str) -> None:
    tap = NETWORKS[network][0]
    found = read(written(tmp_path, network, change=at(tap, lambda a: a.transpose(0, 2, 3, 1))), network)
    assert kinds(found) == {("layout", tap)}
    same(found, network)


@nets
@both
@pytest.mark.parametrize("order", [[1, 0, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 2, 3, 4, 5, 1]])
def test_frames_in_another_order(tmp_path: Path, network: str, lane: str, order: list[int]) -> None:
    found = read(written(tmp_path, network, lane=lane, frames=6, change=lambda _, a: a[order]), network)
    assert kinds(found) == {("frames", "")}
    assert found.samples == tuple(order)
    same(found, network, lane)
    strict = read(tmp_path / "trace", network, mend=False)
    assert [c.kind for c in causes_of_alignment(strict.alignment)] == ["trace-alignment"]
    assert read(tmp_path / "trace", network, samples=order).alignment.problems == ()


def test_frames_sorted_as_text(tmp_path: Path) -> None:
    """``frame_10`` before ``frame_2``, as a careless script concatenates them."""
    order = sorted(range(12), key=str)
    found = read(written(tmp_path, frames=12, change=lambda _, a: a[order]))
    assert found.samples == tuple(order)
    same(found, "resnet_small")


@nets
@both
def test_channels(tmp_path: Path, network: str, lane: str) -> None:
    tap = NETWORKS[network][0]
    found = read(written(tmp_path, network, lane=lane, frames=6, change=at(tap, lambda a: a[:, ::-1])), network)
    assert kinds(found) == {("channels", tap)}
    same(found, network, lane)


@nets
@both
def test_two_names_mixed_up(tmp_path: Path, network: str, lane: str) -> None:
    made = study(network)
    graph = made.graph
    one = graph.operation(NETWORKS[network][1])
    two = next(s for s in graph.operations if s.quantized and s.shape == one.shape and s is not one and s.act == one.act)
    folder = written(tmp_path, network, lane=lane, kind="npy")
    for frame in folder.glob("frame_*"):
        first, second = (frame / f"{file_name(s.name)}.npy" for s in (one, two))
        swapped = first.read_bytes(), second.read_bytes()
        second.write_bytes(swapped[0])
        first.write_bytes(swapped[1])
    if lane == "int8":
        # the names are the manifest's keys to the scales: they go with the names, and are then wrong too
        (folder / "trace.json").write_text((folder / "trace.json").read_text())
    found = read(folder, network)
    assert ("wrong-tap", one.name) in kinds(found)
    assert ("wrong-tap", two.name) in kinds(found)
    assert found.alignment.matches[two.name].mend is not None
    if lane == "float":
        same(found, network)


@nets
def test_values_from_before_the_activation(tmp_path: Path, network: str) -> None:
    made = study(network)
    tap = NETWORKS[network][1]
    op = made.graph.operation(tap)
    assert op.act != UNBOUNDED
    inputs = next(iter(made.evaluation))[0][:4]
    before = {}

    def finish(at_step, y, params, lanes, reference):  # type: ignore[no-untyped-def]
        if at_step is op:
            before[tap] = y.contiguous().clone().numpy()
        return y if at_step.act == UNBOUNDED else y.clamp_(*at_step.act)

    run_lanes(made.graph, [Lane("float")], (inputs,), finish=finish)
    found = read(written(tmp_path, network, change=at(tap, lambda a: before[tap])), network)
    assert kinds(found) == {("pre-activation", tap)}
    same(found, network)


@nets
def test_values_from_behind_an_activation(tmp_path: Path, network: str) -> None:
    tap = next(s.name for s in study(network).graph.operations if s.kind == "conv" and s.act == UNBOUNDED)
    found = read(written(tmp_path, network, change=at(tap, lambda a: np.maximum(a, 0))), network)
    assert kinds(found) == {("post-activation", tap)}
    assert not found.alignment.ok
    (cause,) = causes_of_alignment(found.alignment)
    assert (cause.kind, cause.tensor, cause.gain) == ("trace-alignment", tap, None)
    left = read(tmp_path / "trace", network, ignore=[tap])
    assert left.alignment.ok
    assert tap not in left.taps


@nets
@pytest.mark.parametrize("convention", ["multiply", "divide"])
def test_reciprocal_scale(tmp_path: Path, network: str, convention: str) -> None:
    """TIDL's scale read as torch's, and the other way round."""
    folder = written(tmp_path, network, lane="int8", kind="raw", convention=convention)
    manifest = (folder / "trace.json").read_text()
    if convention == "divide":
        manifest = manifest.replace('"convention": "divide"', '"convention": "multiply"')
    else:
        manifest = manifest.replace('"tensors"', '"defaults": {"convention": "divide"}, "tensors"')
    (folder / "trace.json").write_text(manifest)
    found = read(folder, network)
    assert found.alignment.ok
    assert kinds(found) == {("scale", tap) for tap in found.taps}
    assert all("reciprocal" in p.found for p in found.alignment.problems)
    same(found, network, "int8")


@nets
@pytest.mark.parametrize("lane", ["float", "int8"])
@pytest.mark.parametrize(("factor", "severity"), [(4.0, "mended"), (0.125, "mended"), (2.55, "error"), (1 / 255, "error")])
def test_a_constant_factor(tmp_path: Path, network: str, lane: str, factor: float, severity: str) -> None:
    """A power of two is exact and undone; another factor is only estimated, and is not."""
    tap = NETWORKS[network][0]
    found = read(written(tmp_path, network, lane=lane, codes=False, change=at(tap, lambda a: (a * factor).astype("f4"))), network)
    assert kinds(found) == {("scale", tap)}
    assert kinds(found, severity) == {("scale", tap)}
    if severity == "mended":
        same(found, network, lane)


@nets
def test_a_zero_point_that_was_not_said(tmp_path: Path, network: str) -> None:
    made = study(network)
    folder = written(tmp_path, network, lane="int8", kind="raw")
    tap = next(t for t in made.graph.taps[3:] if int(made.plan.params(t).zero_point) not in range(-40, 41))  # type: ignore[union-attr]
    manifest = traces.Manifest.load(folder / "trace.json")
    entries = [
        traces.Entry(**{**{k: getattr(e, k) for k in e.__dataclass_fields__}, **({"zero_point": (0,)} if e.name == tap else {})})
        for e in manifest.tensors
    ]
    found = read(folder, network, manifest=traces.Manifest(tuple(entries)))
    assert kinds(found) == {("zero-point", tap)}
    same(found, network, "int8")


@nets
def test_codes_of_the_other_sign(tmp_path: Path, network: str) -> None:
    made = study(network)
    params = {tap: made.plan.params(tap) for tap in made.graph.taps}
    tap = NETWORKS[network][1]
    assert params[tap] is not None
    dtype = str(params[tap].dtype).removeprefix("torch.")  # type: ignore[union-attr]
    other = {"int8": "uint8", "uint8": "int8"}[dtype]
    plan = made.with_scheme("int8-power-of-two").plan
    if str(plan.params(tap).dtype) == "torch.uint8":  # type: ignore[union-attr]
        other = "int8"
    found = read(written(tmp_path, network, lane=plan, change=at(tap, lambda a: a.view(other))), network)
    assert kinds(found) == {("sign", tap)}
    assert found.alignment.ok


@nets
def test_the_other_byte_order(tmp_path: Path, network: str) -> None:
    tap = NETWORKS[network][1]
    found = read(written(tmp_path, network, lane="int16", kind="raw", change=at(tap, lambda a: a.byteswap())), network)
    assert kinds(found) == {("byte-order", tap)}
    same(found, network, "int16")


@nets
def test_nan_is_an_error_and_never_a_score(tmp_path: Path, network: str) -> None:
    tap = NETWORKS[network][0]

    def spoil(a: np.ndarray) -> np.ndarray:
        a = a.copy()
        a[0, 0, 0, 0] = np.nan
        return a

    found = read(written(tmp_path, network, change=at(tap, spoil)), network)
    assert kinds(found, "error") == {("non-finite", tap)}
    with pytest.raises(MisalignedTraceError, match="1 of"):
        next(found.run(study(network).evaluation))


def test_nan_beyond_the_frames_that_were_checked(tmp_path: Path) -> None:
    def spoil(a: np.ndarray) -> np.ndarray:
        a = a.copy()
        a[5] = np.inf
        return a

    found = read(written(tmp_path, frames=6, change=at("conv1", spoil)), check=2)
    assert found.alignment.ok
    with pytest.raises(traces.TraceError, match=r"^conv1: 12288 .*\b73728\b.*\bNaN\b"):
        next(found.run(study("resnet_small").evaluation))


@nets
@both
def test_missing_layers_are_listed_and_no_error(tmp_path: Path, network: str, lane: str) -> None:
    made = study(network)
    taps = [tap for i, tap in enumerate(made.graph.taps) if i % 3]
    found = read(written(tmp_path, network, lane=lane, taps=taps), network)
    assert found.alignment.ok
    assert found.alignment.missing == tuple(t for t in made.graph.taps if t not in taps)
    assert kinds(found) == set()
    assert re.search(rf"\b{len(found.alignment.missing)} taps\b.*: {found.alignment.missing[0]}\b", found.notes[0])
    same(found, network, lane)


@nets
def test_a_tensor_of_another_shape(tmp_path: Path, network: str) -> None:
    tap = NETWORKS[network][0]
    found = read(written(tmp_path, network, change=at(tap, lambda a: a[:, :-1])), network)
    assert kinds(found) == {("shape", tap)}
    assert not found.alignment.ok


@nets
@pytest.mark.parametrize("value", [0.0, 3.0, 1e-35])
def test_a_constant_or_tiny_tensor_is_no_perfect_match(tmp_path: Path, network: str, value: float) -> None:
    tap = NETWORKS[network][0]
    found = read(written(tmp_path, network, naming="none", change=at(tap, lambda a: np.full_like(a, value))), network)
    assert tap not in found.taps
    named = written(tmp_path / "named", network, change=at(tap, lambda a: np.full_like(a, value)))
    match = read(named, network).alignment.matches[tap]
    assert np.isnan(match.correlation)
    assert np.isnan(match.confidence)


def test_other_inputs(tmp_path: Path) -> None:
    """Noise in place of the images: nothing in the trace is like the network on these samples."""
    made = study("resnet_small")
    folder = traces.write(made, tmp_path / "x", frames=4, inputs=[torch.randn(4, 3, 32, 32)], taps=["input", "conv1"])
    found = traces.read(folder, made, progress=False)
    assert {p.kind for p in found.alignment.errors} == {"unrelated"}
    assert not found.alignment.ok


@pytest.mark.slow
@nets
@both
def test_what_a_broken_engine_does_is_not_misalignment(tmp_path: Path, network: str, lane: str) -> None:
    """Saturation, noise, a dead half, a bias that is off in some channels: the engine is to blame, not the trace."""
    random = np.random.default_rng(0)
    tap, other = NETWORKS[network]
    faults: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda a: np.clip(a, np.quantile(a, 0.3), np.quantile(a, 0.6)).astype(a.dtype),
        lambda a: (a + 2 * a.std() * random.standard_normal(a.shape)).astype(a.dtype),
        lambda a: np.concatenate([a[:, : a.shape[1] // 2], np.zeros_like(a[:, a.shape[1] // 2 :])], 1),
        lambda a: (a + (np.arange(a.shape[1]) % 3 == 0)[None, :, None, None] * a.std() * 3).astype(a.dtype),
    ]
    for number, fault in enumerate(faults):
        for where in (tap, other):
            folder = written(
                tmp_path / f"{number}{where.replace(':', '_')}", network, lane=lane, codes=False, change=at(where, fault)
            )
            found = read(folder, network)
            assert found.alignment.ok, f"{number} at {where}: {found.alignment}"
            assert {kind for kind, _ in kinds(found)} <= {"differs"}, f"{number} at {where}: {found.alignment}"


@pytest.mark.parametrize("network", ["resnet_small", "mobilenet_v2_lite", "mobilenet_v2_hostile"])
@pytest.mark.parametrize("lane", ["float", "int16", "int8"])
def test_content_alone_finds_every_tap(tmp_path: Path, network: str, lane: str) -> None:
    made = study(network)
    found = read(written(tmp_path, network, lane=lane, naming="none", kind="npz"), network)
    assert {m.tensor: tap for tap, m in found.alignment.matches.items()} == {
        f"tensor_{i:04}": tap for i, tap in enumerate(made.graph.taps)
    }
    same(found, network, lane)


@pytest.mark.parametrize(("network", "least"), [("resnet_small", 31), ("mobilenet_v2_lite", 66), ("mobilenet_v2_hostile", 6)])
def test_content_of_another_calibration_is_right_or_left_out(tmp_path: Path, network: str, least: int) -> None:
    """A device whose ranges the kit does not know; on the hostile network it destroys the deep layers."""
    made = study(network)
    plan = made.with_scheme("int8-power-of-two").plan
    found = read(written(tmp_path, network, lane=plan, naming="none", kind="npz", codes=False, layout="NHWC", frames=4), network)
    right = [tap for tap, m in found.alignment.matches.items() if made.graph.taps[int(m.tensor[-4:])] == tap]
    assert len(right) == len(found.alignment.matches), "a wrong match is worse than none"
    assert len(right) >= least


def test_a_tensor_without_a_grid_of_its_own_is_left_out(tmp_path: Path) -> None:
    """What a maximum pool makes is no tap; by name or by content, it is not taken for one."""
    made = study("resnet_small")
    inputs = next(iter(made.evaluation))[0][:4]
    got: dict[str, np.ndarray] = {}
    run_lanes(made.graph, [Lane("x")], (inputs,), observe=lambda s, v: got.update({s.name: v["x"].contiguous().numpy().copy()}))
    pooled = torch.nn.functional.max_pool2d(torch.from_numpy(got["conv1"]), 3, 2, 1).numpy()
    folder = tmp_path / "x"
    folder.mkdir()
    np.savez(folder / "a.npz", conv1=got["conv1"], maxpool=pooled, something=pooled, again=got["conv1"])
    found = traces.read(folder, made, progress=False)
    assert found.taps == ("conv1",)
    assert {(p.kind, p.tensor) for p in found.alignment.problems} == {
        ("no-tap", "maxpool"),
        ("no-tap", "something"),
        ("duplicate", "again"),
    }


def test_result_objects(tmp_path: Path) -> None:
    import json

    found = read(written(tmp_path, change=at("conv1", lambda a: np.maximum(-a, 0) * 3 + 1)), frames=3)
    alignment = found.alignment
    assert len(alignment.table()) == len(alignment.matches)
    json.dumps(found.to_dict(), allow_nan=False)
    assert "<table" in found._repr_html_()
    assert repr(found).startswith("TraceLane(trace: 3 frames")
    assert "conv1" in str(alignment)


def test_correlations_against_numpy() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 5, 40))
    assert correlation(x, y) == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1])
    assert correlation(3 * x + 7, x) == pytest.approx(1.0)
    assert np.isnan(correlation(np.ones(5), np.arange(5)))
    assert np.isnan(correlation(np.full(5, np.nan), np.arange(5)))
    expected = np.array([[np.corrcoef(a, b)[0, 1] for b in y - y.mean(0)] for a in x - x.mean(0)])
    centered = frame_correlations(x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True))
    assert centered.shape == expected.shape
    order = [3, 1, 0, 4, 2]
    assert frame_order(frame_correlations(x[order], x))[0] == order
    assert frame_order(frame_correlations(x, x)) == ([0, 1, 2, 3, 4], 0.0)
    assert frame_order(frame_correlations(x, y))[1] == 0.0
    maps = random.standard_normal((4, 6, 10))
    chosen = [5, 0, 3, 1, 2, 4]
    found = channel_order(maps[:, chosen].reshape(4, -1), maps.reshape(4, -1), 6)
    assert found is not None
    assert [chosen[i] for i in found[0]] == list(range(6))
    assert found[1] == pytest.approx(1.0)
    noise = channel_order(random.standard_normal((4, 60)), maps.reshape(4, -1), 6)
    assert noise is not None
    assert noise[1] < 0.5
