"""Networks with one thing to find each; a comment on the line says which. Not a test file: pytest moves the lines of asserts."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from untraceable import Asserting, AssertingOverLines, Branching, CallingInt, Iterating, Looping, Measuring, Ranging


class BranchingOnShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:  # BLAME
            x = x[None]
        return x * 2


class Choosing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x  # BLAME


class Joining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.sum() > 0 and x.mean() < 9  # BLAME
        return x * y


class LoopingByData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.max() * 3)):  # BLAME
            x = x + 1
        return x


class AssertingOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.sum() > -1e9, "finite, please"  # BLAME
        return x + 1


class CallingFloat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.mean())  # BLAME


class CallingNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(np.asarray(x))  # BLAME


class Making(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(x.shape[0], 1, 1, 1)  # BLAME


class Writing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x + 0
        x[:, 0] = 0  # BLAME
        return x


#: Class -> its rule. Every one runs, and torch.fx can trace none; those in `REFUSED` stop torch.export too.
UNTRACEABLE: dict[type[nn.Module], str] = {
    Asserting: "assert",
    AssertingOverLines: "assert",
    AssertingOnData: "assert",
    Branching: "data-dependent-control-flow",
    BranchingOnShape: "data-dependent-control-flow",
    Choosing: "data-dependent-control-flow",
    Joining: "data-dependent-control-flow",
    Looping: "data-dependent-control-flow",
    LoopingByData: "data-dependent-control-flow",
    Iterating: "data-dependent-control-flow",
    Ranging: "data-dependent-control-flow",
    Measuring: "untraceable-call",
    CallingInt: "untraceable-call",
    CallingFloat: "untraceable-call",
    CallingNumpy: "untraceable-call",
    Making: "untraceable-call",
    Writing: "item-assignment",
}
REFUSED = frozenset(
    {AssertingOnData, Branching, Choosing, Joining, Looping, LoopingByData, CallingFloat, CallingNumpy}
)  # fmt: skip


class Tolerated(nn.Module):
    """All of this passes a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = True
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        assert self.twice
        if self.twice and self.offset.shape[0] == 1:
            x = x + x
        for _ in range(2):
            x = x - self.offset
        parts = [x, x]
        if isinstance(parts, list) and len(parts) == 2 and x is not None:
            x = torch.cat([part * 2 for part in parts], 1)
        torch._assert(x.shape[0] == n, "batch")
        first, second = x.chunk(2, 1)
        return (first + second).view(n, c, h * w).reshape(n, c, h, w)


class Many(nn.Module):
    """Five lines in the way, in one forward, a method and a helper."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4  # FIRST
        if x.sum() > 0:  # SECOND
            x = self.conv(x)
        x = self.inner(x)
        x = helper(x)
        return x * len(x)  # FIFTH

    def inner(self, x: Tensor) -> Tensor:
        return x * int(x.shape[1])  # THIRD


def helper(x: Tensor) -> Tensor:
    return x if x.mean() > 0 else -x  # FOURTH


class Helped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return helper(x)


class Opaque(nn.Module):
    """Refuses proxies altogether: the module has to be left out."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError("tensors only")  # BLAME
        return x + 1


class Before(nn.Module):
    """An error on either side of one that only a leaf gets over."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Asserting(), Opaque(), Branching()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


class Unreached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.careful = False

    def forward(self, x: Tensor) -> Tensor:
        if self.careful:
            assert x.sum() > 0  # BLAME
        return x + 1


class Checking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor):  # BLAME
            x = x * 2
        return x + 1


class AskingType(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if type(x) is Tensor else x  # BLAME


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2 if self.passes > 0 else x  # FIRST
        self.passes += 1  # BUFFER
        return x if x.sum() > 0 else -x  # SECOND


class Printing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("mean", x.mean())  # BLAME
        return x + 1


class Keeping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.last = x * 2  # BLAME
        return self.last + 1


class Trying(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        try:  # BLAME
            scale = float(x.shape[0])
        except TypeError:
            scale = 1.0
        return x * scale


class Masking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x[x > 0].sum()  # BLAME


class TakingOut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.mean().item()  # BLAME


class Optional(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = x * mask  # BLAME
        return x + 1


class Averaging(nn.Module):
    """Subtracts an average over the batches so far."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        self.average.mul_(0.5).add_(0.5 * x.mean((0, 2, 3)))  # BLAME
        return self.head(x - self.average.view(1, -1, 1, 1))


class Tallying(nn.Module):
    """Counts its passes, and the count is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1  # BLAME
        return self.conv(x)


class Stepping(nn.Module):
    """Keeps its count as a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1  # BLAME
        return x * self.count


class Calling(nn.BatchNorm2d):
    """A batch norm that calls the function itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)


class Frozen(nn.Module):
    """A norm with fixed statistics as detection code has it: arithmetic on buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.linspace(0.5, 1.5, channels))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.linspace(-1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Activated(nn.BatchNorm2d):
    """Norm and activation in one module, as timm has it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Same(nn.Conv2d):
    """A convolution that pads by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


#: Forms of a norm with fixed statistics, by the number of channels.
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, Calling, Frozen, Activated)


class Convolutions(nn.Module):
    """Stem with norm, one convolution without, a depthwise one without, a last one that is the prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.bare = nn.Conv2d(8, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.last = nn.Conv2d(8, 4, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.depthwise(torch.relu(self.bare(x))))  # BLAME
        return self.pool(self.last(x)).flatten(1).softmax(1)


class NormFirst(nn.Module):
    """The modules' order says norm behind convolution; the graph says otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.relu(self.conv(x)))
        return self.head(self.other(x).mean((2, 3)))


class ForkedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((self.norm(y) + y).mean((2, 3)))


class GroupNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


class FunctionalNet(nn.Module):
    """Everything as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight)  # CONV
        x = F.silu(x)  # SILU
        x = x * torch.sigmoid(x)  # SWISH
        x = torch.cat([x, x], 1)  # CAT
        return F.linear(x.mean((2, 3)), torch.ones(2, 8))


class HomeMadeGate(nn.Module):
    """Squeeze-and-excitation with linear layers, by no known class."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.head = nn.Linear(4, 2), nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        s = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        x = x * s.view(x.shape[0], 4, 1, 1)  # BLAME
        return self.head(x.mean((2, 3)))


class PlainProduct(nn.Module):
    """A product with a sigmoid of something else is no squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.a(x) * torch.sigmoid(self.b(x))).mean((2, 3)))


class Sharing(nn.Module):
    """A layer called twice, a layer of two names, a parameter of two owners."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 1)
        self.one = nn.Linear(3, 3)
        self.other = self.one
        self.tied = nn.Linear(3, 3)
        self.head = nn.Linear(3, 3)
        self.head.weight = self.tied.weight
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.twice(self.drop(self.twice(x))))  # BLAME
        return self.head(self.tied(self.other(self.one(x.mean((2, 3))))))


class Kernels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large, self.even, self.patch = nn.Conv2d(3, 4, 9, padding=4), nn.Conv2d(4, 4, 2), nn.Conv2d(4, 4, 2, stride=2)
        self.pool, self.small = nn.MaxPool2d(5, 1, 2), nn.MaxPool2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.small(self.pool(self.patch(self.even(self.large(x)))))


class StarLoop(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        return sum(x * 2 for x in xs)


class MathSqrt(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / math.sqrt(x.shape[-1])


class MaxOfShape(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * max(x.shape)


class UnpackingTheRest(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, *_ = x.shape
        return x.reshape(n, -1)


class Resizing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:])


class Arange(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[-1])


class Chained(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if 0 < x.mean() < 1 else x


class Contained(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.shape[1] in (3, 4) else x


class ByType(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.dtype == torch.float32 else x


class IndexingAList(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * [1.0, 2.0, 3.0, 4.0][x.shape[1]]


class NestedFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        def turned(y: Tensor) -> Tensor:
            return y if y.sum() > 0 else -y

        return turned(x)


class Formatting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.said = f"{x.mean():.3f}"
        return x


class Listing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(list(x.split(1, 1)), 1)


class Recursing(nn.Module):
    def step(self, x: Tensor, n: int) -> Tensor:
        return x if n == 0 else self.step(x + 1, n - 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, 3)


class Vmapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda a: a * 2)(x)


CONSTRUCTS = (
    *(StarLoop, MathSqrt, MaxOfShape, UnpackingTheRest, Resizing, Arange, Chained, Contained, ByType, IndexingAList),
    *(NestedFunction, Formatting, Listing, Recursing, Vmapped),
)
