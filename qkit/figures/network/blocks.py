"""Operations in blocks by their module's path, which open and close.

A block is a run of operations that follow each other in the order of execution and whose paths begin alike. So a closed block
never has an edge that leaves it and comes back, whatever modules are called twice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

#: A network opens with about so many boxes at most.
MOST_BOXES = 40


@dataclass(frozen=True)
class Node:
    """One operation of the network.

    Attributes
    ----------
    name
        Unique.
    kind
        What it does, such as "conv".
    inputs
        Numbers of the nodes that it reads, all before it.
    shape
        Of its output, without the batch, as text.
    note
        What a person should know of it.
    weight
        Name of its weight; "" where it has none.
    macs
        Multiply-accumulates of a sample.
    quantized
        Whether its output has a grid of its own.
    """

    name: str
    kind: str
    inputs: tuple[int, ...] = ()
    shape: str = ""
    note: str = ""
    weight: str = ""
    macs: int = 0
    quantized: bool = True


@dataclass(frozen=True)
class Block:
    """A run of nodes under one path.

    Attributes
    ----------
    key
        Unique: the path, with ``#2`` behind it for the second run of that path.
    path
        The module's path.
    parts
        Blocks, and numbers of nodes, in the order of execution.
    depth
        0 for the whole network.
    """

    key: str
    path: tuple[str, ...]
    parts: tuple[Block | int, ...]
    depth: int = 0

    @cached_property
    def nodes(self) -> tuple[int, ...]:
        """Numbers of all nodes in it, in the order of execution."""
        return tuple(n for part in self.parts for n in (part.nodes if isinstance(part, Block) else (part,)))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """All blocks in it, at any depth, outer ones first."""
        inner = (part for part in self.parts if isinstance(part, Block))
        return tuple(block for part in inner for block in (part, *part.blocks))


@dataclass(frozen=True)
class Network:
    """Nodes in the order of execution, and their blocks."""

    nodes: tuple[Node, ...]
    root: Block = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", _root(self.nodes))

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """Every block by its key, outer ones first."""
        return {block.key: block for block in self.root.blocks}

    @cached_property
    def number(self) -> dict[str, int]:
        """A node's number by its name."""
        return {node.name: i for i, node in enumerate(self.nodes)}

    def around(self, name: str) -> tuple[str, ...]:
        """Keys of the blocks that hold a node or another block, the outermost first."""
        inner = self.blocks.get(name)
        first, depth = (self.number[name], len(self.nodes)) if inner is None else (inner.nodes[0], inner.depth)
        return tuple(key for key, block in self.blocks.items() if first in block.nodes and block.depth < depth)

    def visible(self, opened: Collection[str]) -> Iterator[Block | int]:
        """Closed blocks and single nodes, in the order of execution."""
        return _visible(self.root, opened)

    def at_depth(self, depth: int) -> frozenset[str]:
        """Keys of the blocks to open so that those `depth` levels down are closed."""
        return frozenset(key for key, block in self.blocks.items() if block.depth < depth)

    def first_view(self, most: int = MOST_BOXES) -> frozenset[str]:
        """Blocks that are open at first: as many levels as give at most so many boxes."""
        opened: frozenset[str] = frozenset()
        for depth in range(2, 2 + max((block.depth for block in self.blocks.values()), default=0)):
            more = self.at_depth(depth)
            if sum(1 for _ in self.visible(more)) > most:
                break
            opened = more
        return opened


def path_of(name: str) -> tuple[str, ...]:
    """The parts of a name: of a module's path, of a tensor of an ONNX file, of ``path:op``."""
    path, colon, operation = name.partition(":")
    parts = [part for part in re.split(r"/" if "/" in path else r"\.", path) if part]
    return (*parts, colon + operation) if colon else tuple(parts)


def short_name(path: Sequence[str], around: Sequence[str] = ()) -> str:
    """A path as it reads inside the block with the path `around`; a bare number has the block's own name before it."""
    rest = list(path[len(around) :]) or list(path[-1:])
    if rest and rest[0].isdigit() and around:
        rest.insert(0, around[-1])
    return ".".join(rest).replace(".:", ":").removeprefix(":")


def _root(nodes: Sequence[Node]) -> Block:
    paths = [path_of(node.name) for node in nodes]
    seen: dict[str, int] = {}
    return _block((), list(range(len(nodes))), paths, 0, seen, "")


def _block(
    path: tuple[str, ...], inside: Sequence[int], paths: Sequence[tuple[str, ...]], depth: int, seen: dict[str, int], key: str
) -> Block:
    at = len(path)
    parts: list[Block | int] = []
    start = 0
    while start < len(inside):
        stop = start + 1
        own = paths[inside[start]]
        head = own[at] if len(own) > at + 1 else None
        while head is not None and stop < len(inside) and len(paths[inside[stop]]) > at + 1 and paths[inside[stop]][at] == head:
            stop += 1
        run = inside[start:stop]
        if head is None or len(run) == 1:
            parts += run
        else:
            parts.append(_inner((*path, head), run, paths, depth + 1, seen))
        start = stop
    return Block(key, path, tuple(parts), depth)


def _inner(
    path: tuple[str, ...], run: Sequence[int], paths: Sequence[tuple[str, ...]], depth: int, seen: dict[str, int]
) -> Block:
    # a module that only holds another one is no block of its own
    while all(len(paths[i]) > len(path) + 1 and paths[i][len(path)] == paths[run[0]][len(path)] for i in run):
        path = paths[run[0]][: len(path) + 1]
    name = ".".join(path)
    seen[name] = seen.get(name, 0) + 1
    key = name if seen[name] == 1 else f"{name}#{seen[name]}"
    return _block(path, run, paths, depth, seen, key)


def _visible(block: Block, opened: Collection[str]) -> Iterator[Block | int]:
    for part in block.parts:
        if isinstance(part, Block) and part.key in opened:
            yield from _visible(part, opened)
        else:
            yield part
