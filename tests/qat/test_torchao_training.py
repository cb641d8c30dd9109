"""Training on the grids beside torchao's `prepare_qat_pt2e`: same start, batches, optimizer, epochs; a score that is no worse."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("torchao", reason="torchao is not installed")

from benchmarks.accuracy import peer
from benchmarks.accuracy.compute import Settings, train
from benchmarks.accuracy.subjects import Source, training_batches
from qkit import Study
from qkit.execution.loading import seeded
from qkit.execution.statistics import paired_interval

#: Grids follow the extremes, as torchao's do, rather than being learned.
SETTINGS = replace(Settings(), epochs=4, rate=1e-3, learn_steps=False)


@pytest.fixture(autouse=True)
def quiet_torchao():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_both_see_the_same_batches():
    given = Source().subject("resnet_small", 0)
    loader = training_batches(given.train)

    def passes():
        with seeded(loader, 3):
            return [targets for _ in range(2) for _, targets in loader]

    first, second = passes(), passes()
    assert len(first) == 50
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[25])


@pytest.mark.slow
def test_norms_that_are_frozen_keep_their_statistics():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
    images = torch.randn(6, 3, 8, 8) * 3 + 1
    program = peer._exported(model, [(images, None)])
    flow, pt2e = peer._torchao()
    prepared = flow.prepare_qat_pt2e(program, peer._quantizer(per_channel=True, training=True))
    pt2e.move_exported_model_to_train(prepared)
    statistics = lambda: {k: v.clone() for k, v in prepared.state_dict().items() if "running" in k}  # noqa: E731
    before = statistics()
    prepared(images)
    moved = statistics()
    assert any(not torch.equal(before[k], moved[k]) for k in before)
    peer._freeze_norms(prepared)
    prepared(images)
    assert all(torch.equal(moved[k], v) for k, v in statistics().items())


@pytest.mark.slow
# benchmarks/accuracy has the other networks and schemes
@pytest.mark.parametrize(("name", "scheme"), [("resnet_small", "int8"), ("mobilenet_v2_hostile", "int8-per-tensor")])
def test_trained_scores_are_no_worse(name, scheme):
    given = Source().subject(name, 0)
    study = Study(given.model, given.calibration, given.evaluation, metric="top1", scheme=scheme)
    study.calibrate(progress=False)
    loader = training_batches(given.train)
    state = copy.deepcopy(given.model.state_dict())
    theirs, losses = peer.trained_on_grids(given.model, loader, SETTINGS, 0, per_channel=scheme == "int8")
    assert all(torch.equal(state[k], v) for k, v in given.model.state_dict().items())
    assert len(losses) == SETTINGS.epochs
    trained, own = train(study, SETTINGS, given.train, 0)
    assert len(own) == SETTINGS.epochs
    found = trained.evaluate({"lane": trained.plan}, progress=False).lanes["lane"]
    gain = paired_interval(found, peer.scores(theirs, given.evaluation))
    assert gain.high > 0.0, gain
    assert gain.value >= -0.01, gain


@pytest.mark.slow
def test_before_any_training_step_losses_agree():
    given = Source().subject("resnet_small", 0)
    images, labels = (tensor[:64] for tensor in given.train.tensors)
    with torch.no_grad():
        expected = F.cross_entropy(given.model(images), labels).item()
    still = replace(SETTINGS, epochs=1, rate=0.0, weight_decay=0.0, freeze_norms_at=0)
    study = Study(given.model, given.calibration, given.evaluation, metric="top1", scheme="int8")
    study.calibrate(progress=False)
    _, own = train(study, still, torch.utils.data.TensorDataset(images, labels), 0)
    loader = training_batches(torch.utils.data.TensorDataset(images, labels))
    _, theirs = peer.trained_on_grids(given.model, loader, still, 0, per_channel=True)
    assert own[0] == pytest.approx(expected, abs=2e-3)
    assert theirs[0] == pytest.approx(expected, abs=2e-3)
