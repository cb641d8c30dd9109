"""``qkit config``: the options of all commands as a file, with what a configuration makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from qkit.commands import config
from qkit.commands.command import Outcome, Talk
from qkit.commands.options import OUTPUT, option
from qkit.commands.printing import strict
from qkit.errors import QkitError

EXAMPLES = ("qkit config > qkit.toml", "qkit config report --out qkit.toml", "qkit config diagnose --from qkit.toml")


def configure(
    talk: Talk,
    context: typer.Context,
    command: Annotated[list[str] | None, typer.Argument(help="Commands; all by default.")] = None,
    source: Annotated[
        Path | None, option("--from", panel=OUTPUT, metavar="FILE", help="A configuration to complete by the defaults.")
    ] = None,
    out: Annotated[Path | None, option(panel=OUTPUT, metavar="FILE", help="Write it here; printed by default.")] = None,
) -> Outcome:
    """Print every option of the commands with its value, as a configuration file for --config.

    To begin with, or with --from to see what a file amounts to once the defaults are added: the effective options of a run.
    """
    commands: Mapping[str, Any] = getattr(context.find_root().command, "commands", {})
    known = [name for name in commands if name != "config"]
    for name in command or ():
        if name not in known:
            raise QkitError(f"there is no command {name!r} to configure; there are {', '.join(known)}.")
    names = list(dict.fromkeys(command or known))
    chosen = {name: {} if source is None else config.values(source, commands, context, name) for name in names}
    text = config.mark() + "\n" + "\n".join(config.template(name, commands[name], chosen[name]) for name in names)
    if out is None:
        if not talk.as_json:
            typer.echo(text, nl=False)
    else:
        config.write(out, text)
        talk.sentence(f"Configuration: {out}")
    return Outcome({name: strict(_plain(config.effective(commands[name], chosen[name]))) for name in names})


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
