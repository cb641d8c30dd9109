"""Mixed precision: the fewest 16-bit layers, weighted by their multiply-accumulates, that reach a score."""

from qkit.mixed.fewest import search
from qkit.mixed.settings import Mixed, Setting

__all__ = ["Mixed", "Setting", "search"]
