"""What workers in other processes have to import: data sets, metrics, and executors of one process."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import torch
from small_networks import mixed_network
from torch import Tensor
from torch.utils.data import Dataset

SIZE, BATCHES = 4, 5


def data(count: int = BATCHES) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count * SIZE, 3, 16, 16, generator=generator)
    with torch.no_grad():
        y = mixed_network()(x).argmax(1)
    return list(zip(x.split(SIZE), y.split(SIZE), strict=True))


class Now(Executor):
    """Runs tasks at once, in this process, in an order of its own once they are asked for; counts what was sent."""

    def __init__(self, _max_workers: int = 2, *, lose: Callable[[int], BaseException | None] = lambda number: None) -> None:
        self._max_workers = _max_workers
        self.lose = lose
        self.tasks: list[tuple[Any, ...]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        number = len(self.tasks)
        self.tasks.append(args)
        future: Future[Any] = Future()
        error = self.lose(number)
        if error is None:
            future.set_result(fn(*args, **kwargs))
        else:
            future.set_exception(error)
        return future


class Images(Dataset[tuple[Tensor, int]]):
    """Twenty images that are made when they are read; writes down which, into a folder, by process."""

    def __init__(self, log: Path | None = None, noise: float = 0.0) -> None:
        self.log, self.noise = log, noise
        self.x = torch.cat([x for x, _ in data()])
        self.y = torch.cat([y for _, y in data()])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if self.log is not None:
            with (self.log / str(os.getpid())).open("a") as file:
                file.write(f"{index}\n")
        x = self.x[index]
        return x + self.noise * torch.randn(x.shape) if self.noise else x, int(self.y[index])


class Stream:
    """An iterable without a length."""

    def __iter__(self) -> Any:
        return iter(data())


class Locked(Stream):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


@torch.fx.wrap
def halved_where_large(x: Tensor) -> Tensor:
    """What no trace can follow."""
    return x / 2 if float(x.abs().max()) > 1e-6 else x


def right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Top 1 of the user's own."""
    return (outputs.argmax(1) == targets).double()


def _first(folder: Path, name: str) -> bool:
    """Whether this process is the first that comes by here."""
    try:
        (folder / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


class Dies:
    """A metric that ends its process, once or always, unless that is the one that it was made in."""

    def __init__(self, folder: Path, *, once: bool) -> None:
        self.folder, self.once, self.home = folder, once, os.getpid()

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if os.getpid() != self.home and (not self.once or _first(self.folder, "died")):
            os._exit(1)
        return right(outputs, targets)


class Slow:
    """A metric that is slow on the first process that comes by; writes down how many batches each process scored."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mine = self.folder / f"slow-{os.getpid()}"
        if mine.exists() or _first(self.folder, "slow"):
            mine.touch()
            time.sleep(self.seconds)
        with (self.folder / f"scored-{os.getpid()}").open("a") as file:
            file.write("1\n")
        return right(outputs, targets)


def boxes(outputs: Tensor) -> list[dict[str, Tensor]]:
    """One box for every image, of a size and with a label that the outputs tell."""
    sizes = 10.0 + outputs[:, :2].abs()
    corners = torch.cat([torch.zeros_like(sizes), sizes], 1)
    scores = outputs.softmax(1).amax(1)
    return [
        {"boxes": box[None], "labels": label[None], "scores": score[None]}
        for box, label, score in zip(corners, outputs.argmax(1), scores, strict=True)
    ]


def images_with_boxes() -> list[tuple[Tensor, list[dict[str, Tensor]]]]:
    with torch.no_grad():
        found = [(x, boxes(mixed_network()(x))) for x, _ in data()]
    return [(x, [{"boxes": one["boxes"] + 0.2, "labels": one["labels"]} for one in there]) for x, there in found]


class OnDevice:
    """A metric that writes down where it is computed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        (self.folder / str(outputs.device).replace(":", "-")).touch()
        return right(outputs, targets.to(outputs.device))


class Fails:
    """A metric whose error cannot be pickled."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise Picky(threading.Lock())


class Picky(Exception):
    """Holds what cannot be pickled."""


class Changed(Stream):
    """Other data once it was pickled."""

    moved = 0.0

    def __setstate__(self, state: Any) -> None:
        self.moved = 1.0

    def __getstate__(self) -> Any:
        return {"moved": 1.0}

    def __iter__(self) -> Any:
        return iter([(x + self.moved, y) for x, y in data()])
