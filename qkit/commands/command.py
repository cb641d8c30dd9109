"""What all commands have in common: options in groups, the configuration file, JSON, progress, interrupts and exit codes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.text import Text

from qkit.commands import config
from qkit.commands.options import RUNNING, option

#: Exit codes: all is well, what the command looks for was found, an error in usage or data, the keyboard's interrupt.
FINE, FOUND, ERROR, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Outcome:
    """What a command found: plain data for ``--json``, and its exit code."""

    data: Mapping[str, Any]
    code: int = FINE


class Talk:
    """What a command says to a person, and whether the person has pressed Ctrl-C meanwhile.

    The first interrupt goes into the work as KeyboardInterrupt, which keeps what it has where that makes sense; the command then
    shows that, and ends with code 130. The second one ends it at once.
    """

    def __init__(self, *, as_json: bool, line: str = "") -> None:
        self.as_json, self.interrupted = as_json, False
        #: The run as one line of shell.
        self.line = line

    def say(self, *what: RenderableType, **style: Any) -> None:
        """A line, a table or text on standard output; nothing where that is for JSON."""
        if not self.as_json:
            Console().print(*what, **{"highlight": False, **style})

    def sentence(self, text: str, style: str = "") -> None:
        """Words that are no markup, such as those of a model or a path."""
        self.say(Text(text, style))

    def note(self, number: int, frame: FrameType | None) -> None:
        """A handler of the interrupt's signal."""
        del number, frame
        self.interrupted = True
        raise KeyboardInterrupt


@dataclass(frozen=True)
class RunningOptions:
    """How a command says what it does; every command has these."""

    quiet: Annotated[
        bool, option("--quiet", "-q", panel=RUNNING, help="No progress bars and no remarks: results and errors alone.")
    ] = False
    verbose: Annotated[
        bool, option("--verbose", "-v", panel=RUNNING, help="Say more of what is read and chosen, on standard error.")
    ] = False
    as_json: Annotated[
        bool, option("--json", panel=RUNNING, help="Print the results as one JSON object on standard output, and nothing else.")
    ] = False


@dataclass(frozen=True)
class ConfigOptions:
    """Where the other options come from and go to."""

    config: Annotated[
        Path | None,
        option(
            panel=RUNNING,
            metavar="FILE",
            help="Options from a TOML file: a table per command and one for all, named defaults. What is on the command line "
            "wins. `qkit config` writes one to begin with.",
            callback=config.load,
            is_eager=True,
        ),
    ] = None
    write_config: Annotated[
        Path | None,
        option(panel=RUNNING, metavar="FILE", help="Write all options of this run to a TOML file, to repeat it by --config."),
    ] = None


def command(
    app: typer.Typer,
    name: str,
    *,
    examples: tuple[str, ...],
    codes: str = "",
    panel: str | None = None,
    configurable: bool = True,
) -> Any:
    """Make a command of a function ``function(talk, group, …, option=…) -> Outcome``.

    Parameters
    ----------
    examples
        Lines of shell, under the help.
    codes
        What exit code 1 means here, to go under the help too.
    panel
        Of the list of commands.
    configurable
        Whether its options can come from a configuration file.
    """

    def register(function: Callable[..., Outcome]) -> Callable[..., Outcome]:
        said = [*("[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in examples))]
        found = f"1 {codes}, " if codes else ""
        said.append(f"[bold]Exit code[/bold]: 0 all is well, {found}2 error in usage or data, 130 interrupted.")
        run = spread(function, configurable=configurable)
        if configurable:
            config.COMMANDS[name] = run
        app.command(name, epilog="\n\n".join(said), rich_help_panel=panel)(run)
        return function

    return register


def spread(function: Callable[..., Outcome], *, configurable: bool = True) -> Callable[..., None]:
    """The function as typer takes it: groups of options as single ones, with those that every command has."""
    _, *given = inspect.signature(function, eval_str=True).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in given if is_dataclass(p.annotation)}
    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for p in given:
        parameters += _options(p.annotation) if p.name in groups else [p]
    for group in (RunningOptions, ConfigOptions) if configurable else (RunningOptions,):
        parameters += _options(group)
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]

    @functools.wraps(function)
    def run(context: typer.Context, **values: Any) -> None:
        running = _group(RunningOptions, values)
        arguments: dict[str, Any] = {name: _group(group, values) for name, group in groups.items()}
        if configurable and (target := _group(ConfigOptions, values).write_config) is not None:
            config.save(context, target)
        talk = Talk(as_json=running.as_json, line=config.line(context))
        code = _run(lambda: function(talk, **arguments, **values), talk, running)
        if code:
            raise typer.Exit(code)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _options(group: type) -> Iterable[inspect.Parameter]:
    return inspect.signature(group, eval_str=True).parameters.values()


def _group(group: type, values: dict[str, Any]) -> Any:
    """The group's values, taken out of all."""
    return group(**{item.name: values.pop(item.name) for item in fields(group)})


def _run(work: Callable[[], Outcome], talk: Talk, running: RunningOptions) -> int:
    try:
        with _logging(running), _progress(running.quiet), _interrupts(talk), _stdout(running.as_json):
            outcome = work()
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted: nothing was finished.")
        return INTERRUPTED
    if running.as_json:
        sys.stdout.write(json.dumps(outcome.data, indent=1, allow_nan=False) + "\n")
    return INTERRUPTED if talk.interrupted else outcome.code


@contextlib.contextmanager
def _logging(running: RunningOptions) -> Iterator[None]:
    logger = logging.getLogger("qkit")
    before = logger.level
    if running.quiet or running.verbose:
        logger.setLevel(logging.ERROR if running.quiet else logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[None]:
    """Bars on standard error where that is a terminal."""
    if not quiet and sys.stderr.isatty():
        yield
        return
    from qkit.progress import listening

    with listening(lambda *_: None):
        yield


@contextlib.contextmanager
def _interrupts(talk: Talk) -> Iterator[None]:
    # a process in the background, or a test in a thread, has its own ways
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not ours:
        yield
        return
    signal.signal(signal.SIGINT, talk.note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _stdout(as_json: bool) -> contextlib.AbstractContextManager[Any]:
    """Where JSON is wanted, what the user's own model or data print goes to standard error."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
