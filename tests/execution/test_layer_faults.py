"""Which tensor of a layer is at fault: the local error, split, against plain torch; the bundled hostile network's weight."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from small_networks import READS, fake_quantized, mixed_network, plain_layer, plain_run
from torch import Tensor

from qkit import FLOAT, QkitError, Study, zoo
from qkit.execution.capture import Capture
from qkit.execution.faults import local_parts, noisiest_tap, tensor_at_fault


@cache
def images() -> Tensor:
    return torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@cache
def study(scheme: str = "int8-per-tensor") -> Study:
    made = Study(mixed_network(), [images()], [images()], metric="agreement", scheme=scheme)
    made.calibrate("minmax", progress=False)
    return made


@cache
def hostile() -> Capture:
    case = zoo.load("mobilenet_v2_hostile")
    few = next(iter(case.evaluation))[0][:4]
    made = Study(case.model, [few], [few], metric="agreement", scheme="int8-per-tensor")
    made.calibrate("minmax", progress=False)
    return made.capture(("float", "int8"), progress=False)


def db(signal: Tensor, noise: Tensor) -> float:
    power = float(noise.double().square().sum())
    return 10 * math.log10(float(signal.double().square().sum()) / power) if power else math.inf


@pytest.mark.parametrize("scheme", ["int8-per-tensor", "int8", "int8-weights-int16-activations"])
@torch.no_grad()
def test_parts_are_what_plain_torch_makes_of_one_tensor_alone(scheme: str) -> None:
    plan, x = study(scheme).plan, images()
    found = local_parts(study(scheme).capture(progress=False))
    assert list(found.index) == list(READS)
    floats = {**plain_run(mixed_network(), x, FLOAT), "x": x}
    for tap in READS:
        exact = floats[tap]
        assert found.loc[tap, "activation"] == pytest.approx(db(exact, fake_quantized(exact, plan, tap) - exact), abs=0.05), tap
        by_weight = plain_layer(mixed_network(), tap, floats, plan.without([tap])) - exact
        if tap in ("stem", "depthwise", "project", "side", "classify"):
            # what is left of the local error carries the chance in which the two roundings meet: much in 60 outputs
            chance = 2.5 if tap == "classify" else 0.3
            assert found.loc[tap, "weight"] == pytest.approx(db(exact, by_weight), abs=chance), tap
        else:
            assert found.loc[tap, "weight"] == math.inf
            assert found.loc[tap, "weight share"] == 0.0


def test_the_parts_add_up_to_the_local_error() -> None:
    capture = study().capture(progress=False)
    parts, local = local_parts(capture), capture.table()["int8", "local sqnr"]
    together = -10 * ((10 ** (-parts["weight"] / 10)) + 10 ** (-parts["activation"] / 10)).map(math.log10)
    assert together.to_numpy() == pytest.approx(local.to_numpy(), abs=1e-6)
    finer = local_parts(capture, "int16")
    assert (finer["activation"] > parts["activation"] + 30).all()


def test_the_weight_that_was_made_hostile_is_at_fault() -> None:
    parts = local_parts(hostile())
    for layer in ("features.2.conv.1.0", "features.3.conv.1.0", "features.6.conv.1.0"):
        assert tensor_at_fault(hostile(), layer) == f"{layer}.weight"
        assert parts.loc[layer, "activation"] > parts.loc[layer, "weight"] + 15
    assert noisiest_tap(hostile()) == "features.3.conv.1.0"
    assert tensor_at_fault(hostile(), "features.3.conv.1.0.weight") == "features.3.conv.1.0.weight"
    assert tensor_at_fault(hostile(), "features.3:add") == "features.3:add"


def test_a_range_that_cuts_values_off_is_the_activations_fault() -> None:
    base = study()
    name = "depthwise"
    narrow = base.with_plan(base.plan.with_range(name, 0.0, 0.1 * float(base.plan[name].params.hi)))
    capture = narrow.capture(progress=False)
    assert tensor_at_fault(capture, name) == name
    assert noisiest_tap(capture) == name
    # values of the layers behind it are far from float's, which is no fault of theirs
    before = local_parts(base.capture(progress=False))
    for tap in (":add", "side", "classify"):
        assert local_parts(capture).loc[tap].to_numpy() == pytest.approx(before.loc[tap].to_numpy(), rel=1e-6)


def test_only_what_has_a_grid_can_be_at_fault() -> None:
    base = study()
    capture = base.with_plan(base.plan.without(["side", "stem.weight", "project", "project.weight"])).capture(progress=False)
    assert tensor_at_fault(capture, "side") == "side.weight"
    assert tensor_at_fault(capture, "stem") == "stem"
    assert tensor_at_fault(capture, "project") is None
    parts = local_parts(capture)
    assert parts.loc["side", "activation"] == math.inf
    assert parts.loc["side", "weight share"] == 1.0
    assert math.isnan(parts.loc["project", "weight share"])


def test_without_an_error_there_is_no_fault() -> None:
    capture = study().capture({"none": FLOAT}, progress=False)
    assert noisiest_tap(capture) is None
    assert tensor_at_fault(capture, "stem") is None
    assert local_parts(capture)["weight share"].isna().all()


def test_lanes_that_are_not_there_are_said() -> None:
    capture = study().capture(("float", "int8"), progress=False)
    with pytest.raises(QkitError, match=r"'int4'.*\bint8\b"):
        local_parts(capture, "int4")
    with pytest.raises(QkitError, match="none but float"):
        local_parts(study().capture(("float",), progress=False))
