"""The configuration file: TOML with a table per command, and ``[defaults]`` for all commands that know the option.

.. code-block:: toml

    [defaults]
    model = "resnet50"
    weights = "resnet50.pth"
    data = "images"

    [report]
    out = ["report.html", "report.json"]

Keys are the options' names. The command line wins over the command's table, which wins over ``[defaults]``. Paths are relative to
the working directory, as on the command line. Every key and value is checked, those of other commands' tables too.
"""

from __future__ import annotations

import json
import shlex
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from qkit import files
from qkit.commands.option_types import Known, nearest
from qkit.errors import QkitError
from qkit.version import __version__

#: Table whose keys hold for all commands.
DEFAULTS = "defaults"
#: Command -> key -> option, of all commands that take a configuration; filled as they are made.
COMMANDS: dict[str, dict[str, Known]] = {}
_MARK = "# qkit "


def load(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options of the file as the command's defaults: the callback of ``--config``."""
    if path is not None and not context.resilient_parsing:
        context.default_map = values(path, context.info_name or "")
    return path


def values(path: Path, name: str) -> dict[str, Any]:
    """The command's options by parameter name, from ``[defaults]`` and its own table.

    Raises
    ------
    QkitError
        If the file cannot be read, or a table, a key or a value is none that there is; names the nearest one.
    """
    document = _document(path)
    everywhere = {key: option for options in COMMANDS.values() for key, option in options.items()}
    found: dict[str, Any] = {}
    for table in sorted(document, key=lambda t: t != DEFAULTS):
        if not isinstance(document[table], Mapping):
            raise QkitError(f"{path}: {table} = {document[table]!r} stands in no table: put it under [{DEFAULTS}].")
        if table != DEFAULTS and table not in COMMANDS:
            raise QkitError(f"{path} has a table [{table}], which is no command{nearest(table, [DEFAULTS, *COMMANDS])}.")
        options = everywhere if table == DEFAULTS else COMMANDS[table]
        for key, value in document[table].items():
            plain = key.replace("_", "-")
            if plain not in options:
                raise QkitError(f"{path}: [{table}] has no option {key!r}{nearest(plain, options)}.")
            own = COMMANDS[name].get(plain)
            if table == DEFAULTS and own is not None:
                options[plain] = own
            if wrong := options[plain].refuses(value):
                raise QkitError(f"{path}: [{table}] {key} = {value!r} {wrong}.")
            if own is not None and table in (name, DEFAULTS):
                found[own.name] = value
    return found


def save(context: typer.Context, path: Path) -> None:
    """Write the options of this run, defaults too: the same command with ``--config`` repeats it.

    Raises
    ------
    QkitError
        If the file is not one that this function wrote, or cannot be written.
    """
    name = context.info_name or ""
    chosen = {key: context.params.get(option.name) for key, option in COMMANDS[name].items()}
    first = f"{_MARK}{__version__}: the options of a run, repeated by `qkit {name} --config {path}`\n"
    write(path, first + table(name, chosen))


def line(context: typer.Context) -> str:
    """The run as one line of shell, without a configuration file: what differs from the defaults."""
    name = context.info_name or ""
    words = ["qkit", name]
    for key, option in COMMANDS.get(name, {}).items():
        value = context.params.get(option.name)
        if value is None or value == option.default:
            continue
        if option.argument:
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(f"--{key}" if value else f"--no-{key}")
        elif option.many:
            words += [word for item in value for word in (f"--{key}", str(item))]
        else:
            words += [f"--{key}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return shlex.join(words)


def write(path: Path, text: str) -> None:
    """Write a configuration, over nothing but an earlier one."""
    files.prepare(path)
    if path.is_file() and not files.read_text(path, "a configuration").startswith(_MARK):
        raise QkitError(f"{path} was not written by qkit: name another file for the configuration, or remove it.")
    files.write_text(path, text)


def template(command: str, chosen: Mapping[str, Any]) -> str:
    """A command's table with every option, its help as a comment; options without a value are comments too."""
    lines = [f"[{command}]"]
    for key, option in COMMANDS[command].items():
        value = chosen.get(option.name, option.default)
        lines += textwrap.wrap(option.help, 110, initial_indent="# ", subsequent_indent="# ")
        lines.append(f"# {key} =" if value is None else f"{key} = {toml(value)}")
    return "\n".join(lines) + "\n"


def effective(command: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A command's options by key, those in `chosen` by parameter name, as plain data."""
    found = {key: chosen.get(option.name, option.default) for key, option in COMMANDS[command].items()}
    return {key: str(value) if isinstance(value, Path) else value for key, value in found.items()}


def table(name: str, chosen: Mapping[str, Any]) -> str:
    """A table of options that have a value."""
    return "\n".join([f"[{name}]", *(f"{key} = {toml(value)}" for key, value in chosen.items() if value is not None)]) + "\n"


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    # JSON's escapes are TOML's, but for the one character that JSON leaves as it is
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def mark() -> str:
    """The first line of a file that may be written over."""
    return f"{_MARK}{__version__}: options of the commands; delete what is to stay as it is\n"


def _document(path: Path) -> dict[str, Any]:
    text = files.read_text(path, "a configuration")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise QkitError(f"{path} is no TOML: {error}.") from error
