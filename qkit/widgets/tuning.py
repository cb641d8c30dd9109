"""A panel that opens tensors in a range tuner, which holds the plan as it is edited there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qkit.quant.plan import Plan
from qkit.widgets.panel import Panel
from qkit.widgets.tuner import Tuner
from qkit.widgets.work import STATE

if TYPE_CHECKING:
    from qkit.study import Study


class TuningPanel(Panel):
    """A panel with one tuner, made when it is first asked for."""

    _tuner: Tuner | None = None

    def _hold(self, study: Study) -> None:
        """Before the widget is made: its study, and the plan that it still has when it is closed."""
        self._given, self._base = study, study.plan

    def _new_tuner(self) -> Tuner:
        return Tuner(self._origin)

    @property
    def tuner(self) -> Tuner:
        """The range tuner, which holds the edited plan."""
        with STATE:  # the page's messages come on another thread than the cells'
            if self._tuner is None:
                self._tuner = self._new_tuner()
            return self._tuner

    @property
    def plan(self) -> Plan:
        """The plan as edited."""
        if self._tuner is not None:
            return self._tuner.plan
        return self._base if self.closed else self._origin.plan

    @property
    def study(self) -> Study:
        """A study with the edited plan."""
        return self._origin if self._tuner is None else self._tuner.study
