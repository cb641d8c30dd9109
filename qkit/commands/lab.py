"""``qkit lab``: the notebooks, copied, in JupyterLab."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from qkit.commands import notebooks
from qkit.commands.command import Outcome, Talk
from qkit.commands.options import OUTPUT, RUNNING, option
from qkit.errors import MissingExtra, QkitError, installing

EXAMPLES = ("qkit lab", "qkit lab work/notebooks --port 9999", "qkit lab --copy-only", "qkit lab --no-browser")
#: What the notebooks need beside JupyterLab itself, and the extra that has it.
_NEEDED = ("jupyterlab", "anywidget", "ipywidgets", "torchvision")
#: Defaults of JupyterLab's settings: its question about news would lie over the first notebook. The user's own settings win.
_DEFAULTS = Path(__file__).parent / "jupyter"


def lab(
    talk: Talk,
    folder: Annotated[Path, typer.Argument(help="Where your copy of the notebooks is.")] = Path("qkit-notebooks"),
    overwrite: Annotated[
        bool,
        option("--overwrite", panel=OUTPUT, help="Also write over notebooks that you have changed."),
    ] = False,
    copy_only: Annotated[bool, option("--copy-only", panel=RUNNING, help="Copy, and start nothing.")] = False,
    browser: Annotated[bool, option(panel=RUNNING, help="Open a browser.")] = True,
    port: Annotated[
        int | None, option(panel=RUNNING, min=1, max=65535, help="Of JupyterLab. The first free one from 8888 on by default.")
    ] = None,
    allow_root: Annotated[
        bool,
        option("--allow-root", panel=RUNNING, help="Start as root too, as in a container; JupyterLab refuses that otherwise."),
    ] = False,
) -> Outcome:
    """Copy the notebooks into a folder of yours and open the first of them in JupyterLab.

    The copy is yours: notebooks that you have changed stay as they are, and those that you have not are brought up to date.
    JupyterLab and what the notebooks need are in an extra, lab.
    """
    if not copy_only:
        _require()
    done = notebooks.copy(folder, overwrite=overwrite)
    for name, words in (
        ("new", "copied"), ("updated", "brought up to date"), ("replaced", "written over, though changed by you"),
        ("kept", "kept as you changed them (--overwrite takes the kit's)"),
    ):  # fmt: skip
        if names := getattr(done, name):
            talk.sentence(f"{words}: {', '.join(names)}", "yellow" if name in ("replaced", "kept") else "")
    talk.sentence(f"Notebooks: {folder}")
    told = {**asdict(done), "folder": str(folder)}
    if copy_only:
        return Outcome(told)
    code = _start(folder, browser=browser, port=port, allow_root=allow_root)
    if code:
        raise QkitError(f"JupyterLab ended with code {code}; its own messages are above.")
    return Outcome(told)


def _require() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"the notebooks need {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            f"{installing('lab')}. Without it, `qkit lab --copy-only` copies the notebooks for another Jupyter."
        )


def _start(folder: Path, *, browser: bool, port: int | None, allow_root: bool) -> int:
    """Run JupyterLab until it ends; Ctrl-C is its own business, it asks back."""
    arguments = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder.resolve()}"]
    # the address that is said, and opened, is the first notebook's
    first = min((path.name for path in folder.glob("01_*.ipynb")), default=None)
    if first is not None:
        arguments.append(f"--LabApp.default_url=/lab/tree/{quote(first)}")
    if not browser:
        arguments.append("--no-browser")
    if allow_root:
        arguments.append("--allow-root")
    if port is not None:
        arguments += [f"--port={port}", "--ServerApp.port_retries=0"]
    searched = os.pathsep.join(filter(None, (os.environ.get("JUPYTER_CONFIG_PATH"), str(_DEFAULTS))))
    process = subprocess.Popen(  # noqa: S603  # our own interpreter
        arguments, stdout=sys.stderr, env={**os.environ, "JUPYTER_CONFIG_PATH": searched}
    )
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
