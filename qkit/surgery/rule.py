"""What a rule of surgery answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False)
class Replacement:
    """The module to put in a module's place, what to call it, and whether it computes the same."""

    module: nn.Module
    text: str
    exact: bool


@dataclass(frozen=True)
class Refused:
    """The rule speaks of the module, and cannot replace it, for this reason."""

    reason: str


Outcome = Replacement | Refused | None
#: ``rule(module)``: None where it does not apply. The module is of the copy and its parameters may be reused.
Rule = Callable[[nn.Module], Outcome]
