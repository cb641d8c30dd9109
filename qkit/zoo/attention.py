"""Transformers at a small width, for images of 32×32: plain, with windows, and mixed with convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

DEIT_WIDTH, DEIT_DEPTH, DEIT_HEADS, DEIT_PATCH = 64, 4, 4, 8
#: Channels of the convolutions that make the patches, of stride 2 each.
DEIT_STEM = (16, 32)
SWIN_WIDTH, SWIN_PATCH, SWIN_WINDOW, SWIN_STEM = 48, 4, 4, 24
#: Blocks and heads of each stage; patches are merged between stages, at twice the channels.
SWIN_DEPTHS, SWIN_HEADS = (2, 2), (2, 4)
MOBILEVIT_CHANNELS = (16, 24, 32, 48)
#: Channels of the tokens, and transformer blocks, of each of the two hybrid stages.
MOBILEVIT_WIDTHS, MOBILEVIT_DEPTHS = (48, 64), (2, 2)
SIZE = 32


class Mlp(nn.Module):
    """Two linear layers with a pointwise function between them: (..., C) to (..., C)."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = activation()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention over tokens (N, L, C), by torch's scaled dot product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, length, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A transformer's block with the norms in front: (N, L, C) to (N, L, C)."""

    def __init__(self, width: int, heads: int, ratio: int = 4, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, ratio * width, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class DeiT(nn.Module):
    """Vision transformer with a class token and learned positions (Touvron et al. 2021, without the distillation token).

    The patches come from a few convolutions (Xiao et al. 2021, "Early Convolutions Help Transformers See Better"): of one linear
    layer a patch, 800 images are too few to learn what neighbours are.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        first, second = DEIT_STEM
        self.patch_embed = nn.Sequential(
            _conv(3, first, 3, 2, activation=nn.GELU), _conv(first, second, 3, 2, activation=nn.GELU),
            nn.Conv2d(second, DEIT_WIDTH, 2, 2),
        )  # fmt: skip
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DEIT_WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIZE // DEIT_PATCH) ** 2 + 1, DEIT_WIDTH))
        self.blocks = nn.Sequential(*(Block(DEIT_WIDTH, DEIT_HEADS) for _ in range(DEIT_DEPTH)))
        self.norm = nn.LayerNorm(DEIT_WIDTH)
        self.head = nn.Linear(DEIT_WIDTH, num_classes)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])  # type: ignore[no-any-return]


class WindowAttention(nn.Module):
    """Self-attention within windows, (N, L, C) a window, with a learned bias for every relative position."""

    relative_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.bias_table = nn.Parameter(nn.init.trunc_normal_(torch.empty((2 * window - 1) ** 2, heads), std=0.02))
        places = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        apart = places[:, None] - places[None, :] + window - 1
        self.register_buffer("relative_index", apart[..., 0] * (2 * window - 1) + apart[..., 1], persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        logits = q @ k.transpose(-2, -1)
        logits = logits + self.bias_table[self.relative_index].permute(2, 0, 1)
        if mask is not None:
            windows = mask.shape[0]
            logits = logits.view(n // windows, windows, self.heads, length, length) + mask[:, None]
            logits = logits.view(-1, self.heads, length, length)
        x = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, length, width)
        return self.proj(x)  # type: ignore[no-any-return]


class SwinBlock(nn.Module):
    """Attention in windows, shifted or not, and a perceptron: (N, H, W, C) to (N, H, W, C)."""

    mask: Tensor | None

    def __init__(self, width: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 3 * width)
        self.register_buffer("mask", _shift_mask(size, window, shift) if shift else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        windows = self.norm1(x)
        if self.shift:
            windows = torch.roll(windows, shifts=(-self.shift, -self.shift), dims=(1, 2))
        attended = self.attn(_windows(windows, self.window), self.mask)
        attended = attended.view(n, height // self.window, width // self.window, self.window, self.window, channels)
        attended = attended.permute(0, 1, 3, 2, 4, 5).reshape(n, height, width, channels)
        if self.shift:
            attended = torch.roll(attended, shifts=(self.shift, self.shift), dims=(1, 2))
        x = x + attended
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """Four neighbours to one token of twice the channels: (N, H, W, C) to (N, H/2, W/2, 2 C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, row::2, column::2, :] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, dim=-1)))  # type: ignore[no-any-return]


class Swin(nn.Module):
    """Transformer with shifted windows in two stages (Liu et al. 2021), its patches from two convolutions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(
            _conv(3, SWIN_STEM, 3, 2, activation=nn.GELU), nn.Conv2d(SWIN_STEM, SWIN_WIDTH, SWIN_PATCH // 2, SWIN_PATCH // 2)
        )
        self.patch_norm = nn.LayerNorm(SWIN_WIDTH)
        stages: list[nn.Module] = []
        size, width = SIZE // SWIN_PATCH, SWIN_WIDTH
        for stage, (depth, heads) in enumerate(zip(SWIN_DEPTHS, SWIN_HEADS, strict=True)):
            if stage:
                stages.append(PatchMerging(width))
                size, width = size // 2, 2 * width
            # one window that is the whole picture has nothing to be shifted to
            shifts = (SWIN_WINDOW // 2 if number % 2 and size > SWIN_WINDOW else 0 for number in range(depth))
            stages.append(nn.Sequential(*(SwinBlock(width, heads, size, SWIN_WINDOW, shift) for shift in shifts)))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_norm(self.patch_embed(x).permute(0, 2, 3, 1))
        x = self.norm(self.stages(x))
        return self.head(x.mean(dim=(1, 2)))  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """MobileNetV2's block with SiLU: 1×1, depthwise 3×3, 1×1, and an addition where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 3) -> None:
        super().__init__()
        hidden = inputs * expand
        self.conv = nn.Sequential(
            _conv(inputs, hidden, 1), _conv(hidden, hidden, 3, stride, groups=hidden), _conv(hidden, outputs, 1, activation=None)
        )
        self.joins = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.joins else self.conv(x)  # type: ignore[no-any-return]


class MobileViTBlock(nn.Module):
    """Convolutions, a transformer over the pixels of the same place in every 2×2 patch, and convolutions (N, C, H, W)."""

    def __init__(self, channels: int, width: int, depth: int, heads: int = 4, patch: int = 2) -> None:
        super().__init__()
        self.patch = patch
        self.local = nn.Sequential(_conv(channels, channels, 3), nn.Conv2d(channels, width, 1, bias=False))
        self.transformer = nn.Sequential(*(Block(width, heads, ratio=2, activation=nn.SiLU) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.project = _conv(width, channels, 1)
        self.fusion = _conv(2 * channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x)
        n, width, rows, columns = local.shape
        p, count = self.patch, (rows // self.patch) * (columns // self.patch)
        tokens = local.reshape(n, width, rows // p, p, columns // p, p).permute(0, 3, 5, 2, 4, 1).reshape(n * p * p, count, width)
        tokens = self.norm(self.transformer(tokens))
        folded = (
            tokens.reshape(n, p, p, rows // p, columns // p, width).permute(0, 5, 3, 1, 4, 2).reshape(n, width, rows, columns)
        )
        return self.fusion(torch.cat((x, self.project(folded)), dim=1))  # type: ignore[no-any-return]


class MobileViT(nn.Module):
    """Depthwise convolutions with transformers between them (Mehta and Rastegari 2022)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        first, second, third, fourth = MOBILEVIT_CHANNELS
        self.stem = _conv(3, first, 3, stride=2)
        self.stages = nn.Sequential(
            InvertedResidual(first, first, stride=1),
            InvertedResidual(first, second, stride=2),
            InvertedResidual(second, third, stride=1),
            MobileViTBlock(third, MOBILEVIT_WIDTHS[0], MOBILEVIT_DEPTHS[0]),
            InvertedResidual(third, fourth, stride=2),
            MobileViTBlock(fourth, MOBILEVIT_WIDTHS[1], MOBILEVIT_DEPTHS[1]),
        )
        self.last = _conv(fourth, 4 * fourth, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * fourth, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.last(self.stages(self.stem(x))))
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


def deit_small(num_classes: int = 10) -> nn.Module:
    """DeiT-tiny's shape at 64 channels: 8×8 patches, a class token, four blocks of four heads, torch's attention.

    Input (N, 3, 32, 32), output (N, num_classes) logits.
    """
    return DeiT(num_classes)


def swin_small(num_classes: int = 10) -> nn.Module:
    """Swin's shape at 32 and 64 channels: 2×2 patches, 4×4 windows, shifted in every other block, attention by hand.

    Input (N, 3, 32, 32), output (N, num_classes) logits.
    """
    return Swin(num_classes)


def mobilevit_small(num_classes: int = 10) -> nn.Module:
    """MobileViT's shape at 16 to 48 channels: depthwise convolutions, batch norm, SiLU, and two stages with transformers.

    Input (N, 3, 32, 32), output (N, num_classes) logits.
    """
    return MobileViT(num_classes)


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, activation: type[nn.Module] | None = nn.SiLU
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([] if activation is None else [activation()]))


def _windows(x: Tensor, window: int) -> Tensor:
    """(N, H, W, C) to (N · windows, window², C)."""
    n, height, width, channels = x.shape
    x = x.view(n, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def _shift_mask(size: int, window: int, shift: int) -> Tensor:
    """What keeps tokens apart that only the shift has brought into one window: (windows, window², window²), 0 or -100."""
    region = torch.zeros(size, dtype=torch.long)
    region[size - window : size - shift], region[size - shift :] = 1, 2
    regions = _windows((3 * region[:, None] + region[None, :])[None, ..., None], window).squeeze(-1)
    return (regions[:, :, None] != regions[:, None, :]).float() * -100.0
