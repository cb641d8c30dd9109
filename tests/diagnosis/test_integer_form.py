"""`integer-form`: a form that is too coarse is named with the one that is not; fine ones are not accused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import qkit
from qkit.quant.arithmetic import FULL_INTEGER, Arithmetic


class Chain(nn.Module):
    """Attention over itself, several times: what softmax misses adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        for _ in range(3):
            y = (y @ y.transpose(1, 2)).softmax(-1) @ y
        return y


def study(arithmetic: Arithmetic) -> qkit.Study:
    torch.manual_seed(0)
    data = [torch.randn(32, 24, 16) for _ in range(2)]
    scheme = replace(qkit.PRESETS["int8-full-integer"], name="s", arithmetic=arithmetic)
    made = qkit.Study(Chain().eval(), calibration=data, evaluation=data, scheme=scheme)
    made.calibrate("minmax", progress=False)
    return made


def test_a_coarse_softmax_is_named_with_the_form_that_is_not() -> None:
    coarse = study(replace(FULL_INTEGER, softmax="shift"))
    diagnosis = coarse.diagnose(tolerance=1e-4, check_export=False, progress=False)
    top = diagnosis.causes[0]
    assert (top.kind, top.remedy.kind) == ("integer-form", "finer-form")
    assert top.layer.startswith(":softmax")
    assert top.remedy.arithmetic is not None
    assert top.remedy.arithmetic.softmax == "table"
    fixed = coarse.apply(top.remedy)
    assert fixed.plan.arithmetic.softmax == "table"
    assert fixed.plan.arithmetic.norm == coarse.plan.arithmetic.norm
    assert qkit.Plan.from_dict(fixed.plan.to_dict()) == fixed.plan


@pytest.mark.parametrize("arithmetic", [FULL_INTEGER, Arithmetic()])
def test_fine_forms_are_not_accused(arithmetic: Arithmetic) -> None:
    diagnosis = study(arithmetic).diagnose(tolerance=1e-4, check_export=False, progress=False)
    assert not [cause for cause in diagnosis.causes if cause.kind == "integer-form"]


def test_what_costs_less_than_counts_is_no_cause() -> None:
    diagnosis = study(replace(FULL_INTEGER, softmax="shift")).diagnose(tolerance=0.05, check_export=False, progress=False)
    assert diagnosis.verdict.name == "no-degradation"
    assert not diagnosis.causes
