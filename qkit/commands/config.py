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
import json
import shlex
import textwrap
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

import qkit
from qkit.errors import QkitError

#: Table whose keys hold for all commands.
DEFAULTS = "defaults"
#: Options that are about the file itself.
_NOT_KEPT = frozenset({"config", "write-config", "help"})
_MARK = "# qkit "


def load(context: typer.Context, path: Path | None) -> Path | None:
    """Take the options of the file as the command's defaults: the callback of ``--config``."""
    if path is not None and not context.resilient_parsing:
        root = context.find_root().command
        commands: Mapping[str, Any] = getattr(root, "commands", {})
        context.default_map = values(path, commands, context)
    return path


def values(path: Path, commands: Mapping[str, Any], context: typer.Context, name: str | None = None) -> dict[str, Any]:
    """The command's options by parameter name, from ``[defaults]`` and its own table.

    Raises
    ------
    QkitError
        If the file cannot be read, or a table, a key or a value is none that there is; names the nearest one.
    """
    document = _document(path)
    known = {command: _by_key(commands[command]) for command in commands}
    everywhere = {key: parameter for options in known.values() for key, parameter in options.items()}
    name = name or context.info_name or ""
    found: dict[str, Any] = {}
    for table in sorted(document, key=lambda t: t != DEFAULTS):
        if table != DEFAULTS and table not in known:
            raise QkitError(f"{path} has a table [{table}], which is no command{_nearest(table, [DEFAULTS, *known])}.")
        if not isinstance(document[table], Mapping):
            raise QkitError(
                f"{path}: {table} = {document[table]!r} stands outside a table: put it under [{DEFAULTS}] or a command."
            )
        options = everywhere if table == DEFAULTS else known[table]
        for key, value in document[table].items():
            plain = key.replace("_", "-")
            if plain not in options:
                raise QkitError(f"{path}: [{table}] has no option {key!r}{_nearest(plain, options)}.")
            _check(path, table, key, value, options[plain], context)
            if table == name or (table == DEFAULTS and plain in known.get(name, {})):
                found[known[name][plain].name] = value
    return found


def save(context: typer.Context, path: Path) -> None:
    """Write the options of this run, defaults too: the same command with ``--config`` repeats it.

    Raises
    ------
    QkitError
        If the file is not one that this function wrote, or cannot be written.
    """
    name = context.info_name or ""
    chosen = {key: context.params.get(parameter.name) for key, parameter in _by_key(context.command).items()}
    write(
        path, f"{_MARK}{qkit.__version__}: the options of a run, repeated by `qkit {name} --config {path}`\n{table(name, chosen)}"
    )


def line(context: typer.Context) -> str:
    """The run as one line of shell, without a configuration file: what differs from the defaults."""
    words = ["qkit", context.info_name or ""]
    for key, parameter in _by_key(context.command).items():
        value = context.params.get(parameter.name)
        if value is None or value == _default(parameter):
            continue
        if isinstance(value, bool):
            words.append(f"--{key}" if value else next(iter(parameter.secondary_opts), f"--no-{key}"))
            continue
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif parameter.multiple:
            words += [word for item in value for word in (f"--{key}", str(item))]
        else:
            words += [f"--{key}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return shlex.join(words)


def write(path: Path, text: str) -> None:
    """Write a configuration, over nothing but an earlier one."""
    try:
        if path.exists() and not path.read_text(encoding="utf-8").startswith(_MARK):
            raise QkitError(f"{path} was not written by qkit: name another file for the configuration, or remove it.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QkitError(f"the configuration cannot be written to {path}: {error}.") from error


def template(command: str, options: Any, chosen: Mapping[str, Any]) -> str:
    """A command's table with every option, its help as a comment; options without a value are comments too."""
    lines = [f"[{command}]"]
    for key, parameter in _by_key(options).items():
        value = chosen.get(parameter.name, _default(parameter))
        lines += textwrap.wrap(
            " ".join((getattr(parameter, "help", None) or "").split()), 110, initial_indent="# ", subsequent_indent="# "
        )
        lines.append(f"# {key} =" if value is None else f"{key} = {toml(value)}")
    return "\n".join(lines) + "\n"


def effective(options: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A command's options by key, those in `chosen` by parameter name."""
    return {key: chosen.get(parameter.name, _default(parameter)) for key, parameter in _by_key(options).items()}


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
    return f"{_MARK}{qkit.__version__}: options of the commands; delete what is to stay as it is\n"


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QkitError(f"the configuration {path} cannot be read: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise QkitError(f"{path} is no TOML: {error}.") from error


def _by_key(command: Any) -> dict[str, Any]:
    """The command's options by their long name, its arguments by their own."""
    named = {}
    for parameter in command.params:
        names = [name for name in parameter.opts if name.startswith("--")] or [parameter.name.replace("_", "-")]
        key = names[0].removeprefix("--")
        if key not in _NOT_KEPT:
            named[key] = parameter
    return named


def _default(parameter: Any) -> Any:
    return None if callable(parameter.default) or parameter.default in ([], ()) else parameter.default


def _nearest(name: str, known: Iterable[str]) -> str:
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(options)}"


def _check(path: Path, table: str, key: str, value: Any, parameter: Any, context: typer.Context) -> None:
    """Raise where a value is none that the option takes."""
    listed = parameter.multiple or parameter.nargs != 1
    wanted: tuple[type, ...] = (str,)
    words = "a text"
    kind = str(parameter.type.name)
    if getattr(parameter, "is_flag", False) or kind == "boolean":
        wanted, words = (bool,), "true or false"
    elif kind.startswith("integer"):
        wanted, words = (int,), "a whole number"
    elif kind.startswith("float"):
        wanted, words = (int, float), "a number"
    elements = value if listed and isinstance(value, list) else [value]
    fits = all(isinstance(v, wanted) and (bool in wanted or not isinstance(v, bool)) for v in elements)
    if not fits or (parameter.nargs > 1 and len(elements) != parameter.nargs):
        count = f"a list of {parameter.nargs} of these: " if parameter.nargs > 1 else ""
        raise QkitError(
            f"{path}: [{table}] {key} = {value!r} is not {count}{words}{', or a list of such' if parameter.multiple else ''}."
        )
    try:
        parameter.process_value(context, elements if listed else value)
    except Exception as error:
        said = getattr(error, "message", None)
        if said is None:
            raise
        raise QkitError(f"{path}: [{table}] {key} = {value!r}: {said}") from error
