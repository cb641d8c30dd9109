"""Post-training calibration beside torchao's PT2E flow: the same grids of weights, and a score that is no worse."""

from __future__ import annotations

import warnings

import pytest
import torch

pytest.importorskip("torchao", reason="torchao is not installed")

from benchmarks.accuracy import peer
from benchmarks.accuracy.subjects import Source, Subject
from qkit import Study
from qkit.execution.statistics import paired_interval


@pytest.fixture(autouse=True)
def quiet(one_thread: None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def subject(name) -> Subject:
    return Source().subject(name, 0)


def study_of(given: Subject, scheme: str) -> Study:
    study = Study(given.model, given.calibration, given.evaluation, metric="top1", scheme=scheme)
    study.calibrate(progress=False)
    return study


def scores(study: Study):
    return study.evaluate({"lane": study.plan}, progress=False).lanes["lane"]


def weight_scales(converted):
    """Scales and code ranges of the weights in torchao's converted program, in the order of execution."""
    operators = torch.ops.quantized_decomposed
    found = []
    for node in converted.graph.nodes:
        if node.target is operators.dequantize_per_channel.default:
            found.append((getattr(converted, node.args[1].target), node.args[4:6]))
        elif node.target is operators.dequantize_per_tensor.default and node.args[0].op == "get_attr":
            found.append((torch.tensor(node.args[1]), node.args[3:5]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
def test_weights_get_the_grids_that_torchao_gives_them(per_channel):
    given = subject("resnet_small")
    study = study_of(given, "int8" if per_channel else "int8-per-tensor")
    theirs = weight_scales(peer.posttraining(given.model, given.calibration, per_channel=per_channel))
    ours = [grid.params for grid in study.plan.grids.values() if grid.weight]
    assert len(ours) == len(theirs) == 21
    # the order of two branches of a block may differ: the layers are matched by their greatest scale
    key = lambda scale: float(scale.max())  # noqa: E731
    for params, (scale, codes) in zip(
        sorted(ours, key=lambda p: key(p.scale)), sorted(theirs, key=lambda pair: key(pair[0])), strict=True
    ):
        assert (params.qmin, params.qmax) == tuple(codes) == (-127, 127)
        # 2^-12 is the least scale that torchao's observer gives
        torch.testing.assert_close(
            params.scale.clamp(min=2**-12).float(), scale.float().reshape(params.scale.shape), rtol=1e-5, atol=0
        )


@pytest.mark.slow
def test_equalization_recovers_what_torchaos_flow_leaves_lost():
    given = subject("mobilenet_v2_hostile")
    study = study_of(given, "int8-per-tensor")
    theirs = peer.scores(peer.posttraining(given.model, given.calibration, per_channel=False), given.evaluation)
    # both start from the same loss: the same weights on the same grids
    assert paired_interval(scores(study), theirs).value == pytest.approx(0.0, abs=0.05)
    gain = paired_interval(scores(study.ptc(("equalization",), progress=False)), theirs)
    assert gain.low > 0.6, gain


# a score counts as no worse if the paired interval of the difference does not show it to be
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "scheme"),
    # benchmarks/accuracy has every network and scheme
    [("inception_small", "int8"), ("mobilenet_v2_lite", "int8"), ("mobilenet_v2_hostile", "int8-per-tensor")],
)
def test_calibrated_scores_are_no_worse(name, scheme):
    given = subject(name)
    theirs = peer.scores(peer.posttraining(given.model, given.calibration, per_channel=scheme == "int8"), given.evaluation)
    gain = paired_interval(scores(study_of(given, scheme).ptc(progress=False)), theirs)
    assert gain.high > 0.0, gain
    assert gain.value >= -0.005, gain


def test_torchaos_scores_need_no_kit():
    given = subject("resnet_small")
    with torch.no_grad():
        expected = torch.cat([given.model(x).argmax(1) == y for x, y in given.evaluation]).double().mean()
    assert peer.scores(given.model, given.evaluation).mean() == expected.item()
