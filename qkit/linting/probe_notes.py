"""What a probe notes: the lines that stop a trace, and what it learned about the model on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from torch import fx, nn

Site = tuple[str, int]
BreakKind = Literal["bool", "iter", "len", "int", "float", "index", "array", "write", "format", "round", "raise", "run"]


class _Missing:
    """Stands for a value that could not be computed."""


MISSING = _Missing()


@dataclass(frozen=True)
class Break:
    """A line at which tracing ends.

    Attributes
    ----------
    kind
        What Python asked for ("bool", "iter", "len", …); "raise": another exception; "run": it traces, but does not run.
    site
        File and line; None if no line of the user's is in it.
    layer
        Path of the module whose forward was being traced.
    error
        What was raised, or what would have been.
    function
        Name of the module-level function that the line is in and the file to say ``torch.fx.wrap`` in, or None in a method.
    of_data
        Whether the value is a tensor; False for the numbers of a shape.
    skipped
        Whether the module had to be left out, so that nothing behind the line was looked at.
    """

    kind: BreakKind
    site: Site | None
    layer: str
    error: str
    function: tuple[str, str] | None = None
    of_data: bool = True
    skipped: bool = False


@dataclass(eq=False)
class Traced:
    """What a probe saw.

    Attributes
    ----------
    graph
        None if the trace did not reach the model's end. Nodes carry ``meta["path"]``, ``meta["site"]``, ``meta["value"]``
        (shape and type alone).
    breaks
        In the order of execution; a line that many modules run is there once, with the first one's path.
    repeats
        How many modules ran into a break, by its site.
    calls
        How often each module was called, by path.
    received
        By module class, the names of forward's arguments that were traced values.
    reached
        Lines that made nodes.
    shown
        Lines that made text of a traced value.
    leaves
        Modules that had to be left out, since nothing else helped.
    """

    graph: fx.Graph | None = None
    breaks: list[Break] = field(default_factory=list)
    repeats: Counter[Site] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    received: dict[type[nn.Module], set[str]] = field(default_factory=dict)
    reached: set[Site] = field(default_factory=set)
    shown: set[Site] = field(default_factory=set)
    leaves: set[str] = field(default_factory=set)
