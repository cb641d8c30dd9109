"""Large pools as stacks of small ones.

A maximum over a window is the maximum over windows within it: k1 with stride 1, then k2 with the pool's own stride, reach
k1 + k2 - 1. Padding is minus infinity there and changes nothing, so it may be shared out between them, and the stack is
exactly the pool. Averages are not so kind: a mean of overlapping means weighs the middle more. Only windows of k1 × k2
that do not overlap in the first pool are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from qkit.surgery.rule import Outcome, Refused, Replacement

#: Pools with a window of at least this many are replaced.
LARGE = 5
_SMALL = 3


def is_large(window: Any) -> bool:
    """Whether a window, one number or one for each axis, is one to replace."""
    return max(pair(window)) >= LARGE


def pair(value: Any) -> tuple[int, int]:
    """One number or two as two."""
    return (int(value[0]), int(value[-1])) if isinstance(value, Sequence) else (int(value), int(value))


def max_pool(module: nn.Module) -> Outcome:
    """A stack of max pools of at most 3; exact."""
    if not isinstance(module, nn.MaxPool2d) or not is_large(module.kernel_size):
        return None
    window, stride = pair(module.kernel_size), pair(module.stride)
    padding, dilation = pair(module.padding), pair(module.dilation)
    if module.return_indices:
        return Refused("it returns indices, which a stack cannot give")
    if max(dilation) > 1 and max(padding) > 0:
        return Refused("with dilation and padding no stack of pools has the same windows")
    sizes = _stack(window)
    pads = _shared(padding, sizes)
    if module.ceil_mode and any(s > k - p for s, k, p in zip(stride, sizes[-1], pads[-1], strict=True)):
        return Refused("with ceil_mode a stack of small pools would have another shape for some inputs")
    last = len(sizes) - 1
    pools = [
        nn.MaxPool2d(size, stride if i == last else 1, pad, dilation=dilation, ceil_mode=module.ceil_mode if i == last else False)
        for i, (size, pad) in enumerate(zip(sizes, pads, strict=True))
    ]
    return Replacement(nn.Sequential(*pools), f"{len(pools)} max pools of {_listed(sizes)}", exact=True)


def avg_pool(module: nn.Module) -> Outcome:
    """A stack of average pools: exact where window and stride divide into those of two pools, else weighed to the middle."""
    if not isinstance(module, nn.AvgPool2d) or not is_large(module.kernel_size):
        return None
    window, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
    if module.divisor_override is not None:
        return Refused("its divisor is given, and a stack has one for each pool")
    if module.ceil_mode and max(stride) > 1:
        return Refused("with ceil_mode a stack of small pools would have another shape for some inputs")
    if max(padding) == 0:
        exact = _factors(window, stride)
        if exact is not None:
            (first, second), rest = exact
            pools = [nn.AvgPool2d(first, first), nn.AvgPool2d(second, rest)]
            return Replacement(nn.Sequential(*pools), f"2 average pools of {_listed([first, second])}", exact=True)
    sizes = _stack(window)
    pads = _shared(padding, sizes)
    pools = [
        nn.AvgPool2d(size, stride if i == len(sizes) - 1 else 1, pad, count_include_pad=module.count_include_pad)
        for i, (size, pad) in enumerate(zip(sizes, pads, strict=True))
    ]
    return Replacement(nn.Sequential(*pools), f"{len(pools)} average pools of {_listed(sizes)}", exact=False)


def _stack(window: tuple[int, int]) -> list[tuple[int, int]]:
    """Windows of at most 3 that together reach as far as one."""
    axes = [list(_parts(k)) for k in window]
    depth = max(len(parts) for parts in axes)
    # the widest come last, where the stride is
    rows, columns = ([1] * (depth - len(parts)) + parts for parts in axes)
    return list(zip(rows, columns, strict=True))


def _parts(window: int) -> Iterator[int]:
    if window % 2 == 0:
        yield 2
    yield from [_SMALL] * ((window - 1) // 2)


def _shared(padding: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The padding, shared out from the first pool on, half a window at most for each."""
    left = list(padding)
    shares = []
    for size in sizes:
        share = [min(p, k // 2) for p, k in zip(left, size, strict=True)]
        left = [p - s for p, s in zip(left, share, strict=True)]
        shares.append((share[0], share[1]))
    return shares


def _factors(
    window: tuple[int, int], stride: tuple[int, int]
) -> tuple[tuple[tuple[int, int], tuple[int, int]], tuple[int, int]] | None:
    """Two smaller windows and the second's stride: blocks that do not overlap, then their means."""
    found = []
    for k, s in zip(window, stride, strict=True):
        if k < LARGE:
            found.append((1, k, s))
            continue
        options = [f for f in range(2, LARGE) if k % f == 0 and s % f == 0 and k // f < LARGE]
        if not options:
            return None
        found.append((options[-1], k // options[-1], s // options[-1]))
    (a, c, e), (b, d, f) = found
    return ((a, b), (c, d)), (e, f)


def _listed(sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{a}×{b}" for a, b in sizes)
