"""JupyterLab, Notebook 7 or marimo with a folder, settings and a port of its own: for the widgets' benchmark and tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

CHROMIUM = os.environ.get("QKIT_CHROMIUM", "/usr/bin/chromium")
#: Nothing on this side of the page that asks the network for anything.
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
).split()
#: News, autosave and the removal of cells out of sight would each disturb a test.
_SETTINGS: dict[str, dict[str, Any]] = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


@dataclass(frozen=True)
class Server:
    """A running server and the folder of its notebooks."""

    url: str
    folder: Path


#: By package, the name of its application in its settings.
_APPS = {"jupyterlab": "LabApp", "notebook": "JupyterNotebookApp"}


@contextmanager
def server(root: Path, package: str = "jupyterlab") -> Iterator[Server]:
    """JupyterLab, or "notebook" (7 or newer), with configuration, data and settings of its own under `root`."""
    port = _free_port()
    for name in ("notebooks", "settings"):
        (root / name).mkdir(parents=True)
    (root / "settings" / "overrides.json").write_text(json.dumps(_SETTINGS))
    private = {f"JUPYTER_{name}_DIR": str(root / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    app = _APPS[package]
    options = {
        "ip": "127.0.0.1",
        "port": port,
        "ServerApp.port_retries": 0,
        "IdentityProvider.token": "",
        "ServerApp.root_dir": root / "notebooks",
        f"{app}.expose_app_in_browser": True,
        f"{app}.app_settings_dir": root / "settings",
        f"{app}.workspaces_dir": root / "workspaces",
        f"{app}.user_settings_dir": root / "user",
    }
    command = [package, "--no-browser", "--allow-root", *(f"--{k}={v}" for k, v in options.items())]
    url = f"http://127.0.0.1:{port}"
    with _running(root, command, f"{url}/api/status", private):
        yield Server(url, root / "notebooks")


@contextmanager
def marimo_server(root: Path, notebook: str) -> Iterator[Server]:
    """marimo with this notebook, the text of a Python file, which runs when a page opens it."""
    port = _free_port()
    (root / "notebooks").mkdir(parents=True)
    path = root / "notebooks" / "notebook.py"
    path.write_text(notebook)
    command = ["marimo", "--yes", "run", str(path), "--headless", "--no-token", f"--port={port}"]
    private = {f"XDG_{name}_HOME": str(root / name.lower()) for name in ("CONFIG", "STATE", "CACHE", "DATA")}
    url = f"http://127.0.0.1:{port}"
    with _running(root, command, f"{url}/health", private):
        yield Server(url, root / "notebooks")


@contextmanager
def first_lab(root: Path) -> Iterator[Server]:
    """What ``qkit lab`` starts for somebody who never did: no settings yet; its URL is what a browser is sent to."""
    port = _free_port()
    root.mkdir(parents=True)
    command = ["qkit", "lab", str(root / "notebooks"), "--no-browser", "--allow-root", "--port", str(port)]
    private = {f"JUPYTER_{name}_DIR": str(root / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    private |= {f"JUPYTERLAB_{name}_DIR": str(root / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    url = f"http://127.0.0.1:{port}"
    with _running(root, command, f"{url}/api/status?token=t", {**private, "JUPYTER_TOKEN": "t"}):
        yield Server(f"{url}/?token=t", root / "notebooks")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _running(root: Path, command: list[str], status: str, settings: dict[str, str]) -> Iterator[None]:
    """A module that serves, from when its address answers to the end of the block."""
    env = {**os.environ, **settings, "IPYTHONDIR": str(root / "ipython"), "PYTHONPATH": os.pathsep.join(sys.path)}
    with (root / "server.log").open("w") as log:
        # with what it starts itself in one group, to be ended together
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env=env, stdout=log, stderr=log, cwd=root, start_new_session=True
        )
        try:
            _until_up(status, process, root / "server.log")
            yield
        finally:
            _end(process, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:  # a busy machine: it has nothing to save
                _end(process, signal.SIGKILL)
                process.wait()


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if process.poll() is None:
        os.killpg(process.pid, how)


def _until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url, timeout=1)
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(log.read_text()[-2000:]) from None
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"{url} did not answer: {log.read_text()[-2000:]}")


def write_notebook(folder: Path, *cells: str) -> Path:
    """A new notebook of these cells; returns its path."""
    path = folder / f"n{time.time_ns()}.ipynb"
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(content, path)
    return path
