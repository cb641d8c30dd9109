"""What an option takes, read off the signature that typer is given: for files, which typer does not read."""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typer.models import ArgumentInfo, OptionInfo

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Known:
    """An option.

    Attributes
    ----------
    name, key
        Of the parameter, and on the command line and in files.
    kind
        bool, int, float or str (which paths are too).
    many
        Whether it can be repeated.
    count
        Values that it takes at once.
    choices, least, most
        What a value has to be.
    default, help
        As the signature has them.
    argument
        Whether it stands without its name.
    """

    name: str
    key: str
    kind: type
    many: bool
    count: int
    choices: tuple[str, ...]
    least: float | None
    most: float | None
    default: Any
    help: str
    argument: bool

    @classmethod
    def of(cls, parameter: inspect.Parameter) -> Known:
        """From a parameter that is annotated for typer."""
        hint, info = typing.get_args(parameter.annotation)[:2]
        assert typing.get_origin(parameter.annotation) is Annotated
        assert isinstance(info, (OptionInfo, ArgumentInfo))
        parts = [part for part in typing.get_args(hint) if part is not types.NoneType] if _is_union(hint) else [hint]
        base, many, count = parts[0], False, 1
        if typing.get_origin(base) is list:
            base, many = typing.get_args(base)[0], True
        elif typing.get_origin(base) is tuple:
            base, count = typing.get_args(base)[0], len(typing.get_args(base))
        choices = typing.get_args(base) if typing.get_origin(base) is Literal else ()
        kind = str if choices or base is Path else base
        given = [n for n in (info.default, *(info.param_decls or ())) if isinstance(n, str) and n.startswith("--")]
        key = given[0].removeprefix("--") if given else parameter.name.replace("_", "-")
        return cls(
            parameter.name, key, kind, many, count, choices, info.min, info.max, parameter.default,
            " ".join((info.help or "").split()), isinstance(info, ArgumentInfo),
        )  # fmt: skip

    def refuses(self, value: Any) -> str:
        """Why a file's value is none that the option takes; empty if it is one."""
        listed = isinstance(value, list) and (self.many or self.count > 1)
        elements = value if listed else [value]
        wanted: tuple[type, ...] = (int, float) if self.kind is float else (self.kind,)
        if self.count > 1 and len(elements) != self.count:
            return f"is not a list of {self.count}"
        if not all(isinstance(v, wanted) and isinstance(v, bool) == (self.kind is bool) for v in elements):
            return f"is not {_WORDS[self.kind]}{', or a list of such' if self.many else ''}"
        for v in elements:
            if self.choices and v not in self.choices:
                return f"is none of {', '.join(self.choices)}"
            if (self.least is not None and not v >= self.least) or (self.most is not None and not v <= self.most):
                ends = [f"{word} {end:g}" for word, end in (("at least", self.least), ("at most", self.most)) if end is not None]
                return f"is not {' and '.join(ends)}"
        return ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that there is not."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(options)}"


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (types.UnionType, typing.Union)
