"""Networks that torch.fx cannot trace, by the line with the comment. Not a test file: pytest moves the lines of asserts."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn


def line_of(thing: object, mark: str = "BLAME") -> int:
    """Number of the line, in its file, that ends with ``# mark`` inside a class or function."""
    lines, first = inspect.getsourcelines(thing)  # type: ignore[arg-type]
    return first + next(i for i, line in enumerate(lines) if line.rstrip().endswith(f"# {mark}"))


class Asserting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 3  # BLAME
        return x + 1


class AssertingOverLines(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert (  # BLAME
            x.shape[1] == 3  # ENDS
        ), "three channels, please"
        return x + 1


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        if y.sum() > 0:  # BLAME
            return y
        return x


class Looping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:  # BLAME
            x = x / 2
        return x


class Iterating(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([row * 2 for row in x])  # BLAME


class Ranging(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(x.shape[0]):  # BLAME
            x = x + 1
        return x


class Measuring(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * len(x)  # BLAME


class CallingInt(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * int(x.shape[0])  # BLAME


class Outer(nn.Module):
    """The trouble sits two modules down."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.body = nn.Sequential(nn.ReLU(), inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x))
