"""What the tests of the range tuner's Python side share."""

from __future__ import annotations

from typing import Any

import torch
from studies import kept, small_study

import qkit
from qkit import Study
from qkit.execution.editing import figures
from qkit.execution.layer_errors import few_inputs, layer_sample
from qkit.execution.metrics import NAMED
from qkit.widgets import Tuner
from qkit.widgets.numbers import figure_rows

BATCHES = 2

TOP1 = NAMED["top1"].units


def tuner(tensor: str | None = "depthwise", study: Study | None = None) -> Tuner:
    return kept(Tuner(small_study() if study is None else study, tensor, batches=BATCHES))


def ends(made: Tuner) -> tuple[float, float]:
    params = made.grid.params
    return float(params.lo.min()), float(params.hi.max())


def rows_of(plan: qkit.Plan, tensor: str, before: qkit.Plan | None = None) -> list[list[str]]:
    """The table of figures of a tap, from the histogram and from the layer itself."""
    sample = layer_sample(small_study().graph, few_inputs(small_study().graph, small_study().evaluation), tensor)
    now, old = (None if p is None else figures([histogram(tensor)], p[tensor].params) for p in (plan, before))
    assert now is not None
    return figure_rows(now, old, output=sample.errors(plan), output_before=None if before is None else sample.errors(before))


def typed(made: Tuner) -> tuple[float, float]:
    """The ends in the fields."""
    return float(made.rule["lo"]), float(made.rule["hi"])


def card(made: Tuner) -> dict[str, list[str]]:
    """The lines of the score: what it is compared with, that one's score, the change."""
    return {name: rest for name, *rest in made.score["lines"]}


def histogram(tensor: str) -> Any:
    return small_study().observe(progress=False)[tensor].histogram


def step_of(made: Tuner) -> float:
    return float(made.grid.params.scale.max())


def executed(made: Tuner, study: Study) -> Study:
    names: dict[str, Any] = {"study": study}
    exec(made.code, names)
    return names["tuned"]


def per_channel_study() -> Study:
    """Its tap "stem" has a range for each channel: 1, 2 … 8."""
    spec = qkit.QuantSpec(symmetric=False, per_channel=True)
    study = small_study()
    return study.with_plan(study.plan.with_range("stem", torch.zeros(8), torch.arange(1.0, 9.0), spec=spec, axis=1))
