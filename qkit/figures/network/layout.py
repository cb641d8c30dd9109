"""Where everything is: boxes of operations and closed blocks, frames of open ones, edges between them.

An open block is laid out by itself and then takes its place as one large box, so that no two boxes can overlap, and what opens
moves nothing inside the other blocks. An edge that enters or leaves an open block passes a gate in its frame, one a tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qkit.figures.network.blocks import Block, Network, path_of, short_name
from qkit.figures.network.layered import Link, Point, arrange

#: Units of a box; of a frame's head and margin; of a gate.
BOX = (176.0, 46.0)
_HEAD, _MARGIN = 24.0, 14.0
_GATE = (12.0, 0.0)


@dataclass(frozen=True)
class Box:
    """One box.

    Attributes
    ----------
    key
        Name of the operation, or key of the block.
    title
        What is written in it.
    left, top, width, height
        In the picture's units.
    nodes
        Numbers of the nodes that it stands for.
    block
        Whether it is a block.
    opened
        Whether it is an open block's frame.
    depth
        Frames around it.
    """

    key: str
    title: str
    left: float
    top: float
    width: float
    height: float
    nodes: tuple[int, ...]
    block: bool = False
    opened: bool = False
    depth: int = 0


@dataclass(frozen=True)
class Edge:
    """One piece of an edge, from the bottom of a box or a gate down to the top of another.

    Attributes
    ----------
    points
        From top to bottom.
    tensor
        Number of the node whose output it carries.
    skip
        Whether it passes other layers on its way.
    arrow
        Whether it ends at a box, not at a gate.
    """

    points: tuple[Point, ...]
    tensor: int
    skip: bool
    arrow: bool


@dataclass(frozen=True)
class Layout:
    """The whole picture.

    Attributes
    ----------
    boxes
        Frames before what is in them.
    edges
        Pieces of edges.
    after
        Numbers of boxes that each box leads to; none for frames.
    """

    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    after: tuple[tuple[int, ...], ...]
    width: float
    height: float


@dataclass(frozen=True)
class _Laid:
    """A block's inside, from its own upper left corner; the gates' places from its middle, by tensor."""

    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    width: float
    height: float
    into: Mapping[int, float]
    out: Mapping[int, float]


def layout(network: Network, opened: Collection[str] = ()) -> Layout:
    """Lay the network out with these blocks open, the others closed."""
    readers: dict[int, list[int]] = {}
    for number, node in enumerate(network.nodes):
        for source in dict.fromkeys(node.inputs):
            readers.setdefault(source, []).append(number)
    laid = _lay(network, network.root, (), frozenset(opened), readers)
    shown = {node: i for i, box in enumerate(laid.boxes) if not box.opened for node in box.nodes}
    after: list[dict[int, None]] = [{} for _ in laid.boxes]
    for number, node in enumerate(network.nodes):
        for source in node.inputs:
            if shown[source] != shown[number]:
                after[shown[source]][shown[number]] = None
    return Layout(laid.boxes, laid.edges, tuple(tuple(boxes) for boxes in after), laid.width, laid.height)


def _lay(
    network: Network, block: Block, around: tuple[str, ...], opened: frozenset[str], readers: Mapping[int, list[int]]
) -> _Laid:
    whole = block is network.root
    inside = set(block.nodes)
    children: list[tuple[Block | int, _Laid | None]] = [
        (part, _lay(network, part, block.path, opened, readers) if isinstance(part, Block) and part.key in opened else None)
        for part in block.parts
    ]
    owner = {node: i for i, (part, _) in enumerate(children) for node in (part.nodes if isinstance(part, Block) else (part,))}
    sizes = [(laid.width, laid.height) if laid else BOX for _, laid in children]
    # what comes in from outside, and what is read outside
    sources = dict.fromkeys(s for node in block.nodes for s in network.nodes[node].inputs if s not in inside)
    results = [node for node in block.nodes if any(reader not in inside for reader in readers.get(node, ()))]
    entry = {tensor: len(sizes) + i for i, tensor in enumerate(sources)} if not whole else {}
    leave = {tensor: len(sizes) + len(entry) + i for i, tensor in enumerate(results)} if not whole else {}
    sizes += [_GATE] * (len(entry) + len(leave))

    links: dict[Link, None] = {}
    for node in block.nodes:
        for source in network.nodes[node].inputs:
            a, b = owner.get(source, entry.get(source)), owner[node]
            if a is not None and a != b:
                links[_link(children, a, b, source, a < len(children), True)] = None
        if node in leave:
            links[_link(children, owner[node], leave[node], node, True, False)] = None
    found = list(links)
    level = arrange(sizes, found, first=tuple(entry.values()), last=tuple(leave.values()))

    margin, head = (0.0, 0.0) if whole else (_MARGIN, _HEAD)
    title = short_name(block.path, around)
    width = max(level.width + 2 * margin, 0.0 if whole else 8.0 * len(title) + 60.0)
    across = (width - level.width) / 2
    down = head
    height = level.height + head + (0.0 if whole else _MARGIN * (not leave))
    boxes: list[Box] = []
    edges: list[Edge] = []
    if not whole:
        boxes.append(Box(block.key, title, 0.0, 0.0, width, height, block.nodes, True, True, block.depth - 1))
    for i, (part, laid) in enumerate(children):
        left, top = level.left[i] + across, level.top[i] + down
        if laid:
            boxes += [_moved_box(box, left, top) for box in laid.boxes]
            edges += [_moved_edge(edge, left, top) for edge in laid.edges]
        elif isinstance(part, Block):
            boxes.append(Box(part.key, short_name(part.path, block.path), left, top, *BOX, part.nodes, True, depth=block.depth))
        else:
            name = network.nodes[part].name
            boxes.append(Box(name, short_name(path_of(name), block.path), left, top, *BOX, (part,), depth=block.depth))
    for link, route in zip(found, level.routes, strict=True):
        points = [(x + across, y + down) for x, y in route]
        if link.source in entry.values():  # from the frame itself, through its head
            points.insert(0, (points[0][0], 0.0))
        if link.target in leave.values():
            points.append((points[-1][0], height))
        skip = level.ranks[link.target] - level.ranks[link.source] > 1
        into = children[link.target][1] if link.target < len(children) else None
        edges.append(Edge(tuple(points), link.tensor, skip, link.target < len(children) and into is None))
    gate = {tensor: level.left[i] + across + _GATE[0] / 2 - width / 2 for tensor, i in (*entry.items(), *leave.items())}
    into_gates = {tensor: gate[tensor] for tensor in entry}
    out_gates = {tensor: gate[tensor] for tensor in leave}
    return _Laid(tuple(boxes), tuple(edges), width, height, into_gates, out_gates)


def _link(
    children: list[tuple[Block | int, _Laid | None]], a: int, b: int, tensor: int, from_child: bool, to_child: bool
) -> Link:
    upper = children[a][1] if from_child else None
    lower = children[b][1] if to_child else None
    return Link(
        a,
        b,
        upper.out[tensor] if upper else 0.0,
        lower.into[tensor] if lower else 0.0,
        # two tensors between closed boxes are one line
        tensor if upper or lower else min(_nodes(children, a), default=tensor) if from_child else tensor,
    )


def _nodes(children: list[tuple[Block | int, _Laid | None]], i: int) -> tuple[int, ...]:
    part = children[i][0]
    return part.nodes if isinstance(part, Block) else (part,)


def _moved_box(box: Box, left: float, top: float) -> Box:
    return Box(
        box.key, box.title, box.left + left, box.top + top, box.width, box.height, box.nodes, box.block, box.opened, box.depth
    )


def _moved_edge(edge: Edge, left: float, top: float) -> Edge:
    return Edge(tuple((x + left, y + top) for x, y in edge.points), edge.tensor, edge.skip, edge.arrow)
