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

import difflib
import functools
import json
import shlex
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer.main

from qkit import files
from qkit.errors import QkitError
from qkit.version import __version__

#: Table whose keys hold for all commands.
DEFAULTS = "defaults"
#: Name -> the function that typer is given, of all commands that take a configuration; filled as they are made.
COMMANDS: dict[str, Callable[..., None]] = {}
#: Options that no file holds.
_OWN = ("config", "write_config")
_MARK = "# qkit "


@functools.cache
def options(command: str) -> dict[str, Any]:
    """What a file may hold for a command: typer's own parameters by key, which is the long name."""
    app = typer.Typer(add_completion=False)
    app.command()(COMMANDS[command])
    made = typer.main.get_command(app).params
    return {option.opts[0].removeprefix("--"): option for option in made if option.name not in _OWN}


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
    found: dict[str, Any] = {}
    for table in sorted(document, key=lambda t: t != DEFAULTS):
        if not isinstance(document[table], Mapping):
            raise QkitError(f"{path}: {table} = {document[table]!r} stands in no table: put it under [{DEFAULTS}].")
        if table != DEFAULTS and table not in COMMANDS:
            raise QkitError(f"{path} has a table [{table}], which is no command{nearest(table, [DEFAULTS, *COMMANDS])}")
        # where several commands have an option of one name, the command that is run says what [defaults] may hold
        owners = {key: command for command in ([*COMMANDS, name] if table == DEFAULTS else [table]) for key in options(command)}
        for key, value in document[table].items():
            plain = key.replace("_", "-")
            if plain not in owners:
                raise QkitError(f"{path}: [{table}] has no option {key!r}{nearest(plain, owners)}")
            option = options(owners[plain])[plain]
            taken = [value] if option.multiple and not isinstance(value, list) else value
            if wrong := _refused(taken, option, COMMANDS[owners[plain]].__annotations__[option.name]):
                raise QkitError(f"{path}: [{table}] {key} = {value!r}: {wrong}.")
            if owners[plain] == name:
                found[option.name] = taken
    return found


def _refused(value: Any, option: Any, annotation: Any) -> str:
    """Why a file's value is none for this option, which is annotated so for typer; empty if it is one."""
    from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

    hint, info = annotation.__origin__, annotation.__metadata__[0]
    bounded: Any = Annotated[hint, Field(ge=info.min, le=info.max)]
    try:
        # strict types take texts for paths and lists for tuples from JSON alone, which has no dates; nor has any option
        text = json.dumps(value, default=lambda date: {"date": str(date)})
        TypeAdapter(bounded, config=ConfigDict(strict=True)).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        which = "".join(f" (value {place + 1})" for place in first["loc"] if isinstance(place, int))
        return first["msg"] + which + (f"; it takes {option.metavar}" if option.metavar else "")
    return ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about a name that there is not."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(names)}."


def save(context: typer.Context, path: Path) -> None:
    """Write the options of this run, defaults too: the same command with ``--config`` repeats it.

    Raises
    ------
    QkitError
        If the file is not one that this function wrote, or cannot be written.
    """
    name = context.info_name or ""
    chosen = {key: context.params.get(option.name) for key, option in options(name).items()}
    first = f"{_MARK}{__version__}: the options of a run, repeated by `qkit {name} --config {path}`\n"
    write(path, f"{first}[{name}]\n{toml(chosen)}")


def line(context: typer.Context) -> str:
    """The run as one line of shell, without a configuration file: what differs from the defaults."""
    words = ["qkit", context.info_name or ""]
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if option.name in _OWN or value is None or value == option.default:
            continue
        if isinstance(value, bool):
            words.append((option.opts if value else option.secondary_opts)[0])
            continue
        name = [] if option.param_type_name == "argument" else [option.opts[0]]
        several = list(map(str, value)) if isinstance(value, (list, tuple)) else [str(value)]
        words += [word for item in several for word in (*name, item)] if option.multiple else [*name, *several]
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
    for key, value in effective(command, chosen).items():
        lines += textwrap.wrap(options(command)[key].help or "", 110, initial_indent="# ", subsequent_indent="# ")
        lines.append(f"# {key} =" if value is None else toml({key: value}).rstrip())
    return "\n".join(lines) + "\n"


def effective(command: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A command's options by key, those in `chosen` by parameter name, as plain data."""
    return _plain({key: chosen.get(option.name, option.default) for key, option in options(command).items()})


def toml(values: Mapping[str, Any]) -> str:
    """What has a value, as TOML."""
    import tomli_w

    return tomli_w.dumps({key: value for key, value in _plain(values).items() if value is not None})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """With texts for paths and lists for tuples."""
    found: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return found


def mark() -> str:
    """The first line of a file that may be written over."""
    return f"{_MARK}{__version__}: options of the commands; delete what is to stay as it is\n"


def _document(path: Path) -> dict[str, Any]:
    text = files.read_text(path, "a configuration")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise QkitError(f"{path} is no TOML: {error}.") from error
