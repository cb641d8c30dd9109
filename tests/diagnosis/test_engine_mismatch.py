"""Faults planted into an engine written in plain torch: the first layer that leaves the simulation, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import READS, Mixed, fake_quantized, minmax_study, plain_layer, quantized_bias
from torch import Tensor
from torch.nn import functional as F

import qkit
from qkit.diagnosis.engine_parting import causes, departure, shares, side_by_side
from qkit.engines.lane import EngineBatch, EngineTensor
from qkit.errors import DataError
from qkit.execution.loading import batches
from qkit.quant.plan import Plan

Layer = Callable[[Mixed, str, dict[str, Tensor], Plan], Tensor]


class Engine:
    """`Mixed` in plain torch by the plan's numbers, one layer done otherwise; its other taps follow from that."""

    name, bits, notes = "planted", 8, ()

    def __init__(
        self, study: qkit.Study, plan: Plan, tap: str = "", layer: Layer | None = None, hidden: tuple[str, ...] = ()
    ) -> None:
        self.model, self.plan, self.tap, self.layer, self.hidden = study.model, plan, tap, layer, hidden

    @torch.no_grad()
    def run(self, loader: Iterable[Any], *, limit: int | None = None) -> Iterator[EngineBatch]:
        for batch in batches(loader, limit):
            values = {"x": batch.inputs[0]}
            for tap in READS:
                make = self.layer if tap == self.tap and self.layer is not None else plain_layer
                values[tap] = make(self.model, tap, values, self.plan)
            taps = {tap: EngineTensor(values[tap]) for tap in READS if tap not in self.hidden}
            yield EngineBatch(batch, taps, values["classify"])


@pytest.fixture(scope="module")
def study() -> qkit.Study:
    return minmax_study()


def conv(
    model: Mixed, tap: str, values: dict[str, Tensor], plan: Plan, change: Callable[..., Tensor] | None = None, **replaced: Any
) -> Tensor:
    """`side` or `project` written out, with what a test replaces."""
    layer = getattr(model, tap)
    source = READS[tap][0]
    weight = replaced.get("weight", fake_quantized(layer.weight, plan, f"{tap}.weight"))
    bias = replaced.get("bias", quantized_bias(layer.bias, plan, source, tap))
    y = F.conv2d(values[source], weight, bias, layer.stride, layer.padding, 1, layer.groups)
    if change is not None:
        y = change(y)
    return replaced.get("rounded", lambda t: fake_quantized(t, plan, tap))(y)


#: By name: the tap, the layer there, the fault's kind, and what tells it from others of the kind.
FAULTS: dict[str, tuple[str, Layer, str, str]] = {
    "dropped bias": ("side", lambda *a: conv(*a, bias=None), "dropped-bias", "bias"),
    "float": (
        "side",
        lambda m, t, v, p: conv(m, t, v, p, weight=m.side.weight, bias=m.side.bias, rounded=lambda y: y),
        "in-float",
        "weights",
    ),
    "wrong scale": ("side", lambda m, t, v, p: 1.7 * plain_layer(m, t, v, p), "scale", r"\b1\.7\b"),
    "swapped channels": ("side", lambda m, t, v, p: plain_layer(m, t, v, p)[:, [1, 0, 3, 2]], "channel-order", r"^(?!.*input)"),
    "layout": (
        "project",
        lambda m, t, v, p: plain_layer(m, t, v, p).permute(0, 2, 3, 1).reshape(v["stem"].shape),
        "layout",
        r"^(?!.*NCHW).*NHWC",
    ),
    "no activation": (
        ":add",
        lambda m, t, v, p: fake_quantized(v["project"] + v["stem"], p, t),
        "no-activation",
        "activation",
    ),
}


def test_a_right_engine_has_no_departure(study: qkit.Study) -> None:
    engine = Engine(study, study.plan)
    found = shares(study, engine, study.plan)
    assert list(found) == list(READS)
    assert min(found.values()) >= 0.999
    assert departure(study, engine, study.plan) is None
    listed, gain = causes(study, engine, study.plan)
    assert listed == []
    assert gain is not None
    assert abs(gain.value) <= 0.05


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named(study: qkit.Study, name: str) -> None:
    tap, layer, kind, mark = FAULTS[name]
    plan = study.plan
    if name == "no activation":
        # a grid that could hold what the activation should have clamped
        plan = plan.with_range(":add", -10.0, 10.0)
    engine = Engine(study.with_plan(plan), plan, tap, layer)
    found = departure(study, engine, plan)
    assert found is not None
    assert found.tap == tap
    assert found.share < 0.999
    assert found.kind == kind
    assert found.fault is not None
    assert re.search(mark, found.fault)
    assert found.explained > 0.99
    (cause,), _ = causes(study, engine, plan)
    assert (cause.kind, cause.tensor) == ("engine-mismatch", tap)
    assert found.fault in cause.evidence
    assert f"{found.explained:.1%}" in cause.evidence
    assert cause.remedy.kind == "fix-engine"
    assert not cause.remedy.changes


def test_accumulators(study: qkit.Study) -> None:
    plan = study.plan
    scale = (plan.params(":add").scale.double() * plan.params("side.weight").scale.double()).view(1, -1, 1, 1)
    limit = 2.0**15

    def saturate(y: Tensor) -> Tensor:
        return ((y.double() / scale).clamp(-limit, limit - 1) * scale).float()

    def wrap(y: Tensor) -> Tensor:
        codes = torch.round(y.double() / scale)
        return (((codes + limit) % (2 * limit) - limit) * scale).float()

    source = next(iter(Engine(study, plan).run(study.evaluation))).taps[":add"].values
    with torch.no_grad():
        sums = conv(study.model, "side", {":add": source}, plan, rounded=lambda y: y)
    assert float((sums / scale).abs().max()) > limit, "there is something to overflow"
    for change, mark in ((saturate, r"\b16\b.*saturat"), (wrap, r"\b16\b.*wrap")):
        engine = Engine(study, plan, "side", lambda *a, change=change: conv(*a, change=change))
        found = departure(study, engine, plan)
        assert found is not None
        assert found.kind == "accumulator"
        assert found.fault is not None
        assert re.search(mark, found.fault)


def test_a_fault_nobody_knows_is_said_and_not_named(study: qkit.Study) -> None:
    def odd(m: Mixed, t: str, v: dict[str, Tensor], p: Plan) -> Tensor:
        return fake_quantized(plain_layer(m, t, v, p).sin() * 3.0, p, t)

    found = departure(study, Engine(study, study.plan, "side", odd), study.plan)
    assert found is not None
    assert (found.tap, found.kind, found.fault) == ("side", None, None)
    (cause,), _ = causes(study, Engine(study, study.plan, "side", odd), study.plan)
    assert re.findall(r"[\d.]+ ?%", cause.evidence) == [f"{found.share:.1%}"], "no share is explained"


def test_taps_that_the_engine_fuses_away_are_bridged(study: qkit.Study) -> None:
    hidden = ("stem", ":cat", "average")
    found = shares(study, Engine(study, study.plan, hidden=hidden), study.plan)
    assert list(found) == [tap for tap in READS if tap not in hidden]
    assert min(found.values()) >= 0.99


def test_only_the_first_layer_is_blamed(study: qkit.Study) -> None:
    tap, layer, *_ = FAULTS["dropped bias"]
    found = shares(study, Engine(study, study.plan, tap, layer), study.plan)
    # what lies behind computes rightly on what it is given
    assert [name for name, share in found.items() if share < 0.999] == [tap]


def test_a_lane_of_other_names_or_shapes_is_an_error_not_a_score(study: qkit.Study) -> None:
    engine = Engine(study, study.plan, hidden=tuple(READS))
    with pytest.raises(DataError, match=r"\btaps\b"):
        shares(study, engine, study.plan)
    flat = Engine(study, study.plan, "average", lambda m, t, v, p: plain_layer(m, t, v, p).flatten(1))
    flat.hidden = ("classify",)
    flat.run = lambda loader, limit=None: (  # type: ignore[method-assign]
        EngineBatch(b, {"stem": EngineTensor(b.inputs[0])}) for b in batches(loader, limit)
    )
    with pytest.raises(DataError, match=r"\bstem\b.*align"):
        shares(study, flat, study.plan)


def test_the_diagnosis_says_that_it_is_the_engine(study: qkit.Study) -> None:
    """Sixteen simulated bits are fine, the engine's are not: it is not quantization."""
    wide = study.lane("int16")

    def drops(m: Mixed, t: str, v: dict[str, Tensor], p: Plan) -> Tensor:
        return conv(m, t, v, p, weight=-fake_quantized(m.side.weight, p, "side.weight"), bias=None)

    sound, broken = Engine(study, wide), Engine(study, wide, "side", drops)
    for engine in (sound, broken):
        engine.name, engine.bits, engine.notes = "planted int16", 16, ("a note",)
    found = study.diagnose(engine=sound, progress=False)
    assert found.verdict.name in ("no-degradation", "inconclusive")
    assert not [cause for cause in found.causes if cause.kind == "engine-mismatch"]
    assert "a note" in found.remarks
    found = study.diagnose(engine=[broken], progress=False)
    assert found.verdict.name == "not-quantization"
    assert (found.causes[0].kind, found.causes[0].layer) == ("engine-mismatch", "side")
    assert found.causes[0].gain is not None
    assert found.causes[0].gain.low > 0
    assert re.match(r"planted int16\b.*\bside\b", found.verdict.reason)
    scores = side_by_side(study, broken)
    assert list(scores.lanes) == ["float", "simulated int16", "planted int16"]
    assert scores["planted int16"].value < scores["simulated int16"].value


def test_a_trace_that_is_not_aligned_is_said_and_not_compared(study: qkit.Study, tmp_path: Path) -> None:
    from qkit.engines import traces

    traces.write(study, tmp_path / "right", lane="int16", frames=8)
    found = study.diagnose(engine=traces.read(tmp_path / "right", study, progress=False), progress=False)
    assert not [cause for cause in (*found.causes, *found.findings) if cause.kind in ("engine-mismatch", "trace-alignment")]

    traces.write(study, tmp_path / "wrong", lane="int16", frames=8)
    for file in sorted((tmp_path / "wrong").rglob("*side*.npy")):
        np.save(file, np.load(file)[:, ::-1])  # channels in another order: not what the network has there
    lane = traces.read(tmp_path / "wrong", study, mend=False, progress=False)
    assert not lane.alignment.ok
    found = study.diagnose(engine=lane, progress=False)
    assert "trace-alignment" in [cause.kind for cause in found.findings]
    assert not [cause for cause in found.causes if cause.kind == "engine-mismatch"]
    assert any(lane.name in remark for remark in found.remarks)
    assert found.verdict == study.diagnose(progress=False).verdict
