"""Small networks, data and names that reports are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qkit import Study

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
