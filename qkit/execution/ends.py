"""What an integer form computes between: its operands' grids, its output's, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from qkit.quant.arithmetic import Arithmetic
from qkit.quant.grids import QuantParams
from qkit.quant.integer.rescaling import MULTIPLIER_BITS, Multiplier, multiplier, rescale


@dataclass(frozen=True)
class Setting:
    """How a plan computes: its forms, and the width of its accumulators."""

    arithmetic: Arithmetic
    accumulator_bits: int | None = None

    @property
    def multiplier_bits(self) -> int:
        """Bits of the multipliers in front of grids: where those are ideal, as many as a float64 has."""
        return MULTIPLIER_BITS if self.arithmetic.rescale == "multiplier" else 53


@dataclass(frozen=True, eq=False)
class Ends:
    """Between which grids, each with one scale, an operation computes, and how."""

    grids: Sequence[QuantParams]
    target: QuantParams
    setting: Setting

    @property
    def scale(self) -> float:
        """The output's."""
        return float(self.target.scale)

    @property
    def step(self) -> float:
        """Scale of the first operand."""
        return float(self.grids[0].scale)

    @property
    def reach(self) -> int:
        """Greatest magnitude of the first operand's codes less the zero point."""
        return self.grids[0].reach

    @property
    def product_step(self) -> float:
        """What 1 stands for in a product of the first two operands' codes."""
        return float(self.grids[0].scale.double() * self.grids[1].scale.double())

    @property
    def product_reach(self) -> int:
        """Greatest magnitude of such a product."""
        return self.grids[0].reach * self.grids[1].reach

    def multiplier(self, step: float, greatest: float) -> Multiplier:
        """What brings numbers with that step and bound to the output's grid."""
        return multiplier(step / self.scale, greatest, self.setting.multiplier_bits)

    def reached(self, x: Tensor, step: float, greatest: float) -> Tensor:
        """Such numbers as codes less the output's zero point, int64."""
        return rescale(x, self.multiplier(step, greatest))
