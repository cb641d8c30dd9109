"""The network as an integer engine sees it: traced, folded, fused, with a tap at every tensor that the engine would hold."""

from qkit.graph.assembly import DEVIATION, Assembly, assemble, build, deviation
from qkit.graph.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.running import run_float
from qkit.graph.structures import float_tensors

__all__ = ["DEVIATION", "Assembly", "Graph", "Operation", "assemble", "build", "deviation", "float_tensors", "run_float"]
