"""What is known of a network's operations lane by lane, and how what is not yet known is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from qkit.errors import QkitError
from qkit.execution.capture import Capture
from qkit.execution.gradient import GradientRanking
from qkit.execution.sensitivity import Sensitivity
from qkit.figures.network.blocks import Network
from qkit.figures.network.filling import CAPTURED, bit_values, captured_values, gradient_values, loss_values, mac_values
from qkit.figures.network.quantities import Values
from qkit.quant.plan import Plan

if TYPE_CHECKING:
    from qkit.study import Study

#: What takes a measurement, by quantity.
WORK = {"propagated": "capturing", "local": "capturing", "loss": "measuring each layer alone", "gradient": "ranking by gradients"}


class GraphValues:
    """Values by quantity and lane.

    Parameters
    ----------
    plans
        Of the lanes, where they are known; of the others `study.lane` makes them when they are needed.
    batches
        Evaluation batches to capture; sweeps and rankings take all.
    """

    def __init__(
        self, study: Study, network: Network, lanes: Sequence[str], plans: Mapping[str, Plan], batches: int | None
    ) -> None:
        self._study: Study | None = study
        self.network, self.lanes, self.batches = network, list(lanes), batches
        self.plans = dict(plans)
        self.captures: dict[str, Capture] = {}
        self._found: dict[tuple[str, str], Values] = {("macs", ""): mac_values(network)}

    def release(self) -> None:
        """Let go of the study and of tensors; values stay."""
        self._study = None
        self.captures = {}

    def get(self, quantity: str, lane: str) -> Values | None:
        """Values by operation; None where they are not measured."""
        if quantity == "macs":
            return self._found["macs", ""]
        if quantity == "bits" and lane in self.plans:
            return bit_values(self.network, self.plans[lane])
        return self._found.get((quantity, lane))

    def known(self) -> list[tuple[str, str]]:
        """Quantities and lanes of what is measured."""
        return [*self._found, *(("bits", lane) for lane in self.plans if lane in self.lanes)]

    def missing(self, quantity: str, lanes: Sequence[str]) -> list[str]:
        """Of these lanes, those that the quantity is not measured for."""
        return [lane for lane in lanes if self.get(quantity, lane) is None]

    def take_capture(self, capture: Capture) -> None:
        """Errors of every lane that was captured."""
        table = capture.table()
        for lane, plan in capture.plans.items():
            self.plans.setdefault(lane, plan)
            self.captures[lane] = capture
            for key in CAPTURED:
                self._found[key, lane] = captured_values(table, lane, key)

    def take_sensitivity(self, lane: str, sensitivity: Sensitivity) -> None:
        """Loss of each layer alone."""
        if sensitivity.mode != "only":
            raise QkitError("the picture shows what layers cost alone: pass study.sensitivity('only').")
        self._found["loss", lane] = loss_values(sensitivity)

    def take_ranking(self, lane: str, ranking: GradientRanking) -> None:
        """Places by gradient."""
        self._found["gradient", lane] = gradient_values(ranking, self._live.graph)

    @property
    def _live(self) -> Study:
        assert self._study is not None
        return self._study

    def _plan(self, lane: str) -> Plan:
        if lane not in self.plans:
            self.plans[lane] = self._live.lane(lane)
        return self.plans[lane]

    def measuring(self, quantity: str, lanes: Sequence[str]) -> Callable[[], Callable[[], None]]:
        """What measures the quantity for these lanes, to be called in the background; what it returns keeps the result."""
        study = self._live

        def run() -> Callable[[], None]:
            plans = {lane: self._plan(lane) for lane in lanes}
            done: list[Callable[[], Any]] = []
            if quantity in CAPTURED:
                done.append(partial(self.take_capture, study.capture(plans, batches=self.batches, progress=False)))
            for lane, plan in plans.items():
                if quantity == "loss":
                    done.append(partial(self.take_sensitivity, lane, study.sensitivity("only", lane=plan, progress=False)))
                elif quantity == "gradient":
                    done.append(partial(self.take_ranking, lane, study.sensitivity("gradient", lane=plan, progress=False)))
            return partial(_all, done)

        return run


def _all(calls: Sequence[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def lanes_of(
    study: Study, lanes: Sequence[str] | Mapping[str, Plan] | None, capture: Capture | None
) -> tuple[list[str], dict[str, Plan]]:
    """Names of the lanes, and the plans that are known; by default what was captured, else 16 bits and the study's own lane.

    Raises
    ------
    QkitError
        If there is none beside float.
    """
    plans: dict[str, Plan] = {} if capture is None else dict(capture.plans)
    if isinstance(lanes, Mapping):
        plans |= lanes
        names = list(lanes)
    elif lanes is not None:
        names = [lanes] if isinstance(lanes, str) else list(lanes)
    else:
        names = list(plans) or ["int16", study.narrow]
    names = list(dict.fromkeys([*names, *plans]))
    names = [name for name in names if name != "float"]
    if not names:
        raise QkitError("there is nothing to compare with float: name a lane, such as lanes=('int8',).")
    if study.narrow in names:
        plans.setdefault(study.narrow, study.lane(study.narrow))
    return names, plans
