"""The command line's page, from the commands themselves: what ``--help`` says, as tables."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer.main

_MARKUP = re.compile(r"\[/?[a-z][a-z _#0-9]*\]")


def page() -> str:
    """Markdown: a section a command, with its usage, its text and a table of its options."""
    from qkit.cli import app

    group: Any = typer.main.get_command(app)
    parts = ["# Command line", "", _prose(group.help), ""]
    parts += ["The same is printed by `qkit --help` and by `qkit COMMAND --help`.", ""]
    shared = list(_rows(group, group.make_context("qkit", [], resilient_parsing=True)))
    if shared:
        parts += ["## For all commands", "", *_table(shared)]
    for path, command in _walk(group, ("qkit",)):
        context = command.make_context(" ".join(path), [], resilient_parsing=True)
        parts += [f"## {' '.join(path)}", "", _prose(command.help), ""]
        parts += ["```text", " ".join([" ".join(path), *command.collect_usage_pieces(context)]), "```", ""]
        rows = list(_rows(command, context))
        if rows:
            parts += _table(rows)
    return "\n".join(parts) + "\n"


def _walk(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _walk(command, (*path, name))
        else:
            yield (*path, name), command


def _rows(command: Any, context: Any) -> Iterator[tuple[str, str, str]]:
    """Of every parameter its names with what they take, its default, and its help; as ``--help`` has them."""
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if getattr(parameter, "hidden", False) or "--help" in parameter.opts or record is None:
            continue
        names, text = record
        extra = re.search(r"\s*\[((?:default:|required|x[<>]|[\d.]+<)[^\]]*)\]$", text)
        said = extra[1].removeprefix("default: ") if extra else ""
        yield f"`{names.replace('|', ' | ')}`", said, _prose(text[: extra.start()] if extra else text)


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    lines = ["| option | default | |", "|---|---|---|"]
    lines += ["| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [*lines, ""]


def _prose(text: str | None) -> str:
    """Help text without the terminal's colours; marks of paragraphs that are kept as they are become blocks of code."""
    plain = _MARKUP.sub("", inspect.cleandoc(text or ""))
    parts = []
    for part in plain.replace("\f", "").split("\n\n"):
        if part.startswith("\b"):
            parts.append("```text\n" + part.removeprefix("\b").strip("\n") + "\n```")
        else:
            parts.append(part)
    return "\n\n".join(parts)
