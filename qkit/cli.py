"""The command line: ``qkit demo`` on the bundled network, ``qkit diagnose``, ``qkit report`` and the others on the user's own."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from qkit.commands import capture, configure, diagnose, export, lab, lint, report
from qkit.commands.command import ERROR, command
from qkit.errors import QkitError
from qkit.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
    help="Is it quantization, and if it is, which tensor, why, and what is the cheapest thing that fixes it?",
    epilog="Begin with [cyan]qkit demo[/cyan], which brings its own network and images. [cyan]qkit COMMAND --help[/cyan] has "
    "examples.\n\n[bold]Exit codes[/bold]: 0 all is well; 1 what the command looks for was found (lint: errors; report --compare "
    "--max-loss and diagnose --fail-on-loss: more is lost than allowed); 2 error in usage or data; 130 interrupted.",
)

_LOOK, _GIVE, _LEARN = "Look", "Hand on", "Begin"
command(app, "demo", examples=report.DEMO_EXAMPLES, panel=_LEARN)(report.demo)
command(app, "lab", examples=lab.EXAMPLES, panel=_LEARN)(lab.lab)
command(app, "diagnose", examples=diagnose.EXAMPLES, codes="with --fail-on-loss: more is lost", panel=_LOOK)(diagnose.diagnose)
command(app, "lint", examples=lint.EXAMPLES, codes="there are errors", panel=_LOOK)(lint.lint)
command(app, "capture", examples=capture.EXAMPLES, panel=_LOOK)(capture.capture)
command(app, "report", examples=report.EXAMPLES, codes="with --max-loss: the loss grew by more", panel=_GIVE)(report.report)
command(app, "export", examples=export.EXAMPLES, panel=_GIVE)(export.export)
command(app, "config", examples=configure.EXAMPLES, panel=_GIVE, configurable=False)(configure.configure)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qkit {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more of what is read and chosen.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
) -> None:
    del version
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False, show_time=False)],
    )


def main() -> None:
    """Run the command line: errors become one line on standard error and exit code 2."""
    try:
        app()
    except QkitError as error:
        Console(stderr=True).print(Text("error: ", "bold red") + Text(str(error)))
        sys.exit(ERROR)
