"""An engine made of the kit's executor: the plan's lane, but for what is planted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from qkit.engines.lane import EngineBatch, EngineTensor
from qkit.execution.lanes import Lane, finish_value, run_lanes
from qkit.execution.loading import batches
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.grids import QuantParams
from qkit.quant.plan import Plan

#: ``round(step, sums, params)``: activation and rounding in the engine's own way.
Round = Callable[[Operation, Tensor, "QuantParams | None"], Tensor]


def as_the_kit_rounds(op: Operation, y: Tensor, params: QuantParams | None) -> Tensor:
    """The kit's own activation and rounding."""
    return finish_value(op, y, params, ("",), None)


@dataclass(frozen=True)
class Change:
    """What one step does otherwise: another call, another rounding, or something done to its finished output."""

    call: Callable[..., Any] | None = None
    round: Round | None = None
    output: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class PlantedLane:
    """The plan's lane on the graph, with `changes` by step and, in all other steps, `round`.

    Attributes
    ----------
    hidden
        Taps that the engine does not write.
    """

    name: str
    bits: int
    graph: Graph
    plan: Plan
    changes: Mapping[str, Change] = field(default_factory=dict)
    round: Round = as_the_kit_rounds
    hidden: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def run(self, loader: Iterable[Any], *, limit: int | None = None) -> Iterator[EngineBatch]:
        """Batches as any engine's lane gives them."""
        graph = self._changed()
        for batch in batches(loader, limit):
            taps: dict[str, EngineTensor] = {}

            def look(op: Operation, values: Mapping[str, Tensor], taps: dict[str, EngineTensor] = taps) -> None:
                if op.name not in self.hidden:
                    taps[op.name] = EngineTensor(values["engine"])

            lanes = [Lane("engine", self.plan)]
            outputs = run_lanes(graph, lanes, batch.inputs, finish=self._finish, observe=look)
            yield EngineBatch(batch, taps, outputs["engine"])

    def _finish(
        self, op: Operation, y: Tensor, params: QuantParams | None, lanes: tuple[str, ...], reference: Tensor | None
    ) -> Tensor:
        change = self.changes.get(op.name, Change())
        value = (change.round or self.round)(op, y, params)
        return value if change.output is None else change.output(value).contiguous()

    def _changed(self) -> Graph:
        def changed(op: Operation) -> Operation:
            change = self.changes.get(op.name)
            return op if change is None or change.call is None else replace(op, call=change.call)

        return replace(self.graph, operations=tuple(map(changed, self.graph.operations)))
