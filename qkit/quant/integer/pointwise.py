"""Functions of one number by tables: of every code up to 8 bits, and between nodes above.

A table of every code holds, for the code ``q``, the code next to ``f(scale * (q - zero))`` on the output's grid, computed in
float64: that is the best an integer engine can do, by definition.

Wider codes are looked up between ``2**9 + 2`` nodes, every 128 codes of 16 bits, one of them at 0, where many functions have a
kink: ``base + (slope * offset + half) >> shift``, in 32 bits. Where the function bends to one side, each node is moved by half
of what the straight line to the next misses in the middle, as in gemmlowp and TensorFlow Lite. Between nodes ``h`` apart a
function misses at most ``h² max|f''| / 8`` (of which moving takes about half), and rounding nodes and result one step more;
`deviation` measures it on every code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qkit.quant.grids import QuantParams

Function = Callable[[Tensor], Tensor]

#: Codes up to this width have a table of every code.
TABLE_BITS = 8
#: Above it, tables have ``2**NODE_BITS + 2`` nodes.
NODE_BITS = 9
#: Nodes are 32-bit integers: they may lie beyond the output's grid.
_FAR = 2.0**30


@dataclass(frozen=True, eq=False)
class Table:
    """A function's codes on the output's grid by the input's.

    Attributes
    ----------
    nodes
        int64: codes less the output's zero point, at every ``2**shift``-th code of the input.
    shift
        0 where every code has its own.
    ahead
        How many codes before the input's least one the first node lies.
    least, greatest
        Of the result, less the zero point.
    """

    nodes: Tensor
    shift: int
    ahead: int
    least: int
    greatest: int

    def __call__(self, index: Tensor) -> Tensor:
        """Output codes less their zero point, int64, for input codes less the least one, int64; the same shape."""
        nodes = self.nodes.to(index.device)
        if not self.shift:
            return nodes[index]
        index = index + self.ahead
        at = index >> self.shift
        base, offset = nodes[at], index & ((1 << self.shift) - 1)
        between = ((nodes[at + 1] - base) * offset + (1 << (self.shift - 1))) >> self.shift
        return (base + between).clamp_(self.least, self.greatest)


def table(function: Function, source: QuantParams, target: QuantParams, *, node_bits: int = NODE_BITS) -> Table:
    """The table of a function between two grids with one scale each.

    Parameters
    ----------
    function
        Takes and gives float64, elementwise. What is no number becomes the least code, what is infinite the end of the grid.
    node_bits
        Nodes of a table that has not every code, as a power of two.
    """
    zero = int(target.zero_point)
    least, greatest = target.qmin - zero, target.qmax - zero
    count = source.qmax - source.qmin + 1
    if source.bits <= TABLE_BITS:
        return Table(_nearest(function, source, target, torch.arange(count)).clamp_(least, greatest), 0, 0, least, greatest)
    shift = max(source.bits - node_bits, 1)
    ahead = -(int(source.zero_point) - source.qmin) % (1 << shift)
    nodes = torch.arange(-ahead, count + (1 << shift), 1 << shift)
    found = _scaled(function, source, target, nodes)
    middle = _scaled(function, source, target, nodes[:-1] + (1 << (shift - 1)))
    missed = middle - (found[:-1] + found[1:]) / 2
    # by both neighbours' middles, but not across a kink: the lines then miss about as much above as below
    moved = found.clone()
    moved[1:-1] += torch.where(missed[1:] * missed[:-1] > 0, missed[1:] + missed[:-1], 0.0) / 4
    return Table(moved.round_().clamp_(-_FAR, _FAR).long(), shift, ahead, least, greatest)


def deviation(function: Function, source: QuantParams, target: QuantParams, by: Table) -> float:
    """How far a table's result is from the nearest code at most, over every code of the input, in steps of the output."""
    index = torch.arange(source.qmax - source.qmin + 1)
    exact = _scaled(function, source, target, index).clamp_(by.least, by.greatest)
    return float((by(index).double() - exact.round()).abs().max())


def _nearest(function: Function, source: QuantParams, target: QuantParams, index: Tensor) -> Tensor:
    return _scaled(function, source, target, index).round_().clamp_(-_FAR, _FAR).long()


def _scaled(function: Function, source: QuantParams, target: QuantParams, index: Tensor) -> Tensor:
    """The function's values in steps of the output's grid, float64, at input codes less the least one."""
    x = (index + (source.qmin - int(source.zero_point))).double() * source.scale.double()
    y = function(x).double() / target.scale.double()
    return torch.nan_to_num(y, nan=-_FAR, posinf=_FAR, neginf=-_FAR).clamp_(-_FAR, _FAR)
