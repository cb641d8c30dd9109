"""Boxes in layers, so that edges go down: one level of the network's picture.

The method is that of Gansner, Koutsofios, North and Vo, "A technique for drawing directed graphs" (IEEE Transactions on Software
Engineering 19, 1993), which Graphviz' ``dot`` is made of: layers and places are the answers of two linear programs, which scipy's
HiGHS solves; the order within a layer comes from sweeps by barycentre between them. One tensor that several operations read runs
in one lane, so that dense connections stay readable.

Equal input gives equal output: nothing is drawn at random, and ties keep the order given.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

#: Units between boxes of a layer, and between layers.
ACROSS, DOWN = 18.0, 26.0
#: Width that a passing edge takes.
_LANE = 10.0
_SWEEPS = 8
#: What a unit of slant costs between boxes, box and lane, lane and lane: the main path is to be straight, and so are long edges.
_WEIGHTS = (4.0, 1.0, 4.0)

Point = tuple[float, float]


@dataclass(frozen=True)
class Link:
    """An edge between two boxes of a level.

    Attributes
    ----------
    source, target
        Numbers of the boxes.
    out, into
        Where it leaves and enters, from the boxes' middles.
    tensor
        What it carries: links of one box with the same tensor share their lane.
    """

    source: int
    target: int
    out: float = 0.0
    into: float = 0.0
    tensor: int = 0


@dataclass(frozen=True)
class Level:
    """Places: `left` and `top` of every box, `routes` of every link from the source's bottom to the target's top."""

    left: tuple[float, ...]
    top: tuple[float, ...]
    ranks: tuple[int, ...]
    routes: tuple[tuple[Point, ...], ...]
    width: float
    height: float


@dataclass
class _Cells:
    """Boxes and the passing places of long links, as the places' program sees them."""

    widths: list[float]
    ranks: list[int]
    links: list[tuple[int, int, float, float]] = field(default_factory=list)  # upper, lower, and where on them
    ways: list[list[int]] = field(default_factory=list)  # passing places of each link of the level
    boxes: int = 0

    def weight(self, upper: int, lower: int) -> float:
        return _WEIGHTS[(upper >= self.boxes) + (lower >= self.boxes)]


def arrange(
    sizes: Sequence[tuple[float, float]], links: Sequence[Link], *, first: Sequence[int] = (), last: Sequence[int] = ()
) -> Level:
    """Place boxes so that every link goes down and none lies on another.

    Parameters
    ----------
    sizes
        Width and height of every box.
    links
        Without cycles.
    first, last
        Boxes that stand above and below all others: where links enter and leave the level.
    """
    if not sizes:
        return Level((), (), (), (), 0.0, 0.0)
    # networks repeat their blocks: what differs between two like ones are the numbers of their tensors
    tensors: dict[int, int] = {}
    alike = [replace(link, tensor=tensors.setdefault(link.tensor, len(tensors))) for link in links]
    return _arranged(tuple(sizes), tuple(alike), tuple(first), tuple(last))


@functools.lru_cache(maxsize=512)
def _arranged(
    sizes: tuple[tuple[float, float], ...], links: tuple[Link, ...], first: tuple[int, ...], last: tuple[int, ...]
) -> Level:
    ranks = _ranks(len(sizes), links, first, last)
    cells = _cells(sizes, links, ranks)
    order = _order(cells)
    middle = _places(cells, order)
    return _level(sizes, links, cells, middle)


def _ranks(count: int, links: Sequence[Link], first: Sequence[int], last: Sequence[int]) -> list[int]:
    """The layer of every box: the links together as short as they can be."""
    pairs = list(dict.fromkeys((link.source, link.target) for link in links))
    if not first and not last and _is_chain(count, pairs):
        return _along(count, pairs)
    top, bottom = count, count + 1
    stand_in = dict.fromkeys(first, top) | dict.fromkeys(last, bottom)
    inner = [box for box in range(count) if box not in stand_in]
    below = [(stand_in.get(a, a), stand_in.get(b, b)) for a, b in pairs]
    # the frame's own: nothing above the first, nothing below the last
    bounds = [(top, box) for box in inner if first] + [(box, bottom) for box in inner if last]
    # what no link holds is at the top, so that there is always an answer
    cost = np.full(count + 2, 1e-6)
    for a, b in below:
        cost[a] -= 1.0
        cost[b] += 1.0
    answer = _solve(cost, [*below, *bounds], np.ones(len(below) + len(bounds)), integral=True)
    found = [round(float(answer[stand_in.get(box, box)])) for box in range(count)]
    least = min(found)
    return [rank - least for rank in found]


def _is_chain(count: int, pairs: Sequence[tuple[int, int]]) -> bool:
    ends = [0] * count, [0] * count
    for a, b in pairs:
        ends[0][a] += 1
        ends[1][b] += 1
    return len(pairs) == count - 1 and max(*ends[0], *ends[1], 0) <= 1


def _along(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    after = dict(pairs)
    at = next(box for box in range(count) if box not in after.values())
    ranks = [0] * count
    for rank in range(count):
        ranks[at] = rank
        at = after.get(at, at)
    return ranks


def _solve(
    cost: np.ndarray,
    apart: Sequence[tuple[int, int]],
    least: np.ndarray,
    slanted: Sequence[tuple[int, int, float, float]] = (),
    *,
    integral: bool = False,
) -> np.ndarray:
    """Values x of the least cost, where pairs apart have ``x[b] - x[a] >= least``; slanted ones add ``|x[a] + o - x[b]|``."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    count, many = len(cost), len(slanted)
    rows, columns, values = [], [], []
    for i, (a, b) in enumerate(apart):
        rows += [i, i]
        columns += [a, b]
        values += [1.0, -1.0]
    right = list(-np.asarray(least, float))
    for k, (a, b, offset, _) in enumerate(slanted):
        for sign in (1.0, -1.0):
            i = len(right)
            rows += [i, i, i]
            columns += [a, b, count + k]
            values += [sign, -sign, -1.0]
            right.append(-sign * offset)
    whole = np.concatenate([cost, [weight for *_, weight in slanted]])
    matrix = coo_array((values, (rows, columns)), shape=(len(right), count + many)).tocsr()
    answer = linprog(whole, A_ub=matrix, b_ub=right, bounds=(0, None), method="highs-ds" if integral else "highs")
    if answer.x is None:
        raise ValueError(f"the layout has no answer ({answer.message}): the links form a cycle")
    return np.asarray(answer.x[:count])


def _cells(sizes: Sequence[tuple[float, float]], links: Sequence[Link], ranks: list[int]) -> _Cells:
    cells = _Cells([width for width, _ in sizes], list(ranks), boxes=len(sizes))
    lanes: dict[tuple[int, int, float], dict[int, int]] = defaultdict(dict)
    known: set[tuple[int, int, float, float]] = set()

    def join(upper: int, lower: int, out: float, into: float) -> None:
        if (upper, lower, out, into) not in known:
            known.add((upper, lower, out, into))
            cells.links.append((upper, lower, out, into))

    for link in links:
        lane = lanes[link.source, link.tensor, link.out]
        at, out, way = link.source, link.out, []
        for rank in range(ranks[link.source] + 1, ranks[link.target]):
            if rank not in lane:
                lane[rank] = len(cells.widths)
                cells.widths.append(_LANE)
                cells.ranks.append(rank)
            join(at, lane[rank], out, 0.0)
            at, out = lane[rank], 0.0
            way.append(at)
        join(at, link.target, out, link.into)
        cells.ways.append(way)
    return cells


def _order(cells: _Cells) -> list[list[int]]:
    """The order within each layer: sweeps by barycentre, of which the one with the fewest crossings stays."""
    layers: list[list[int]] = [[] for _ in range(max(cells.ranks) + 1)]
    for cell, rank in enumerate(cells.ranks):
        layers[rank].append(cell)
    if all(len(layer) <= 1 for layer in layers):
        return layers
    up: dict[int, list[tuple[int, float]]] = defaultdict(list)
    down: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for a, b, out, into in cells.links:
        # several ways out of one box keep the order of the places they leave from
        down[a].append((b, into / (cells.widths[b] + 1.0)))
        up[b].append((a, out / (cells.widths[a] + 1.0)))
    best, fewest = layers, _crossings(cells, layers)
    for sweep in range(_SWEEPS):
        if not fewest:
            break
        layers = [list(layer) for layer in layers]
        towards = up if sweep % 2 == 0 else down
        walk = range(1, len(layers)) if sweep % 2 == 0 else range(len(layers) - 2, -1, -1)
        for rank in walk:
            place = {cell: float(i) for i, cell in enumerate(layers[rank - 1 if sweep % 2 == 0 else rank + 1])}
            own = {cell: i for i, cell in enumerate(layers[rank])}
            weights = {cell: _middle([place[other] + off for other, off in towards[cell]], own[cell]) for cell in layers[rank]}
            layers[rank].sort(key=lambda cell, weights=weights: weights[cell])  # type: ignore[misc]
        crossings = _crossings(cells, layers)
        if crossings < fewest:
            best, fewest = layers, crossings
    return best


def _middle(places: Sequence[float], otherwise: float) -> float:
    return sum(places) / len(places) if places else otherwise


def _crossings(cells: _Cells, layers: Sequence[Sequence[int]]) -> int:
    place = {cell: i for layer in layers for i, cell in enumerate(layer)}
    by_rank: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for a, b, out, into in cells.links:
        start, end = place[a] + out / (cells.widths[a] + 1.0), place[b] + into / (cells.widths[b] + 1.0)
        by_rank[cells.ranks[a]].append((start, end))
    found = 0
    for pairs in by_rank.values():
        if len(pairs) > 1:
            starts, ends = np.array(pairs).T
            crossed = (starts[:, None] < starts) & (ends[:, None] > ends)
            found += int(crossed.sum())
    return found


def _places(cells: _Cells, order: Sequence[Sequence[int]]) -> np.ndarray:
    """The middle of every cell from the left."""
    apart, least = [], []
    for layer in order:
        for a, b in itertools.pairwise(layer):
            apart.append((a, b))
            least.append((cells.widths[a] + cells.widths[b]) / 2 + ACROSS)
    slanted = [(a, b, out - into, cells.weight(a, b)) for a, b, out, into in cells.links]
    count = len(cells.widths)
    if not apart and all(out == into for _, _, out, into in cells.links):
        middle = np.zeros(count)
    else:
        middle = _solve(np.full(count, 1e-6), apart, np.array(least), slanted)
    left = min(float(middle[i]) - cells.widths[i] / 2 for i in range(count))
    return np.round(middle - left, 6)


def _level(sizes: Sequence[tuple[float, float]], links: Sequence[Link], cells: _Cells, middle: np.ndarray) -> Level:
    layers = max(cells.ranks) + 1
    heights = [0.0] * layers
    for (_, height), rank in zip(sizes, cells.ranks, strict=False):
        heights[rank] = max(heights[rank], height)
    tops = [sum(heights[:rank]) + DOWN * rank for rank in range(layers)]
    left = tuple(float(middle[i]) - sizes[i][0] / 2 for i in range(len(sizes)))
    top = tuple(tops[rank] + (heights[rank] - sizes[i][1]) / 2 for i, rank in enumerate(cells.ranks[: len(sizes)]))
    routes = []
    for link, way in zip(links, cells.ways, strict=True):
        a, b = link.source, link.target
        points = [(float(middle[a]) + link.out, top[a] + sizes[a][1])]
        if points[0][1] < (floor := tops[cells.ranks[a]] + heights[cells.ranks[a]]):
            points.append((points[0][0], floor))
        for cell in way:
            x, rank = float(middle[cell]), cells.ranks[cell]
            points += [(x, tops[rank]), (x, tops[rank] + heights[rank])]
        end = float(middle[b]) + link.into
        if top[b] > tops[cells.ranks[b]]:
            points.append((end, tops[cells.ranks[b]]))
        points.append((end, top[b]))
        routes.append(tuple(points))
    width = max(float(middle[i]) + cells.widths[i] / 2 for i in range(len(cells.widths)))
    return Level(left, top, tuple(cells.ranks[: len(sizes)]), tuple(routes), width, tops[-1] + heights[-1])
