"""Capture: every figure against naive float64 arithmetic on plain torch's tensors; kept tensors; what goes wrong."""

from __future__ import annotations

import json
import math
import re
import weakref
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from small_networks import READS, fake_quantized, mixed_network, plain_layer, plain_run
from torch import Tensor, nn

from qkit import DataError, GraphError, QkitError
from qkit.execution.capture import Capture, Capturing, capture
from qkit.execution.observing import observe
from qkit.graph import Graph, build
from qkit.quant.calibration import make_plan
from qkit.quant.plan import FLOAT, Plan
from qkit.quant.schemes import PRESETS

SCHEMES = ["int8", "int8-per-tensor", "int8-power-of-two", "int8-symmetric", "int16"]


def images(*sizes: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.randn(n, 3, 16, 16, generator=random) * 1.3 for n in sizes]


@cache
def network() -> tuple[nn.Module, Graph, dict[str, Plan]]:
    """The plans are fitted to tamer images than those captured, so that elements are clipped."""
    model = mixed_network()
    graph = build(model, images(4)[0])
    seen = observe(graph, [x * 0.6 for x in images(8, 8)], progress=False)
    return model, graph, {name: make_plan(graph, seen, PRESETS[name], method="minmax") for name in SCHEMES}


@cache
def captured() -> Capture:
    _, graph, plans = network()
    return capture(graph, images(4, 7, 1), plans, limit=None, progress=False)


@cache
@torch.no_grad()
def tensors(scheme: str) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """By tap: float, this lane's, this layer's alone on float inputs, and this lane's before its last rounding."""
    model, _, plans = network()
    plan = plans[scheme]
    parts: dict[str, list[tuple[Tensor, ...]]] = {tap: [] for tap in READS}
    for x in images(4, 7, 1):
        floats, lane = plain_run(model, x, FLOAT), plain_run(model, x, plan)
        for tap in READS:
            local = plain_layer(model, tap, {**floats, "x": x}, plan)
            unrounded = plain_layer(model, tap, {**lane, "x": x}, plan.without([tap]))
            parts[tap].append((floats[tap], lane[tap], local, unrounded))
    return {tap: tuple(torch.cat(column).double() for column in zip(*rows, strict=True)) for tap, rows in parts.items()}  # type: ignore[misc]


def db(signal: float, noise: float) -> float:
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("tap", list(READS))
def test_every_figure_of_the_table(scheme: str, tap: str) -> None:
    f, q, local, raw = tensors(scheme)[tap]
    params = network()[2][scheme].grids[tap].params
    row = captured().table().loc[tap]
    e = q - f
    # float32 sums in another order carry a few values across a tie, which moves an error by up to a step
    close = {"rel": 2e-2} if scheme == "int16" else {"rel": 5e-3}
    assert row["float", "min"] == pytest.approx(float(f.min()), rel=1e-5)
    assert row["float", "max"] == pytest.approx(float(f.max()), rel=1e-5)
    assert row["float", "rms"] == pytest.approx(float(f.square().mean().sqrt()), rel=1e-5)
    assert row[scheme, "scale"] == pytest.approx(float(params.scale))
    assert row[scheme, "zero point"] == int(params.zero_point)
    assert row[scheme, "sqnr"] == pytest.approx(db(float(f.square().sum()), float(e.square().sum())), abs=0.05)
    assert row[scheme, "local sqnr"] == pytest.approx(db(float(f.square().sum()), float((local - f).square().sum())), abs=0.05)
    assert row[scheme, "cosine"] == pytest.approx(float((f * q).sum() / (f.norm() * q.norm())), abs=1e-6)
    assert row[scheme, "mean error"] == pytest.approx(float(e.abs().mean()), **close)
    assert row[scheme, "max error"] == pytest.approx(float(e.abs().max()), abs=1.01 * float(params.scale))
    span = float(params.hi - params.lo)
    assert row[scheme, "used"] == pytest.approx(float(q.max() - q.min()) / span, abs=1e-4)
    own = q - raw
    beyond = (raw < float(params.lo) - 0.5 * float(params.scale)) | (raw > float(params.hi) + 0.5 * float(params.scale))
    assert row[scheme, "clipped"] == pytest.approx(float(beyond.double().mean()), abs=2e-3)
    clipping = float((own.square() * beyond).mean())
    total = float(own.square().mean())
    assert row[scheme, "clipping"] == pytest.approx(clipping, rel=2e-2, abs=1e-4 * total)
    assert row[scheme, "rounding"] + row[scheme, "clipping"] == pytest.approx(total, rel=2e-2)


def test_something_is_clipped_and_something_is_not() -> None:
    clipped = captured().table()["int8"]["clipped"]
    assert clipped.max() > 1e-3
    assert (clipped >= 0).all()


@pytest.mark.parametrize("scheme", ["int8", "int16"])
@pytest.mark.parametrize("tap", ["stem", "depthwise", ":cat", "classify"])
def test_every_figure_per_channel(scheme: str, tap: str) -> None:
    f, q, local, _ = (t.movedim(1, 0).flatten(1) for t in tensors(scheme)[tap])
    frame = captured().per_channel(tap)
    assert len(frame) == len(f)
    np.testing.assert_allclose(frame["float", "rms"], f.square().mean(1).sqrt(), rtol=1e-5)
    np.testing.assert_allclose(frame["float", "min"], f.amin(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(frame["float", "max"], f.amax(1), rtol=1e-4, atol=1e-5)
    scale = network()[2][scheme].grids[tap].params.scale.item()
    np.testing.assert_allclose(frame[scheme, "mean error"], (q - f).abs().mean(1), rtol=0.05, atol=scale * 0.01)
    np.testing.assert_allclose(frame[scheme, "max error"], (q - f).abs().amax(1), atol=1.01 * scale)
    expected = [db(float(a.square().sum()), float((b - a).square().sum())) for a, b in zip(f, q, strict=True)]
    np.testing.assert_allclose(frame[scheme, "sqnr"], expected, atol=0.2)
    expected = [db(float(a.square().sum()), float((b - a).square().sum())) for a, b in zip(f, local, strict=True)]
    np.testing.assert_allclose(frame[scheme, "local sqnr"], expected, atol=0.2)


@torch.no_grad()
def test_sixteen_bits_keep_their_digits() -> None:
    """Errors near 90 dB drown in float32's rounding if they are taken from differences of squares."""
    model, graph, plans = network()
    plan, x = plans["int16"], images(8)[0] * 0.4
    rows = capture(graph, [x], {"int16": plan}, progress=False).table()["int16"]["sqnr"]
    f, q = plain_run(model, x, FLOAT)["input"].double(), plain_run(model, x, plan)["input"].double()
    assert rows["input"] > 80
    assert rows["input"] == pytest.approx(db(float(f.square().sum()), float((q - f).square().sum())), abs=1e-3)
    f, q = plain_run(model, x, FLOAT)["stem"].double(), plain_run(model, x, plan)["stem"].double()
    assert rows["stem"] == pytest.approx(db(float(f.square().sum()), float((q - f).square().sum())), abs=0.1)


@pytest.mark.parametrize("scheme", ["int8", "int8-per-tensor"])
def test_weights(scheme: str) -> None:
    _, graph, plans = network()
    frame = captured().weights()
    assert list(frame.index) == ["stem.weight", "depthwise.weight", "project.weight", "side.weight", "classify.weight"]
    for name in frame.index:
        w = graph.weights[name].contiguous()
        noise = (fake_quantized(w, plans[scheme], name) - w).double()
        assert frame.loc[name, (scheme, "sqnr")] == pytest.approx(
            db(float(w.double().square().sum()), float(noise.square().sum()))
        )
        assert frame.loc[name, (scheme, "scale")] == pytest.approx(float(plans[scheme].grids[name].params.scale.max()))
        peaks = w.flatten(1).abs().amax(1)
        assert frame.loc[name, ("float", "channel spread")] == pytest.approx(float(peaks.max() / peaks.min()))


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [("int8", torch.int8), ("int8-power-of-two", torch.uint8), ("int16", torch.int16)],
)
def test_codes_are_real_integers_and_the_values_lie_on_them(scheme: str, dtype: torch.dtype) -> None:
    tap = captured()["stem"]
    lane = tap[scheme]
    assert lane.codes is not None
    assert lane.codes.dtype == dtype
    assert lane.scale is not None
    assert lane.zero_point is not None
    values = (lane.codes.long() - int(lane.zero_point)).double() * lane.scale.double()
    torch.testing.assert_close(values.float(), lane.values, rtol=1e-6, atol=0)
    assert tap.float.codes is None
    weight = captured()["stem.weight"][scheme]
    assert weight.codes is not None
    assert weight.codes.shape == weight.values.shape == (8, 3, 3, 3)


def test_unsigned_sixteen_bits() -> None:
    _, graph, _ = network()
    scheme = PRESETS["int8-power-of-two"].at_bits(16, "wide")
    plan = make_plan(graph, observe(graph, images(4), progress=False), scheme)
    assert capture(graph, images(2), {"wide": plan}, progress=False)["stem"]["wide"].codes.dtype == torch.uint16  # type: ignore[union-attr]


def test_tensors_that_were_not_kept_are_the_first_batch_again() -> None:
    model, _, plans = network()
    tap = captured()["depthwise"]
    plain = plain_run(model, images(4)[0], plans["int8"])["depthwise"]
    assert tap.float.values.shape == (4, 8, 16, 16)
    apart = ((tap.int8.values - plain) / plans["int8"].grids["depthwise"].params.scale).round().abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 1e-3


def test_kept_tensors_are_all_batches_in_memory_or_in_files(tmp_path: Path) -> None:
    _, graph, plans = network()
    two = {name: plans[name] for name in ("int8", "int16")}
    batches = images(4, 7, 1)
    in_memory = capture(graph, batches, two, limit=None, keep=["stem", ":add"], progress=False)
    in_files = capture(
        graph, batches, two, limit=None, keep=["stem", ":add"], folder=tmp_path / "kept", memory_budget=0, progress=False
    )
    budget = in_memory["stem"].float.values[:4].nbytes * 2
    mixed = capture(graph, batches, two, limit=None, keep="all", folder=tmp_path / "mixed", memory_budget=budget, progress=False)
    for tap in ("stem", ":add"):
        for lane in ("float", "int8", "int16"):
            expected = in_memory[tap][lane]
            assert expected.values.shape[0] == 12
            for other in (in_files, mixed):
                assert torch.equal(other[tap][lane].values, expected.values)
            if expected.codes is not None:
                assert expected.codes.dtype == in_files[tap][lane].codes.dtype  # type: ignore[union-attr]
                assert torch.equal(expected.codes, in_files[tap][lane].codes)  # type: ignore[arg-type]
    files = sorted((tmp_path / "kept").glob("*.safetensors"))
    assert len(files) == 2 * 3
    with safe_open(files[0], framework="pt") as stored:
        assert stored.metadata()["tap"] in {"stem", ":add"}
    with pytest.raises(QkitError, match=r"\bstem\b.*folder="):
        capture(graph, batches, two, limit=None, keep=["stem"], memory_budget=0, progress=False)


def test_a_closed_capture_has_its_figures_and_no_tensors(tmp_path: Path) -> None:
    _, graph, plans = network()
    with capture(graph, images(4, 7, 1), plans, limit=2, keep=["stem"], folder=tmp_path, memory_budget=0, progress=False) as made:
        table = made.table()
        kept = weakref.ref(made._first[0])  # type: ignore[index]
    files = list(tmp_path.iterdir())
    assert made.closed
    assert kept() is None
    pd.testing.assert_frame_equal(made.table(), table)
    for tap in ("stem", "project", "stem.weight"):
        with pytest.raises(QkitError, match="closed"):
            made[tap]
    with pytest.raises(QkitError, match="closed"):
        made.run((images(1)[0],), 4)
    made.close()
    assert list(tmp_path.iterdir()) == files, "they are the user's"


def test_taps_with_like_names_do_not_share_files(tmp_path: Path) -> None:
    model = nn.Sequential()
    model.add_module("a_b", nn.Sequential(nn.Conv2d(3, 2, 1)))
    model.add_module("a", nn.Sequential())
    model.a.add_module("b", nn.Conv2d(2, 2, 1))
    x = torch.randn(2, 3, 4, 4)
    graph = build(model.eval(), x)
    plan = make_plan(graph, observe(graph, [x], progress=False), PRESETS["int8"])
    found = capture(graph, [x, x * 2], {"int8": plan}, limit=None, keep="all", folder=tmp_path, memory_budget=0, progress=False)
    assert len(list(tmp_path.iterdir())) == 2 * len(graph.taps)
    for tap in graph.taps:
        assert found[tap].float.values.shape[0] == 4
    with torch.no_grad():
        torch.testing.assert_close(found["a.b"].float.values[:2], model(x))


# What goes wrong


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0, 0, 0), (1, 2, 15, 15), (3, 1, 7, 8)])
def test_one_element_that_is_not_finite_is_refused_by_name(bad: float, place: tuple[int, ...]) -> None:
    _, graph, plans = network()
    x = images(4)[0].clone()
    x[place] = bad
    with pytest.raises(DataError, match=r"^input\b.*\bfloat\b.*NaN"):
        capture(graph, [x], {"int8": plans["int8"]}, progress=False)


@pytest.mark.parametrize("act", [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.Hardtanh()])
def test_nan_that_arises_inside_is_refused_by_name(act: nn.Module) -> None:
    """Clamps and rounding turn NaN into ordinary numbers in some kernels: it must not come to that."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 1)
            self.act = act

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.conv(torch.sqrt(x)))

    graph = build(Root().eval(), torch.rand(2, 1, 5, 5))
    plan = make_plan(graph, observe(graph, [torch.rand(2, 1, 5, 5)], progress=False), PRESETS["int8"])
    x = torch.rand(2, 1, 5, 5)
    x[1, 0, 4, 4] = -1.0
    with pytest.raises(DataError, match=r"^:sqrt\b.*\bfloat\b.*NaN"):
        capture(graph, [x], {"int8": plan}, progress=False)


def test_huge_finite_values_are_no_false_alarm() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    x = torch.full((1, 1, 4, 4), 1e25)
    graph = build(model, x)
    plan = make_plan(graph, observe(graph, [x], progress=False), PRESETS["int8"])
    found = capture(graph, [x], {"int8": plan}, progress=False)
    assert found["0"].float.values.max() == 1e25


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3, 16, 16, dtype=torch.float64), r"input\b.*torch\.float64.*torch\.float32"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"input\b.*torch\.uint8.*torch\.float32"),
        (torch.zeros(2, 4, 16, 16), r"input\b.*\(2, 4, 16, 16\)"),
        (torch.zeros(3, 16, 16), r"input\b.*\(3, 16, 16\)"),
        (torch.zeros(0, 3, 16, 16), r"input\b.*empty.*\(0, 3, 16, 16\)"),
    ],
)
def test_batches_that_do_not_fit(batch: Tensor, message: str) -> None:
    _, graph, plans = network()
    with pytest.raises(DataError, match=message):
        capture(graph, [batch], {"int8": plans["int8"]}, progress=False)


def test_an_empty_loader_and_names_that_are_not_there() -> None:
    _, graph, plans = network()
    with pytest.raises(DataError, match="batch"):
        capture(graph, [], plans, progress=False)
    with pytest.raises(GraphError, match="'stems'"):
        capture(graph, images(1), plans, keep=["stems"], progress=False)
    with pytest.raises(QkitError, match="'float'"):
        capture(graph, images(1), {"float": plans["int8"]}, progress=False)
    with pytest.raises(QkitError, match="'int4'"):
        captured()["stem"]["int4"]
    with pytest.raises(AttributeError, match="int4"):
        _ = captured()["stem"].int4
    with pytest.raises(GraphError, match="'nothing'"):
        captured().per_channel("nothing")


class Interrupted:
    """A loader with a Ctrl-C after so many batches."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __iter__(self) -> Iterator[Tensor]:
        yield from images(*[2] * self.after)
        raise KeyboardInterrupt


@pytest.mark.parametrize("budget", [1 << 30, 0], ids=["memory", "files"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupt_goes_up_and_the_pass_goes_on_from_there(after: int, budget: int, tmp_path: Path) -> None:
    _, graph, plans = network()
    work = Capturing(graph, {"int8": plans["int8"]}, keep=["stem"], folder=tmp_path, memory_budget=budget)
    with pytest.raises(KeyboardInterrupt):
        work.run(Interrupted(after), limit=None, progress=False)
    found = work.run(images(2, 2, 2), limit=None, progress=False)
    whole = capture(graph, images(2, 2, 2), {"int8": plans["int8"]}, limit=None, keep=["stem"], progress=False)
    assert found.samples == 6
    assert found.table().equals(whole.table())
    assert torch.equal(found["stem"].int8.codes, whole["stem"].int8.codes)


@pytest.mark.parametrize("budget", [1 << 30, 0], ids=["memory", "files"])
def test_an_interrupt_within_a_batch_counts_that_batch_once(monkeypatch: pytest.MonkeyPatch, budget: int, tmp_path: Path) -> None:
    _, graph, plans = network()
    lone = {"int8": plans["int8"]}
    from qkit.execution import tensor_errors as module

    calls = 0
    plain = module.measure

    def third(*args):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == len(READS) + 3:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr("qkit.execution.capture.measure", third)
    work = Capturing(graph, lone, keep="all", folder=tmp_path, memory_budget=budget)
    with pytest.raises(KeyboardInterrupt):
        work.run(images(2, 3), limit=None, progress=False)
    found = work.run(images(2, 3), limit=None, progress=False)
    monkeypatch.undo()
    whole = capture(graph, images(2, 3), lone, limit=None, keep="all", progress=False)
    assert found.table().equals(whole.table())
    for tap in graph.taps:
        assert torch.equal(found[tap].float.values, whole[tap].float.values)
        assert torch.equal(found[tap].int8.codes, whole[tap].int8.codes)


def test_a_lane_that_does_not_differ_has_no_error() -> None:
    _, graph, plans = network()
    weights = plans["int8"].only(["classify.weight"])
    table = capture(graph, images(2), {"late": weights}, progress=False).table()
    assert (table["late"]["sqnr"][:-1] == np.inf).all()
    assert (table["late"]["local sqnr"][:-1] == np.inf).all()
    assert np.isfinite(table["late"]["sqnr"].iloc[-1])
    assert table["late"]["scale"].isna().all()


def test_results_are_plain_data_and_show_themselves() -> None:
    text = json.dumps(captured().to_dict(), allow_nan=False)
    back = json.loads(text)
    assert list(back["taps"]) == list(READS)
    assert back["taps"]["stem"]["int8"]["sqnr"] == captured().table().loc["stem", ("int8", "sqnr")]
    assert re.match(rf"Capture\(9\b.*float, {', '.join(SCHEMES)},.*\b12\b", repr(captured()))
    assert captured()._repr_html_().startswith("<table")
    assert re.match(r"TapCapture\(stem\b.*float, int8", repr(captured()["stem"]))
    assert "torch.int8" in repr(captured()["stem"].int8)
