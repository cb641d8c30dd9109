"""Post-training calibration as a whole: what it recovers, what it undoes, and that nobody's model is changed."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import mixed_network
from torch import Tensor, nn

import qkit
from qkit import zoo
from qkit.errors import QkitError
from qkit.execution.loading import Batch
from qkit.execution.statistics import paired_interval
from qkit.ptq import STEPS, pipeline
from qkit.ptq.pipeline import split

QUICK = {"progress": False}


@cache
def hostile() -> tuple[qkit.Study, qkit.Study, dict[str, Tensor]]:
    case = zoo.load("mobilenet_v2_hostile")
    study = qkit.Study(case.model, case.calibration, case.evaluation, metric="top1", scheme="int8-per-tensor")
    study.calibrate(progress=False)
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    return study, study.ptc(["equalization", "ranges", "bias-correction"], **QUICK), before


@pytest.mark.slow
def test_the_hostile_network_comes_back() -> None:
    study, fixed, _ = hostile()
    treatment = fixed.treatment
    assert treatment.scores["before"].value < 0.3
    assert treatment.loss.value <= 0.01
    # the figures are those of plain evaluations, before and after
    assert treatment.scores["after"].value == fixed.evaluate({"p": fixed.plan}, progress=False)["p"].value
    assert treatment.scores["float"].value == study.evaluate(("float",), progress=False)["float"].value
    assert treatment.fitted == 192
    assert treatment.held_out == 64
    first = treatment.effects[0]
    assert (first.step, first.kept) == ("equalization", True)
    assert first.gain.low > 0.5
    assert first.error < first.before


@pytest.mark.slow
def test_neither_study_nor_model_is_changed() -> None:
    study, fixed, before = hostile()
    assert study.treatment is None
    assert fixed.model is not study.model
    for name, value in study.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert study.plan != fixed.plan
    # a study with another plan is no longer the one that was treated
    assert fixed.with_plan(fixed.plan).treatment is None


def test_the_equalized_model_is_the_same_network() -> None:
    study, fixed, _ = hostile()
    x = next(iter(study.evaluation))[0]
    with torch.no_grad():
        torch.testing.assert_close(fixed.model.eval()(x), study.model.eval()(x), atol=1e-3, rtol=1e-3)


def test_the_treatment_reads() -> None:
    _, fixed, _ = hostile()
    treatment = fixed.treatment
    table = treatment.table()
    assert list(table.index) == [effect.step for effect in treatment.effects]
    assert set(table.index) <= set(STEPS)
    assert json.loads(json.dumps(treatment.to_dict()))["loss"]["value"] == treatment.loss.value
    text = repr(treatment)
    assert "on 741 evaluation samples" in text
    assert "decided on 64 others" in text
    assert all(effect.step in text for effect in treatment.effects)
    assert "equalization" in treatment._repr_html_()


def test_the_plan_survives_json_with_its_codes(tmp_path: Any) -> None:
    torch.manual_seed(0)
    data = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    study = qkit.Study(mixed_network(), data, metric="agreement", scheme="int4-weights")
    fixed = study.ptc(["adaptive-rounding"], progress=False)
    assert fixed.treatment.effects[0].kept
    fixed.plan.save(tmp_path / "plan.json")
    assert qkit.Plan.load(tmp_path / "plan.json") == fixed.plan
    loaded = fixed.with_plan(qkit.Plan.load(tmp_path / "plan.json"))
    a, b = (s.capture(("int4",) if "int4" in s._plans else {"lane": s.plan}, progress=False) for s in (fixed, loaded))
    name = a.table().index[-1]
    assert torch.equal(a[name]["lane"].values, b[name]["lane"].values)


def test_a_step_that_hurts_is_undone_and_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    study = small()

    def ruin(graph, plan, batches, *, progress):
        return plan.with_range("classify", -1e-3, 1e-3)

    monkeypatch.setattr(pipeline, "correct_biases", ruin)
    fixed = study.ptc(["bias-correction"], **QUICK)
    (effect,) = fixed.treatment.effects
    assert not effect.kept
    assert effect.error > effect.before
    assert fixed.plan == study.plan
    assert re.search(r"\bbias-correction .*\bSQNR\b", caplog.text)
    # its effect is shown all the same
    assert (
        effect.gain.value
        == paired_interval(
            *(
                study.evaluate({"p": p}, progress=False).lanes["p"]
                for p in (ruin(None, study.plan, None, progress=False), study.plan)
            )
        ).value
    )


@pytest.mark.parametrize(
    ("before", "after", "errors", "kept"),
    [
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0] * 4, [1] * 40, (0.1, 0.2), True),  # gains score, though the output is further off
        ([1] * 40, [0] * 40, (0.2, 0.1), False),  # loses score, though the output is nearer
        ([1] * 40, [1] * 39 + [0], (0.2, 0.1), True),  # within chance: the output decides
        ([1] * 40, [1] * 40, (0.1, 0.1), False),
        (None, None, (0.2, 0.1), True),
    ],
)
def test_decisions(before, after, errors, kept) -> None:
    checked = [
        pipeline._Checked(e, None if s is None else np.array(s, dtype=float))
        for e, s in zip(errors, (before, after), strict=True)
    ]
    assert pipeline.decide(*checked)[0] is kept


def small(**options: Any) -> qkit.Study:
    torch.manual_seed(0)
    data = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    return qkit.Study(mixed_network(), data, metric="agreement", scheme="int8-per-tensor", **options)


@pytest.mark.slow
def test_evaluation_samples_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With other evaluation samples the same steps are kept and the plan is the same."""
    torch.manual_seed(0)
    calibration = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    plans = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        evaluation = [torch.randn(16, 3, 16, 16)]
        study = qkit.Study(mixed_network(), calibration, evaluation, metric="agreement", scheme="int8-per-tensor")
        plans.append(study.ptc(**QUICK).plan)
    assert plans[0] == plans[1]


def test_bad_calls() -> None:
    study = small()
    with pytest.raises(QkitError, match=r"'equalisation'.*\bequalization, absorption, ranges\b"):
        study.ptc(["equalisation"])
    with pytest.raises(QkitError, match=r"^steps .*\('ranges',\)"):
        study.ptc("ranges")
    with pytest.raises(QkitError, match=r"'best'.*\bminmax, moving-average, percentile\b"):
        study.ptc(["ranges"], estimators=["best"], progress=False)


def test_few_samples_are_said() -> None:
    torch.manual_seed(0)
    study = qkit.Study(mixed_network(), [torch.randn(2, 3, 16, 16)], metric="agreement")
    fixed = study.ptc(["bias-correction"], **QUICK)
    assert fixed.treatment.held_out == 0
    assert any("calibration samples" in remark and remark in repr(fixed.treatment) for remark in fixed.treatment.remarks)


def test_an_interrupt_goes_up_and_the_same_call_goes_on_from_the_finished_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    study = small()
    steps = {"steps": ["ranges", "adaptive-rounding"], "estimators": ["minmax"], **QUICK}
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "adapt_rounding", stop)
        with pytest.raises(KeyboardInterrupt):
            study.ptc(**steps)
    whole = small().ptc(**steps)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline._Run, "choose_ranges", stop)
        fixed = study.ptc(**steps)
    assert [effect.step for effect in fixed.treatment.effects] == [effect.step for effect in whole.treatment.effects]
    assert fixed.plan == whole.plan


@pytest.mark.parametrize("sizes", [(8, 8), (5,), (2, 2, 2, 2, 2)])
def test_samples_are_in_one_part_each(sizes: tuple[int, ...]) -> None:
    count = sum(sizes)
    x = torch.arange(float(count)).view(-1, 1)
    targets = torch.arange(count)
    batches, at = [], 0
    for size in sizes:
        batches.append(Batch((x[at : at + size], "told"), targets[at : at + size]))
        at += size
    fit, held = split(batches)
    seen = [float(v) for batch in (*fit, *held) for v in batch.inputs[0].flatten()]
    assert sorted(seen) == [float(v) for v in range(count)]
    assert all(float(v) == int(t) for b in (*fit, *held) for v, t in zip(b.inputs[0], b.targets, strict=True))
    assert all(batch.inputs[1] == "told" for batch in (*fit, *held))
    assert 0 < sum(b.size for b in held) <= count / 3


def test_targets_that_cannot_be_cut_hold_out_whole_batches() -> None:
    batches = [Batch((torch.zeros(8, 1),), {"boxes": i}) for i in range(5)]
    fit, held = split(batches)
    assert [b.targets["boxes"] for b in held] == [3]
    assert len(fit) == 4
    assert split(batches[:3]) == (batches[:3], [])


def test_layers_of_every_kind_and_no_batch_norm_go_through() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 4, 2, stride=2, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.act = nn.Hardswish()
            self.twice = nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.norm(self.up(x)))
            x = self.twice(torch.relu(self.twice(x)))
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    model = Net().eval()
    model.up.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    study = qkit.Study(model, [torch.randn(8, 3, 6, 6)], metric="agreement", scheme="int8-per-tensor")
    fixed = study.ptc(**QUICK)
    assert {effect.step for effect in fixed.treatment.effects} <= set(STEPS)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.up.weight.requires_grad
