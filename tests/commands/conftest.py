"""A small network and its data in a folder of their own, as a user's files, and a way to run commands there."""

from __future__ import annotations

import functools
import json
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_cases import Run
from command_line import called

#: The user's module: a network with everything that taps can be, loaders, and loaders that are interrupted.
NET = '''
import os, signal
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.b = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.a(x)
        x = torch.relu(self.b(x) + x)
        return self.head(x.mean((2, 3)))

def make(width=6):
    torch.manual_seed(0)
    net = Net(width)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
    return net.eval()

def loud(width=6):
    print("a model that talks")
    return make(width)

def batches(seed, count=4, size=8):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 8, 8, generator=g) for _ in range(count)]

def loaders():
    net = make()
    with torch.no_grad():
        return [[(x, net(x).argmax(1)) for x in batches(seed)] for seed in (1, 2)][0], [(x, net(x).argmax(1)) for x in batches(2)]

class Interrupted:
    """The evaluation data, with a press of Ctrl-C at every n-th batch that is asked for."""
    def __init__(self, at):
        self.at, self.given = at, 0
    def __len__(self):
        return 4
    def __iter__(self):
        for pair in loaders()[1]:
            self.given += 1
            if self.given == self.at:
                os.kill(os.getpid(), signal.SIGINT)
            yield pair

def late():
    return loaders()[0], Interrupted(4)

def one():
    return loaders()[1]

def wrong():
    return 7

def failing():
    raise RuntimeError("no such disk")
'''


@pytest.fixture(autouse=True)
def _keyboard() -> Iterator[None]:
    """Interrupts as at a keyboard: a shell's background jobs, such as a CI's, ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    handlers, path = list(logging.getLogger().handlers), list(sys.path)
    yield
    logging.getLogger().handlers[:] = handlers
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith("usernet")]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the user's ``usernet.py`` in it."""
    (tmp_path / "usernet.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Run a command line there; returns its exit code, what it says, and what it says on standard error."""
    return functools.partial(called, columns=200)


@pytest.fixture
def data(run: Run) -> Run:
    """Run a command line with ``--json`` and take its standard output as JSON; returns the exit code too."""

    def data(*arguments: str) -> tuple[int, Any]:
        code, said, warned = run(*arguments, "--json")
        assert said, warned
        return code, json.loads(said, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))

    return data
