"""The steps of a walk as a list: which are done, where one is, what is to come; one chooses by click or keyboard."""

from __future__ import annotations

from typing import Any, Literal

import traitlets

from qkit.widgets.canvas import Canvas, es_module

#: What a step is: where one is, looked at, looked at and acted on, not looked at yet.
State = Literal["here", "seen", "applied", "open"]


class Stepper(Canvas):
    """Steps in parts; reports which is chosen."""

    _esm = es_module("stepper")
    #: for each step its title, and the part of the walk that it belongs to
    steps: Any = traitlets.List([]).tag(sync=True)
    #: of each step, a `State`
    states: Any = traitlets.List([]).tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
