"""Faults of engines against an engine in plain torch: which is named, what rounding alone is not, and what belongs to no fault."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from small_networks import READS, Mixed, fake_quantized, minmax_study, mixed_network, plain_layer, quantized_bias
from torch import Tensor
from torch.nn import functional as F

import qkit
from qkit.diagnosis.engine_parting import causes, departure_of
from qkit.engines.compare import compare
from qkit.engines.lane import EngineBatch, EngineTensor
from qkit.engines.tap_comparison import Comparison
from qkit.errors import DataError
from qkit.execution.loading import batches
from qkit.quant.grids import QuantParams
from qkit.quant.plan import Plan

Values = dict[str, Tensor]
Layer = Callable[[Mixed, Values, Plan], Tensor]


class Engine:
    """`Mixed` in plain torch by the plan's numbers, some layers done otherwise."""

    name, bits, notes = "plain", 8, ()

    def __init__(
        self,
        study: qkit.Study,
        layers: dict[str, Layer],
        model: Mixed | None = None,
        params: dict[str, QuantParams] | None = None,
    ) -> None:
        self.study, self.layers, self.params = study, layers, params or {}
        self.model = study.model if model is None else model

    @torch.no_grad()
    def run(self, loader: Iterable[Any], *, limit: int | None = None) -> Iterator[EngineBatch]:
        plan = self.study.plan
        for batch in batches(loader, limit):
            values = {"x": batch.inputs[0]}
            for tap in READS:
                layer = self.layers.get(tap)
                values[tap] = plain_layer(self.model, tap, values, plan) if layer is None else layer(self.model, values, plan)
            yield EngineBatch(batch, {t: EngineTensor(values[t], params=self.params.get(t)) for t in READS}, values["classify"])


@pytest.fixture(scope="module")
def study() -> qkit.Study:
    return minmax_study()


def compared(study: qkit.Study, **layers: Layer) -> Comparison:
    return compare(study, Engine(study, {tap.replace("_", ":"): layer for tap, layer in layers.items()}), progress=False)


def side(model: Mixed, values: Values, plan: Plan, x: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The plain convolution `side`, not yet rounded."""
    bias = quantized_bias(model.side.bias, plan, ":add", "side") if bias is None else bias
    weight = fake_quantized(model.side.weight, plan, "side.weight")
    return F.conv2d(values[":add"] if x is None else x, weight, bias, model.side.stride, model.side.padding)


def shifted(factor: float) -> Layer:
    return lambda m, v, p: fake_quantized(factor * side(m, v, p), p, "side")


def as_last(m: Mixed, v: Values, p: Plan) -> Tensor:
    y = plain_layer(m, "side", v, p)
    n, c, h, w = y.shape
    return y.reshape(n, h, w, c).permute(0, 3, 1, 2)


def flattened_last(m: Mixed, v: Values, p: Plan) -> Tensor:
    moved = v["average"].permute(0, 2, 3, 1).reshape(v["average"].shape)
    return plain_layer(m, "classify", v | {"average": moved}, p)


def one_input_doubled(m: Mixed, v: Values, p: Plan) -> Tensor:
    return fake_quantized(F.relu(v["project"] + 2.0 * v["stem"]), p, ":add")


def narrow_accumulator(bits: int) -> Layer:
    def layer(m: Mixed, v: Values, p: Plan) -> Tensor:
        scale = (p.params(":add").scale.double() * p.params("side.weight").scale.double()).view(1, -1, 1, 1)
        held = (side(m, v, p).double() / scale).clamp(-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) * scale
        return fake_quantized(held.float(), p, "side")

    return layer


FAULTS: dict[str, tuple[str, Layer, str, str]] = {
    "shift": ("side", shifted(0.5), "scale", "constant factor of 0.5"),
    "shift that clips": ("side", shifted(4.0), "scale", "constant factor of 4"),
    "read at another scale": ("side", lambda m, v, p: 0.7 * plain_layer(m, "side", v, p), "scale", "right codes at another scale"),
    "one input of an addition": ("_add", one_input_doubled, "scale", "reads its input stem at a scale that is off by a constant factor of 2"),
    "channels first read as last": ("side", as_last, "layout", "NCHW read as NHWC"),
    "flattened channels last": ("classify", flattened_last, "layout", "flattens its input with the channels last"),
    "input reversed": ("side", lambda m, v, p: fake_quantized(side(m, v, p, v[":add"].flip(1)), p, "side"), "channel-order", "in reverse"),
    "samples": ("side", lambda m, v, p: plain_layer(m, "side", v, p).roll(3, 0), "sample-order", "samples in another order"),
    "not rounded": ("side", side, "in-float", "does not round its output"),
    "float weights": (
        "side",
        lambda m, v, p: fake_quantized(m.side(v[":add"]), p, "side"),
        "in-float",
        "float weights, and rounds its output",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_at_its_layer(study: qkit.Study, name: str) -> None:
    tap, layer, kind, words = FAULTS[name]
    found = compared(study, **{tap: layer})
    tap = tap.replace("_", ":")
    assert found.first == tap
    assert found.faults[tap].kind == kind
    assert words in found.faults[tap].words
    assert found.reasons[tap] == f"the engine {found.faults[tap].words}"
    assert [t for t in found.taps if found.differs(t)] == [tap]
    left = departure_of(study, found)
    assert left is not None
    assert (left.tap, left.kind) == (tap, kind)


@pytest.mark.parametrize("bits", [15, 13, 11])
def test_any_width_of_an_accumulator_is_tried(study: qkit.Study, bits: int) -> None:
    found = compared(study, side=narrow_accumulator(bits))
    assert found.first == "side"
    assert re.search(rf"\baccumulator\b.*\b{bits} bits\b.*\bsaturates\b", found.faults["side"].words)


def test_a_few_codes_far_away_are_no_rounding(study: qkit.Study) -> None:
    def spoilt(m: Mixed, v: Values, p: Plan) -> Tensor:
        y = plain_layer(m, "stem", v, p)
        y.view(-1)[:20] += 9 * p.params("stem").scale
        return y

    found = compared(study, stem=spoilt)
    assert found.taps["stem"].share >= 0.999
    assert found.first == "stem"
    assert "stem" not in found.faults


def test_a_fault_within_a_step_is_told_from_rounding(study: qkit.Study) -> None:
    """Biases below a step: dropped, no code moves by more than one."""
    step = float(study.plan.params("side").scale)
    small = 0.45 * step * torch.tensor([1.0, -1.0, 1.0, -1.0])
    model = mixed_network()
    with torch.no_grad():
        model.side.bias.copy_(small)
    other = qkit.Study(model, study.calibration, metric="agreement", scheme="int8")
    other.calibrate("minmax", progress=False)
    found = compare(other, Engine(other, {"side": lambda m, v, p: fake_quantized(side(m, v, p, bias=torch.zeros(4)), p, "side")}))
    assert found.taps["side"].local.more == 0
    assert found.taps["side"].agrees
    assert found.first == "side"
    assert found.faults["side"].kind == "dropped-bias"
    rounds_down = compare(
        other,
        Engine(other, {"side": lambda m, v, p: fake_quantized(side(m, v, p) - 0.499 * p.params("side").scale, p, "side")}),
    )
    assert rounds_down.first is None
    assert "rounded down" in rounds_down.reasons["side"]


def test_a_grid_of_the_engines_own_is_said_where_it_is(study: qkit.Study) -> None:
    theirs = study.plan.with_range("side", -1.0, 1.0)
    params = theirs.params("side")
    assert params is not None
    engine = Engine(study, {"side": lambda m, v, p: plain_layer(m, "side", v, theirs)}, params={"side": params})
    found = compare(study, engine, progress=False)
    assert list(found.grids) == ["side"]
    assert found.first is None
    assert any(note.endswith(": side") for note in found.notes)
    (cause,), _ = causes(study, engine, study.plan)
    assert (cause.kind, cause.tensor) == ("engine-mismatch", "side")
    assert re.search(r"\bgrid .*\(.*\).*\bplan .*\(.*\)", cause.evidence)
    # a wider integer that holds the same steps is the same grid
    same = study.plan.params("side")
    assert same is not None
    wide = QuantParams(same.scale, same.zero_point, -32768, 32767)
    assert not compare(study, Engine(study, {}, params={"side": wide}), progress=False).grids


def test_another_network_and_other_images_are_an_alignment(study: qkit.Study) -> None:
    (cause,), _ = causes(study, Engine(study, {}, model=mixed_network(1)), study.plan)
    assert cause.kind == "trace-alignment"
    assert "network" in cause.evidence
    turned = Engine(study, {"input": lambda m, v, p: plain_layer(m, "input", v, p).roll(5, 0)})
    (cause,), _ = causes(study, turned, study.plan)
    assert (cause.kind, cause.tensor) == ("trace-alignment", "input")


def test_scores_come_from_the_same_pass(study: qkit.Study) -> None:
    engine = Engine(study, {"side": shifted(0.25)})
    assert compare(study, engine, progress=False).scores is None
    found = compare(study, engine, batches=None, scored=True, progress=False)
    assert found.scores is not None
    assert list(found.scores.lanes) == ["float", "simulated", "plain"]
    assert found.scores["simulated"].value == study.score().value
    assert found.scores["plain"].value < found.scores["simulated"].value


def test_shapes_that_do_not_fit_are_errors(study: qkit.Study) -> None:
    with pytest.raises(DataError, match=r"^classify .*\(\d+, 3\).*\(\d+, \d+\)"):
        compared(study, classify=lambda m, v, p: plain_layer(m, "classify", v, p)[:, :3])


def test_a_rounding_in_a_tensor_that_is_not_shown_is_no_fault_of_the_next(study: qkit.Study) -> None:
    """The addition cuts off what is behind the point; the convolution that reads it is not to blame, a fault of its own is."""

    def cut(m: Mixed, v: Values, p: Plan) -> Tensor:
        scale = p.params(":add").scale
        return (F.relu(v["project"] + v["stem"]) / scale).floor() * scale

    class Hiding(Engine):
        def run(self, loader: Iterable[Any], *, limit: int | None = None) -> Iterator[EngineBatch]:
            for given in super().run(loader, limit=limit):
                yield EngineBatch(given.batch, {tap: t for tap, t in given.taps.items() if tap != ":add"}, given.outputs)

    shown = compare(study, Engine(study, {":add": cut}), progress=False)
    assert "rounded down" in shown.reasons[":add"] or "cut off" in shown.reasons[":add"]
    hidden = compare(study, Hiding(study, {":add": cut}), progress=False)
    assert hidden.missing == (":add",)
    assert hidden.taps["side"].local.shares[0] < 0.9
    assert hidden.first is None
    broken = compare(study, Hiding(study, {":add": cut, "side": shifted(0.5)}), progress=False)
    assert broken.first == "side"
