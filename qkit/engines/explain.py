"""Why an engine's values differ from the simulation's on equal inputs: known faults and differences, tried one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from qkit.engines.equal_inputs import Visit
from qkit.engines.faults import Fault, hypotheses
from qkit.engines.tap_comparison import Explanation, Steps, TapSums
from qkit.graph.running import execution

#: A fault is named if it brings this share of the elements within a step, and their mean distance below this part of what the
#: plain simulation leaves.
NAMED_SHARE, NAMED_PART = 0.99, 0.3
#: A tap that agrees as far as rounding goes has a fault only if that leaves this part of the distance.
_SUBTLE = 0.1
#: Elements of a tap after which no more batches are tried.
_ENOUGH = 500_000

_OWN = "codes differ by one step at most: the engine sums or rounds in another order"


class Explanations:
    """Tries each known fault at the taps that need a reason and sums up how well it does."""

    def __init__(self) -> None:
        self._plain: dict[str, Steps] = defaultdict(Steps)
        self._tried: dict[str, dict[str, tuple[Fault, Steps]]] = defaultdict(dict)

    def tried(self, visit: Visit) -> None:
        """Add a batch of a tap."""
        plain = self._plain[visit.op.name]
        if plain.count >= _ENOUGH or not bool(torch.isfinite(visit.engine).all() and torch.isfinite(visit.sums).all()):
            return
        plain.add(visit.apart(visit.simulated))
        known = self._tried[visit.op.name]
        with execution(visit.graph.device):
            for fault in hypotheses(visit):
                output = fault.output()
                if output is None:
                    continue
                _, steps = known.setdefault(fault.words, (fault, Steps()))
                # one that comes up in this batch first, such as a factor, has been tried on fewer elements
                steps.add(visit.apart(output))

    def found(self, sums: Mapping[str, TapSums]) -> dict[str, Explanation]:
        """By tap, the fault or other rounding that brings the values together, if one does."""
        found = {}
        for tap, tried in self._tried.items():
            plain = self._plain[tap]
            best: tuple[float, Explanation] | None = None
            for fault, steps in tried.values():
                whole = steps.count == plain.count or fault.kind == "scale"
                part = NAMED_PART
                if sums[tap].agrees:
                    part = NAMED_PART if fault.kind == "rounding" else _SUBTLE
                named = steps.within_one >= NAMED_SHARE and steps.distance <= part * plain.distance
                if whole and named and (best is None or steps.distance < best[0]):
                    best = steps.distance, Explanation(fault.kind, fault.words, fault.cure, steps.within_one)
            if best is not None:
                found[tap] = best[1]
        return found

    def reasons(self, sums: Mapping[str, TapSums], found: Mapping[str, Explanation]) -> dict[str, str]:
        """By tap, in words, why it differs, as far as an experiment tells."""
        words = {tap: f"the engine {fault.words}" for tap, fault in found.items()}
        for tap in self._tried:
            if tap not in found and sums[tap].agrees and sums[tap].equal.shares[0] < 1.0:
                words[tap] = _OWN
        return words
