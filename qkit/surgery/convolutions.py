"""Even kernels as odd ones and large kernels as stacks of small ones, both computing what the one convolution did.

An even kernel grows by a row and a column of zeros at its end, and the input by as much padding there.

A large kernel is cut into windows of 7×7. A first convolution, depthwise, copies the input once for every window, shifted to
where the window begins; a second one applies all windows at once. Since all padding happens before the copies, the two are
exactly the one, at the border too. That holds up to 13×13, where the shift itself is a kernel of 7×7; beyond, one stack of
shifts after the other would multiply the channels without end, and the stack keeps the receptive field and the kernel's middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn

from qkit.surgery.pools import pair
from qkit.surgery.rule import Outcome, Refused, Replacement

#: Kernels up to this size are left; larger ones are split.
LARGE = 7


def even_kernel(module: nn.Module) -> Outcome:
    """Zeros at the kernel's end and as much padding: exact."""
    if not isinstance(module, nn.Conv2d) or not any(k % 2 == 0 for k in module.kernel_size):
        return None
    if module.padding_mode != "zeros":
        return Refused(f"its padding is by {module.padding_mode}, which cannot be made longer on one side")
    grown = _odd(module)
    kernel = grown[-1].kernel_size
    return Replacement(nn.Sequential(*grown), f"Conv2d of {kernel[0]}×{kernel[1]}, padded at the end", exact=True)


def large_kernel(module: nn.Module) -> Outcome:
    """A stack of kernels of at most 7×7: exact up to 13×13."""
    if not isinstance(module, nn.Conv2d) or max(module.kernel_size) <= LARGE:
        return None
    head: list[nn.Module] = []
    conv = module
    if any(k % 2 == 0 for k in module.kernel_size):
        if module.padding_mode != "zeros":
            return Refused(f"its padding is by {module.padding_mode}, which cannot be made longer on one side")
        *head, conv = _odd(module)
    kernel = tuple(conv.kernel_size)
    exact = max(kernel) <= 2 * LARGE - 1
    stack = _shifted_windows(conv) if exact else _middle(conv)
    sizes = ", ".join(f"{c.kernel_size[0]}×{c.kernel_size[1]}" for c in stack)
    return Replacement(nn.Sequential(*head, *stack), f"{len(stack)} Conv2d of {sizes}", exact=exact)


def _sides(module: nn.Conv2d) -> list[tuple[int, int]]:
    """Padding before and after, for each axis."""
    if isinstance(module.padding, str):
        totals = [
            d * (k - 1) if module.padding == "same" else 0 for d, k in zip(module.dilation, module.kernel_size, strict=True)
        ]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in pair(module.padding)]


def _odd(module: nn.Conv2d) -> tuple[nn.ZeroPad2d, nn.Conv2d]:
    """The padding, and the convolution with a kernel that is odd along both axes."""
    extra = [1 - k % 2 for k in module.kernel_size]
    top, left = ((before, after + e * d) for (before, after), e, d in zip(_sides(module), extra, module.dilation, strict=True))
    weight = nn.functional.pad(module.weight.detach(), (0, extra[1], 0, extra[0]))
    pad = nn.ZeroPad2d((left[0], left[1], top[0], top[1]))
    return pad, _convolution(weight, module, padding=(0, 0), bias=module.bias)


def _shifted_windows(conv: nn.Conv2d) -> list[nn.Conv2d]:
    kernel = pair(conv.kernel_size)
    rows, columns = ((0, k - LARGE) if k > LARGE else (0,) for k in kernel)
    window = tuple(min(k, LARGE) for k in kernel)
    reach = tuple(k - w + 1 for k, w in zip(kernel, window, strict=True))
    offsets = list(product(rows, columns))
    weight = conv.weight.detach()
    copies = weight.new_zeros(len(offsets), 1, *reach)
    rest, windows = weight.clone(), []
    for i, (row, column) in enumerate(offsets):
        copies[i, 0, row, column] = 1.0
        part = rest[:, :, row : row + window[0], column : column + window[1]]
        windows.append(part.clone())
        part.zero_()  # each of the kernel's numbers is in one window only
    cut = torch.stack(windows, 2).flatten(1, 2)  # channel by channel, as the copies lie
    shift = _convolution(
        copies.repeat(conv.in_channels, 1, 1, 1), conv, padding=_even_sides(conv), stride=(1, 1), groups=conv.in_channels
    )
    apply = _convolution(cut, conv, padding=(0, 0), bias=conv.bias, zeros=True)
    return [shift, apply]


def _middle(conv: nn.Conv2d) -> list[nn.Conv2d]:
    """Kernels of the same receptive field: the inner ones start as the identity, the last as the kernel's middle."""
    kernel = pair(conv.kernel_size)
    weight = conv.weight.detach()
    rest = [k - min(k, LARGE) for k in kernel]
    stack: list[nn.Conv2d] = []
    while max(rest):
        grow = [min(r, LARGE - 1) for r in rest]
        rest = [r - g for r, g in zip(rest, grow, strict=True)]
        identity = weight.new_zeros(conv.in_channels, 1, grow[0] + 1, grow[1] + 1)
        identity[:, :, grow[0] // 2, grow[1] // 2] = 1.0
        padding = (0, 0) if stack else _even_sides(conv)
        stack.append(_convolution(identity, conv, padding=padding, stride=(1, 1), groups=conv.in_channels, zeros=bool(stack)))
    top, left = ((k - min(k, LARGE)) // 2 for k in kernel)
    middle = weight[:, :, top : top + min(kernel[0], LARGE), left : left + min(kernel[1], LARGE)]
    return [*stack, _convolution(middle.clone(), conv, padding=(0, 0), bias=conv.bias, zeros=True)]


def _even_sides(conv: nn.Conv2d) -> tuple[int, int]:
    """Padding of an odd kernel, which is alike on both sides."""
    (top, _), (left, _) = _sides(conv)
    return top, left


def _convolution(
    weight: Tensor, like: nn.Conv2d, *, padding: tuple[int, int], stride: Sequence[int] | None = None,
    groups: int | None = None, bias: Tensor | None = None, zeros: bool = False,
) -> nn.Conv2d:  # fmt: skip
    """A convolution with that weight and everything else like another's, parameters trained as that one's are."""
    groups = like.groups if groups is None else groups
    made = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], pair(tuple(weight.shape[2:])), pair(like.stride if stride is None else stride),
        padding, pair(like.dilation), groups, bias is not None, "zeros" if zeros else like.padding_mode,
        device="meta",
    )  # fmt: skip
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=like.weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return made
