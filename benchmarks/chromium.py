"""A page in Chromium by the bare DevTools protocol.

Test drivers listen to everything that a page sends and receives, every frame of the kernel's socket included, which costs a
browser on two cores a third of its time: this one asks for nothing that it does not need.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import websocket

from benchmarks.lab import CHROMIUM, FLAGS


class Page:
    """The one page of a browser."""

    def __init__(self, socket_url: str) -> None:
        self._socket = websocket.create_connection(socket_url, suppress_origin=True, timeout=180)
        self._numbers = itertools.count(1)

    def send(self, method: str, **params: Any) -> int:
        """Send a command and do not wait for its answer."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        return number

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        number = self.send(method, **params)
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                return answer.get("result", {})  # type: ignore[no-any-return]

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def until(self, expression: str, timeout: float = 120.0) -> None:
        """Wait until a JavaScript expression is true; while the page loads, it may fail."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                if self.run(expression):
                    return
            except RuntimeError:
                pass
            time.sleep(0.05)
        raise TimeoutError(f"{expression} was not true after {timeout:g} s")

    def mouse(self, kind: str, x: float, y: float, *, wait: bool = True) -> None:
        """A real event of the mouse with its left button: "Pressed", "Moved" or "Released"."""
        act = self.call if wait else self.send
        button = {"button": "left", "buttons": 0 if kind == "Released" else 1, "clickCount": int(kind != "Moved")}
        act("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **button)


@contextmanager
def page(url: str, profile: Path, *, width: int = 1200, height: int = 1000) -> Iterator[Page]:
    """Chromium, headless, with that page."""
    port_file = profile / "DevToolsActivePort"
    options = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}", f"--window-size={width},{height}"]
    process = subprocess.Popen([CHROMIUM, *options, *FLAGS, url], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            if port_file.exists() and port_file.read_text().count("\n"):
                break
            time.sleep(0.1)
        port = port_file.read_text().splitlines()[0]
        targets = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json"))
        yield Page(next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page"))
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:  # a busy machine: it has nothing to save
            process.kill()
            process.wait()
