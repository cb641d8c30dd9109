"""What is said before training begins, what it starts from, and what is refused."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import pytest
import torch
from small_networks import Mixed
from torch import Tensor, nn

import qkit
from qkit.diagnosis.answer import Diagnosis
from qkit.diagnosis.verdict import Verdict
from qkit.errors import DataError, GraphError, PlanError, QkitError
from qkit.qat import wrap
from qkit.quant.plan import Codes


def diagnosis_of(verdict: str, qat: str = "Quantization-aware training: what it is worth.") -> Diagnosis:
    return Diagnosis(Verdict(verdict, "the reason.", None, None), (), (), (), None, None, (), None, None, qat, (), 10, 1, "top1")  # type: ignore[arg-type]


@pytest.fixture
def study(mixed: Mixed, images: Tensor) -> qkit.Study:
    with torch.no_grad():
        targets = mixed(images).argmax(1)
    return qkit.Study(mixed, [images], [(images, targets)], metric="top1", scheme="int8-per-tensor", expected=1.0)


@pytest.fixture(autouse=True)
def heard(caplog) -> None:
    caplog.set_level(logging.WARNING, "qkit.qat.qat_wrapping")


@pytest.mark.parametrize("verdict", ["quantization", "both", "inconclusive", "no-degradation"])
def test_the_diagnosis_need_is_said_first(study: qkit.Study, caplog, verdict: str) -> None:
    module = wrap(study, total_epochs=2, diagnosis=diagnosis_of(verdict))
    assert all(part in module.need for part in (verdict, "the reason.", "Quantization-aware training: what it is worth."))
    assert module.need in caplog.text
    assert module.plan() == study.plan


def test_without_a_diagnosis_one_is_made(study: qkit.Study, caplog) -> None:
    module = wrap(study, total_epochs=2)
    made = study.diagnose(progress=False)
    assert made.qat in module.need
    assert made.verdict.name in module.need
    assert module.need in caplog.text


def test_what_is_not_quantization_is_refused(study: qkit.Study) -> None:
    with pytest.raises(QkitError, match=r"not-quantization.*the reason.*anyway=True"):
        wrap(study, total_epochs=2, diagnosis=diagnosis_of("not-quantization"))
    module = wrap(study, total_epochs=2, diagnosis=diagnosis_of("not-quantization"), anyway=True)
    assert "not-quantization" in module.need


def test_a_refusal_names_what_was_found(mixed: Mixed, images: Tensor) -> None:
    """A float score far from the expected one: no grid is to blame."""
    wrong = (mixed(images).argmax(1) + 1) % 5
    study = qkit.Study(mixed, [images], [(images, wrong)] * 8, metric="top1", expected=0.95)
    with pytest.raises(QkitError, match=r"not-quantization.*\b0\.00.*\b95\.00"):
        wrap(study, total_epochs=2)


def test_the_way_back_has_the_studys_data(study: qkit.Study) -> None:
    module = wrap(study, total_epochs=2, diagnosis=diagnosis_of("quantization"))
    back = module.study()
    assert back.plan == study.plan
    assert (back.evaluation, back.calibration, back.metric_name, back.expected) == (
        study.evaluation, study.calibration, "top1", 1.0,
    )  # fmt: skip
    assert back.scheme == study.scheme
    assert (
        back.evaluate({"plan": back.plan}, progress=False)["plan"] == study.evaluate({"plan": study.plan}, progress=False)["plan"]
    )


def test_a_model_alone_says_that_nothing_was_diagnosed(mixed: Mixed, images: Tensor, caplog) -> None:
    module = wrap(mixed, images, total_epochs=2)
    assert "study.diagnose()" in module.need
    assert module.need in caplog.text


def test_a_model_alone_observes_its_first_batch(mixed: Mixed, images: Tensor, plan_for) -> None:
    module = wrap(mixed, images, total_epochs=2, scheme="int8-symmetric").train()
    module(images)
    plan, calibrated = module.plan(), plan_for(mixed, "int8-symmetric", method="minmax")
    assert list(plan.grids) == list(calibrated.grids)
    assert plan["input"].params == calibrated["input"].params
    spec = {name: (grid.params.qmin, grid.params.qmax) for name, grid in plan.grids.items()}
    assert spec == {name: (grid.params.qmin, grid.params.qmax) for name, grid in calibrated.grids.items()}


def test_what_of_a_plan_is_not_used_is_said(mixed: Mixed, images: Tensor, plan_for, caplog) -> None:
    plan = plan_for(mixed, "int8")
    grid = plan["side.weight"]
    coded = plan.with_grid("side.weight", replace(grid, codes=Codes(torch.zeros(4, 8, 3, 3, dtype=torch.int8))))
    coded = replace(coded, corrections={"side": (0.1,) * 4})
    module = wrap(mixed, images, total_epochs=2, plan=coded)
    (said,) = (text for record in caplog.records if (text := record.getMessage()) != module.need)
    assert re.search(r"corrections\D+1\b.*codes\D+1\b", said)
    assert module.plan() == plan


def test_one_batch_of_one_sample(images: Tensor) -> None:
    """Batch norm over a single value has no statistics, which torch says itself; over an image it has."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    study = qkit.Study(model, [images[:1]])
    module = wrap(study, total_epochs=2, diagnosis=diagnosis_of("quantization"))
    module.train()
    module(images[:1]).sum().backward()
    assert module.eval().study().plan == module.plan()


class Bare(nn.Module):
    """Without bias anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.linear = nn.Linear(4, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).relu().amax((2, 3)))


class Odd(nn.Module):
    """What nobody knows: its forward cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.detach().sum()) > 0 else -x


def test_leaf_modules_stay_float(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Odd(), nn.Conv2d(4, 2, 3))
    with pytest.raises(GraphError) as refused:
        wrap(model, images, total_epochs=2)
    assert refused.value.file == __file__
    module = wrap(model, images, total_epochs=2, leaf_modules=[Odd]).train()
    module(images).sum().backward()
    assert module.study([images], metric="agreement").graph.notes.keys() == {"1"}
    study = qkit.Study(model, [images], metric="agreement", leaf_modules=["1"])
    assert wrap(study, total_epochs=2, diagnosis=diagnosis_of("both")).plan() == study.plan


def test_layers_without_bias(images: Tensor) -> None:
    module = wrap(Bare(), images, total_epochs=2).train()
    module(images).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert list(dict(module.float_model().named_parameters())) == ["conv.weight", "linear.weight"]


BAD = {
    "half precision": (lambda m, x: wrap(m.half(), x, total_epochs=2), DataError, r"stem\.weight.*torch\.float16.*model\.float"),
    "no example": (lambda m, x: wrap(m, total_epochs=2), DataError, "example_inputs="),
    "a batch that does not fit": (lambda m, x: wrap(m, x[:, :2], total_epochs=2), DataError, r"Mixed.*\(8, 2, 16, 16\)"),
    "no model": (lambda m, x: wrap("model", x, total_epochs=2), GraphError, r"torch\.nn\.Module.*\bstr\b"),
    "no epochs": (lambda m, x: wrap(m, x, total_epochs=0), QkitError, "total_epochs=0"),
    "half an epoch": (lambda m, x: wrap(m, x, total_epochs=2.5), QkitError, "total_epochs=2.5"),
    "frozen before the start": (lambda m, x: wrap(m, x, total_epochs=2, freeze_norms_at=-1), QkitError, "freeze_norms_at=-1"),
    "unknown scheme": (lambda m, x: wrap(m, x, total_epochs=2, scheme="int9"), PlanError, "int9"),
    "foreign diagnosis": (
        lambda m, x: wrap(m, x, total_epochs=2, diagnosis=diagnosis_of("quantization")), QkitError, "diagnosis.*study",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(mixed: Mixed, images: Tensor, case: str) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call(mixed, images)


def test_bad_arguments_with_a_study(study: qkit.Study, images: Tensor) -> None:
    with pytest.raises(QkitError, match="with_scheme"):
        wrap(study, total_epochs=2, scheme="int8")
    with pytest.raises(QkitError, match=r"study\.diagnose.*\bstr\b"):
        wrap(study, total_epochs=2, diagnosis="fine")  # type: ignore[arg-type]


def test_a_plan_of_another_network(images: Tensor, mixed: Mixed, plan_for) -> None:
    with pytest.raises(PlanError, match=r"stem.*Bare"):
        wrap(Bare(), images, total_epochs=2, plan=plan_for(mixed, "int8"))
