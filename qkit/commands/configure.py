"""``qkit config``: the options of all commands as a file, with what a configuration makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qkit.commands import config
from qkit.commands.command import Outcome, Talk
from qkit.commands.options import OUTPUT, option
from qkit.commands.printing import strict
from qkit.errors import QkitError

EXAMPLES = ("qkit config > qkit.toml", "qkit config report --out qkit.toml", "qkit config diagnose --from qkit.toml")


def configure(
    talk: Talk,
    command: Annotated[list[str] | None, typer.Argument(help="Commands; all by default.")] = None,
    source: Annotated[
        Path | None, option("--from", panel=OUTPUT, metavar="FILE", help="A configuration to complete by the defaults.")
    ] = None,
    out: Annotated[Path | None, option(panel=OUTPUT, metavar="FILE", help="Write it here; printed by default.")] = None,
) -> Outcome:
    """Print every option of the commands with its value, as a configuration file for --config.

    To begin with, or with --from to see what a file amounts to once the defaults are added: the effective options of a run.
    """
    for name in command or ():
        if name not in config.COMMANDS:
            raise QkitError(f"there is no command {name!r} to configure{config.nearest(name, config.COMMANDS)}")
    names = list(dict.fromkeys(command or config.COMMANDS))
    chosen = {name: {} if source is None else config.values(source, name) for name in names}
    text = config.mark() + "\n" + "\n".join(config.template(name, chosen[name]) for name in names)
    if out is not None:
        config.write(out, text)
        talk.sentence(f"Configuration: {out}")
    elif not talk.as_json:
        typer.echo(text, nl=False)
    return Outcome({name: strict(config.effective(name, chosen[name])) for name in names})
