"""Small studies that the tests of the widgets' Python side share, and what drives a widget without a page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from small_networks import mixed_network
from torch import Tensor, nn

from qkit import Study
from qkit.diagnosis.answer import Diagnosis
from qkit.widgets import Guide, Tuner, work
from qkit.widgets.panel import Panel

Batches = list[tuple[Tensor, Tensor]]
P = TypeVar("P", bound=Panel)


#: Widgets that a test has opened.
_open: list[Any] = []


def kept(panel: P) -> P:
    """The panel, which is closed when the test is over."""
    _open.append(panel)
    return panel


def settle() -> None:
    """No work is left running for the next test."""
    for each in _open:
        for panel in (each, getattr(each, "_tuner", None), getattr(each, "_graph", None)):
            if panel is not None:
                panel.cancel()
                panel.wait()
                panel.close()
    _open.clear()


@cache
def images(batches: int = 4, size: int = 8, seed: int = 2, clear: float = 0.0) -> Batches:
    """Random images; labels are the float network's own but for one in each batch, so that scores lie below one.

    With `clear` the two greatest outputs are that far apart at least: an untrained network has many decisions that are close, and
    8 bits, which move them by about 0.01, would lose more than a point of many such images.
    """
    model, draw = mixed_network(), torch.Generator().manual_seed(seed)
    made = []
    for _ in range(batches):
        x = torch.randn(size if not clear else 4 * size, 3, 16, 16, generator=draw)
        with torch.no_grad():
            best = model(x).topk(2, dim=1).values
            x = x[(best[:, 0] - best[:, 1] >= clear).nonzero()[:size, 0]]
            assert len(x) == size
            y = model(x).argmax(1)
        y[0] = (y[0] + 1) % 5
        made.append((x, y))
    return made


def fresh_study(scheme: Any = "int8-per-tensor", method: str = "mse", **settings: Any) -> Study:
    """A study that shares nothing with another one: 4 calibration batches and 4 evaluation batches of 8 images."""
    options: dict[str, Any] = {"calibration": images(seed=3), "evaluation": images(), "model": mixed_network(), **settings}
    weight_method = options.pop("weight_method", "minmax")
    made = Study(options.pop("model"), options.pop("calibration"), options.pop("evaluation"), scheme=scheme, **options)
    made.calibrate(method, weight_method=weight_method, progress=False)
    return made


@cache
def small_study(scheme: Any = "int8-per-tensor") -> Study:
    """The study that most tests only read."""
    return fresh_study(scheme)


@cache
def sound_study() -> Study:
    """160 evaluation images, enough to tell a loss of one point from none; nothing is wrong with it."""
    data = images(5, 32, seed=5, clear=0.03)
    made = Study(mixed_network(), data[:2], data, scheme="int8-per-tensor")
    made.calibrate("mse", progress=False)
    return made


@cache
def ruined_study() -> Study:
    """The ranges of two taps are far too narrow."""
    data = images(5, 32, seed=5, clear=0.03)
    sound = Study(mixed_network(), data[:2], data, scheme="int8-per-tensor")
    sound.calibrate("mse", progress=False)
    plan = sound.plan.with_range("depthwise", 0.0, 0.03)
    average = float(plan["average"].params.hi)
    return sound.with_plan(plan.with_range("average", 0.0, 0.02 * average))


@cache
def ruined_diagnosis() -> Diagnosis:
    """What is found there: a cause at each of the two."""
    return ruined_study().diagnose(progress=False)


class Dropping(nn.Module):
    """Drops half of the scores in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mixed_network()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.inner(x), 0.5, training=True)


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Work that is started meanwhile waits until this is over, so that what comes between is no matter of time."""
    with work.TURNS:
        yield


def gesture(tuner: Tuner, event: Any, end: Any, value: Any, seq: int = 0) -> list[dict[str, Any]]:
    """What the page sends when a handle is moved; returns what the kernel answers."""
    replies: list[dict[str, Any]] = []
    tuner.send = lambda content, buffers=None: replies.append(content)
    tuner._received(tuner, {"event": event, "end": end, "value": value, "seq": seq}, [])
    return replies


def press(tuner: Tuner, event: str, value: Any = None, **more: Any) -> None:
    """What the page sends when a control is used."""
    tuner._received(tuner, {"event": event, **({} if value is None else {"value": value}), **more}, [])


def opened(study: Study, *given: Any, **options: Any) -> Guide:
    made = kept(Guide(study, *given, **options))
    made.wait()
    return made


def ruined(**options: Any) -> Guide:
    """Two ranges are far too narrow: each has its cause and its remedy."""
    made = opened(ruined_study(), ruined_diagnosis(), **options)
    assert made.error == ""
    return made
