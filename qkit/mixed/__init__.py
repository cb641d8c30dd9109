"""Mixed precision: the 16-bit layers that reach a score at the least cost, in microseconds or multiply-accumulates."""

from qkit.mixed.costs import Costs
from qkit.mixed.fewest import search
from qkit.mixed.settings import Mixed, Setting

__all__ = ["Costs", "Mixed", "Setting", "search"]
