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
        if getattr(command, "epilog", None):
            parts += [_examples(command.epilog), ""]
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
        said = "" if extra is None else extra[1]
        text = text if extra is None else text[: extra.start()]
        # the choices of an option and its bounds are told beside its help, where there is room
        choices = re.search(r" [<\[]([^<>\[\]]*\|[^<>\[\]]*)[>\]]", names)
        if choices:
            names = names.replace(choices[0], "")
            text = f"{text} One of {', '.join(f'`{each.strip()}`' for each in choices[1].split('|'))}."
        bounds = [part for part in said.split("; ") if "<" in part or ">" in part]
        text = f"{text} {', '.join(f'`{bound}`' for bound in bounds)}" if bounds else text
        default = "; ".join(part for part in said.split("; ") if part and part not in bounds).removeprefix("default: ")
        yield f"`{names}`", default if default in ("", "required") else f"`{default}`", _prose(text)


def _table(rows: list[tuple[str, str, str]]) -> list[str]:
    lines = ["| option | default | |", "|---|---|---|"]
    lines += ["| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [*lines, ""]


def _examples(text: str) -> str:
    """What stands below a command's help: lines that are commands become a block of code, the rest stays text."""
    parts = []
    for part in re.split(r"\n\s*\n", _MARKUP.sub("", text)):
        line = part.strip()
        if line.startswith("qkit "):
            parts.append(f"```text\n{line}\n```")
        elif line != "Examples":
            parts.append(_prose(line))
    return "\n\n".join(parts).replace("\n```\n\n```text", "")


def _prose(text: str | None) -> str:
    """Help text without the terminal's colours; marks of paragraphs that are kept as they are become blocks of code."""
    # an option's two dashes would be one dash of a sentence
    plain = re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)", r"`\1`", _MARKUP.sub("", inspect.cleandoc(text or "")))
    parts = []
    for part in plain.replace("\f", "").split("\n\n"):
        if part.startswith("\b"):
            parts.append("```text\n" + part.removeprefix("\b").strip("\n") + "\n```")
        else:
            parts.append(part)
    return "\n\n".join(parts)
