"""State that cannot mislead: what is interrupted goes on, what is partial is never taken for whole, nothing is shared unseen."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import mixed_network
from torch import Tensor, nn

import qkit.execution.evaluator
from qkit import Study
from qkit.errors import DataError, QkitError
from qkit.execution.evaluator import Budget, Evaluator, OutOfBudgetError
from qkit.execution.loading import batches
from qkit.progress import listening, uninterrupted
from qkit.quant.plan import FLOAT, Plan
from qkit.report import make

SIZE, BATCHES = 4, 5


def data(scale: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = scale * torch.randn(BATCHES * SIZE, 3, 16, 16, generator=generator)
    # later batches reach further: a partial pass has other ranges than a whole one
    x *= torch.arange(1, BATCHES + 1).repeat_interleave(SIZE)[:, None, None, None]
    with torch.no_grad():
        y = mixed_network()(x).argmax(1)
    return list(zip(x.split(SIZE), y.split(SIZE), strict=True))


def made(**settings: Any) -> Study:
    return Study(mixed_network(), data(), data(), **{"metric": "top1", "scheme": "int8-per-tensor", **settings})


def stop_at(count: int, what: str = "") -> Callable[[str, int, int | None], None]:
    """A listener that presses Ctrl-C once, at that many."""
    left = [True]

    def listener(now: str, done: int, total: int | None) -> None:
        if left and what in now and done >= count:
            left.clear()
            raise KeyboardInterrupt

    return listener


WORK: dict[str, Callable[[Study], Any]] = {
    "evaluate": lambda s: s.evaluate().to_dict(),
    "verdict": lambda s: s.verdict().to_dict(),
    "capture": lambda s: s.capture(batches=None, keep=["stem"]).to_dict(),
    "sensitivity": lambda s: s.sensitivity().to_dict(),
    "sparing": lambda s: s.sensitivity("except").to_dict(),
    "calibrate": lambda s: s.calibrate("minmax").to_dict(),
    "score": lambda s: s.score(s.plan.with_range("side", -0.5, 0.5)).to_dict(),
    "ptc": lambda s: s.ptc(["ranges", "bias-correction"], estimators=["minmax"]).plan.to_dict(),
    "mixed": lambda s: s.mixed(tolerance=0.0).to_dict(),
    "report": lambda s: {k: v for k, v in make(s, images=False).to_dict().items() if k not in ("created", "environment")},
}


@pytest.mark.parametrize("count", [0, 1, 3, 7])
@pytest.mark.parametrize("name", WORK)
def test_an_interrupt_goes_up_and_the_same_call_then_gives_the_whole(name: str, count: int) -> None:
    study = made()
    if name != "calibrate":
        study.calibrate("minmax", progress=False)
    try:
        with listening(stop_at(count)):
            found = WORK[name](study)
        assert count > 1, "it was not interrupted"
    except KeyboardInterrupt:
        found = WORK[name](study)
    other = made()
    if name != "calibrate":
        other.calibrate("minmax", progress=False)
    assert found == WORK[name](other)


def test_finished_batches_are_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    study = made()
    study.calibrate("minmax", progress=False)
    study.lane("int16")
    with listening(stop_at(3 * 3)), pytest.raises(KeyboardInterrupt):
        study.evaluate()
    sizes: list[int] = []
    plain = qkit.execution.evaluator.run_from_base
    monkeypatch.setattr(
        qkit.execution.evaluator,
        "run_from_base",
        lambda *rest: sizes.append(len(rest[-1][0])) or plain(*rest),
    )
    assert study.evaluate(progress=False).n == BATCHES * SIZE
    assert sizes == [SIZE] * (BATCHES - 3)


def test_an_interrupted_calibration_is_not_taken_for_whole() -> None:
    study, whole = made(), made().calibrate("minmax", progress=False)
    with listening(stop_at(2)), pytest.raises(KeyboardInterrupt):
        study.calibrate("minmax")
    assert study.calibrate("minmax", progress=False) == whole
    assert float(whole["input"].params.hi) > 2 * float(made().calibrate("minmax", batches=1, progress=False)["input"].params.hi)


def test_calibrating_on_all_batches_after_a_few_takes_all() -> None:
    study = made()
    few = study.calibrate("minmax", batches=1, progress=False)
    again = study.calibrate("minmax", progress=False)
    assert again == made().calibrate("minmax", progress=False)
    assert again != few


def test_lanes_of_other_widths_see_what_the_plan_was_calibrated_on() -> None:
    study = made()
    study.calibrate("minmax", batches=1, progress=False)
    one = Study(mixed_network(), data()[:1], data(), metric="top1", scheme="int8-per-tensor")
    one.calibrate("minmax", progress=False)
    assert study.lane("int16") == one.lane("int16")
    assert study.with_scheme("int8").plan == one.with_scheme("int8").plan
    assert study.observe().keys() == one.observe().keys()
    assert study.observe()["stem"].batch_max == one.observe()["stem"].batch_max


def test_a_study_made_of_another_leaves_that_one_alone() -> None:
    study = made()
    plan = study.calibrate("minmax", progress=False)
    wide = study.lane("int16")
    other = study.with_plan(plan)
    other.calibrate("mse", batches=1, progress=False)
    assert other.plan != plan
    assert study.plan is plan
    assert study.lane("int16") is wide
    assert study.calibrate("minmax", progress=False) == plan
    assert study.observe()["stem"].batch_max != other.observe()["stem"].batch_max


@pytest.mark.parametrize(
    "name", ["metric", "evaluation", "calibration", "scheme", "expected", "model", "graph", "methods", "plan"]
)
def test_what_figures_depend_on_cannot_be_set(name: str) -> None:
    study = made()
    with pytest.raises(AttributeError, match=r"with_\w+"):
        setattr(study, name, None)


def test_another_metric_is_another_study_with_its_own_scores() -> None:
    study = made()
    study.calibrate("minmax", progress=False)

    def margin(outputs: Tensor, targets: Any) -> Tensor:
        return outputs.gather(1, targets[:, None]).squeeze(1)

    top1 = study.evaluate(progress=False)
    other = study.with_metric(margin)
    assert other.plan is study.plan
    assert other.metric_name == "margin"
    assert other.evaluate(progress=False).metric == "margin"
    own = made(metric=margin)
    own.calibrate("minmax", progress=False)
    assert other.evaluate(progress=False).to_dict() == own.evaluate(progress=False).to_dict()
    assert study.evaluate(progress=False).to_dict() == top1.to_dict()
    assert study.with_metric("top1").evaluator is study.evaluator


def test_other_data_give_other_scores_and_other_ranges() -> None:
    study = made()
    study.calibrate("minmax", progress=False)
    loud = study.with_data(calibration=data(3.0), evaluation=data(3.0))
    own = Study(mixed_network(), data(3.0), data(3.0), metric="top1", scheme="int8-per-tensor")
    own.calibrate("minmax", progress=False)
    assert loud.plan == own.plan != study.plan
    assert loud.evaluate(progress=False).to_dict() == own.evaluate(progress=False).to_dict()
    with pytest.raises(DataError):
        study.with_data(evaluation=[])


def test_another_expected_score() -> None:
    study = made(expected=0.9)
    assert study.with_expected(0.5).expected == 0.5
    assert study.expected == 0.9


def test_a_part_of_what_is_known_is_known() -> None:
    study = made()
    plan = study.calibrate("minmax", progress=False)
    evaluator = Evaluator(study.graph, data(), "top1")
    assert evaluator.known(plan) is None
    whole = evaluator.scores({"it": plan}, progress=False)["it"]
    assert np.array_equal(evaluator.known(plan), whole)
    assert np.array_equal(evaluator.known(plan, 2), whole[: 2 * SIZE])
    with listening(lambda *_: pytest.fail("it was run again")):
        assert np.array_equal(evaluator.scores({"it": plan}, batches=3)["it"], whole[: 3 * SIZE])
    assert evaluator.known(FLOAT) is None


def test_a_budget_counts_each_plan_once_whether_it_was_known_or_not() -> None:
    study = made()
    plan = study.calibrate("minmax", progress=False)
    edits = [plan.with_range("stem", 0.0, 1.0 + i) for i in range(3)]
    evaluator = study.evaluator
    for known in (False, True):
        budget = Budget(3)
        evaluator.scores({"a": FLOAT, "b": edits[0]}, budget=budget, progress=False)
        evaluator.scores({"a": edits[0]}, budget=budget, progress=False)
        assert (budget.spent, budget.left) == (2, 1)
        with pytest.raises(OutOfBudgetError):
            evaluator.scores({"a": edits[1], "b": edits[2]}, budget=budget, progress=False)
        assert (evaluator.known(edits[1]) is not None) == known
        evaluator.scores({"a": edits[1], "b": edits[2]}, progress=False)


def test_errors_can_be_asked_for_later() -> None:
    study = made()
    plan = study.calibrate("minmax", progress=False)
    evaluator = study.evaluator
    evaluator.scores({"a": plan}, progress=False)
    evaluator.scores({"a": plan, "float": FLOAT}, errors=True, progress=False)
    assert evaluator.error(FLOAT) == 0.0
    assert 0.0 < evaluator.error(plan) < 1.0


class Shuffled:
    """A loader that draws from the global random states, and is interrupted while it does."""

    def __init__(self, after: int) -> None:
        self.after, self.passes = after, 0

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        for i in range(4):
            x = torch.randn(2, 3, 16, 16) + random.random()
            if i == self.after and self.passes == 1:
                raise KeyboardInterrupt
            yield x


@pytest.mark.parametrize("after", [0, 1, 3])
def test_the_random_states_come_back_when_a_loader_is_interrupted(after: int) -> None:
    before = torch.get_rng_state(), random.getstate()
    loader = Shuffled(after)
    with pytest.raises(KeyboardInterrupt):
        list(batches(loader))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    first, second = ([b.inputs[0] for b in batches(loader)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals go to the main thread")
def test_an_interrupt_is_held_back_and_then_delivered(request: pytest.FixtureRequest) -> None:
    # a shell starts what runs in its background with the interrupt ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    steps: list[str] = []

    def held() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("done")
        steps.append("never")

    def let_through() -> None:
        with uninterrupted() as interruptible:
            try:
                with interruptible():
                    os.kill(os.getpid(), signal.SIGINT)
                    steps.append("never")
            finally:
                steps.append("restored")

    for work in (held, let_through):
        with pytest.raises(KeyboardInterrupt):
            work()
    assert steps == ["done", "restored"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_capture_with_other_arguments_starts_anew() -> None:
    study = made()
    study.calibrate("minmax", progress=False)
    with listening(stop_at(2)), pytest.raises(KeyboardInterrupt):
        study.capture(batches=None)
    assert study.capture(batches=1, progress=False).samples == SIZE
    assert study.capture(batches=None, progress=False).samples == BATCHES * SIZE
    with pytest.raises(QkitError):
        study.capture(data="train", progress=False)  # type: ignore[arg-type]


def test_a_plan_that_is_float_everywhere_scores_like_float() -> None:
    evaluator = Evaluator(made().graph, data(), "agreement")
    scores = evaluator.scores({"a": FLOAT, "b": Plan({}, 32, "empty")}, progress=False)
    assert scores["a"].tolist() == scores["b"].tolist() == [1.0] * BATCHES * SIZE


def test_nan_weights_are_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    study = Study(model, [x for x, _ in data()], metric="agreement")
    with torch.no_grad():
        next(iter(study.graph.weights.values())).fill_(float("nan"))
    with pytest.raises(DataError):
        study.evaluator.scores({"float": FLOAT}, progress=False)
