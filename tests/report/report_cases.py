"""Small networks, data and names that reports are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qkit import Study
from qkit.engines.lane import EngineBatch, EngineTensor
from qkit.execution.loading import Batch
from qkit.quant.grids import quantize

HOSTILE = "</code><script>alert(1)</script> |`\"'&\n$x_1$*"


class Small(nn.Module):
    """Convolutions, an addition, a layer that stays float."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last((self.second(x) + x).mean((2, 3)))


def image_batches(count: int = 2, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(5)
    return [(torch.randn(size, 3, 8, 8, generator=random), torch.randint(0, 4, (size,), generator=random)) for _ in range(count)]


def tiny_study(**options: object) -> Study:
    torch.manual_seed(3)
    return Study(Small(), image_batches(), image_batches(), **options)


class PerturbedEngine:
    """An engine that computes what the study's plan says, but for one tap, which is off by some steps of its grid."""

    bits = 8
    notes = ("it was made for a test, in /nowhere/at/all.",)

    def __init__(self, study: Study, tap: str, steps: int) -> None:
        self.name, self.study, self.tap, self.steps = "perturbed <engine>", study, tap, steps

    def run(self, loader: Iterable[Any], *, limit: int | None = None) -> Iterator[EngineBatch]:
        for item in list(loader)[:limit]:
            capture = Study(self.study.model, [item], metric="agreement").capture(
                {"int8": self.study.plan}, keep="all", progress=False
            )
            taps = {}
            for name in capture.taps:
                held = capture[name].int8
                if held.params is None:
                    continue
                values = held.values + (self.steps * held.scale if name == self.tap else 0.0)
                taps[name] = EngineTensor(values, quantize(values, held.params), held.params)
            yield EngineBatch(Batch((item[0],), item[1]), taps)
