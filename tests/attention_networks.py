"""Small networks of attention, norms and pointwise functions, shaped like those that detectors and classifiers carry today.

All take images of (N, 3, 16, 16) and give scores of five classes. Weights are random, of the size that training leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkit

#: Channels, heads and patches a side of the transformers here.
WIDTH, HEADS, SIDE = 24, 3, 4


def _heads(x: Tensor, parts: int) -> tuple[Tensor, ...]:
    """``(N, T, parts * C)`` as that many ``(N, heads, T, C / heads)``."""
    n, t, c = x.shape
    return x.reshape(n, t, parts, HEADS, c // parts // HEADS).permute(2, 0, 3, 1, 4).unbind(0)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Fused query, key and value; torch's own attention, or by hand with a mask that is added."""

    def __init__(self, *, by_hand: bool = False, mask: Tensor | None = None) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.by_hand = by_hand
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = _heads(self.qkv(x), 3)
        if not self.by_hand:
            return self.proj(_joined(F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores if self.mask is None else scores + self.mask
        return self.proj(_joined(scores.softmax(-1) @ v))


class CosineAttention(nn.Module):
    """Queries and keys of length one, with a scale per head (Liu et al. 2022, Swin Transformer V2)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.log(torch.tensor([4.0, 8.0, 12.0])).view(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = _heads(self.qkv(x), 3)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return self.proj(_joined((scores * self.scale.exp()).softmax(-1) @ v))


class Own(nn.Module):
    """torch's own multi-head attention."""

    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False, attn_mask=self.mask)[0]


class Mlp(nn.Module):
    """Two linear layers around GELU, exact or by tanh."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(approximate), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class SwiGlu(nn.Module):
    """A SiLU times a linear layer (Shazeer 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and a pointwise network, each behind a norm and added to what went in."""

    def __init__(self, attention: nn.Module, mlp: nn.Module, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm(WIDTH), attention, norm(WIDTH), mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Patches, a class token in front, positions added, blocks, and the class token read."""

    def __init__(self, *blocks: nn.Module, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.token = nn.Parameter(0.5 * torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(0.3 * torch.randn(1, 1 + SIDE**2, WIDTH))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = norm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class RootNorm(nn.Module):
    """RMSNorm by hand, as most networks have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(1.0 + 0.2 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class SwinBlock(nn.Module):
    """Attention in windows of 2 x 2, shifted by one or not, with a learned bias for each place (Liu et al. 2021)."""

    def __init__(self, shift: int, hidden: float) -> None:
        super().__init__()
        self.shift, self.window = shift, 2
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj, self.mlp = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), Mlp()
        self.table = nn.Parameter(0.5 * torch.randn(9, HEADS))
        y, x = torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")
        places = torch.stack([y.flatten(), x.flatten()])
        self.register_buffer("index", ((places[:, :, None] - places[:, None] + 1) * torch.tensor([3, 1]).view(2, 1, 1)).sum(0))
        self.register_buffer("mask", self._mask(hidden) if shift else None)

    def _mask(self, hidden: float) -> Tensor:
        part = torch.zeros(1, SIDE, SIDE, 1)
        cuts = (slice(0, -2), slice(-2, -1), slice(-1, None))
        for i, rows in enumerate(cuts):
            for j, columns in enumerate(cuts):
                part[:, rows, columns] = 3 * i + j
        part = self._windows(part).squeeze(-1)
        return torch.where(part[:, None] != part[:, :, None], hidden, 0.0)

    def _windows(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        return x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        y = self.norm1(x)
        y = torch.roll(y, (-self.shift, -self.shift), (1, 2)) if self.shift else y
        q, k, v = _heads(self.qkv(self._windows(y)), 3)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.table[self.index.view(-1)].view(4, 4, HEADS).permute(2, 0, 1).unsqueeze(0)
        if self.mask is not None:
            scores = (scores.view(-1, 4, HEADS, 4, 4) + self.mask[None, :, None]).view(-1, HEADS, 4, 4)
        y = self.proj(_joined(scores.softmax(-1) @ v))
        y = y.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        y = torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y
        x = x + y
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    """Two blocks of windows, patches merged, and the mean read."""

    def __init__(self, hidden: float = -100.0) -> None:
        super().__init__()
        self.patch, self.norm0 = nn.Conv2d(3, WIDTH, 4, stride=4), nn.LayerNorm(WIDTH)
        self.blocks = nn.Sequential(SwinBlock(0, hidden), SwinBlock(1, hidden))
        self.merge_norm, self.merge = nn.LayerNorm(4 * WIDTH), nn.Linear(4 * WIDTH, 2 * WIDTH, bias=False)
        self.norm, self.head = nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.norm0(self.patch(x).permute(0, 2, 3, 1)))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.norm(self.merge(self.merge_norm(x))).mean((1, 2)))


class MobileVit(nn.Module):
    """Convolutions around a transformer over unfolded patches (Mehta and Rastegari 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.SiLU())
        self.local = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12), nn.SiLU())
        self.enter = nn.Conv2d(12, WIDTH, 1)
        self.blocks, self.norm = Block(Attention(), Mlp()), nn.LayerNorm(WIDTH)
        self.leave = nn.Sequential(nn.Conv2d(WIDTH, 12, 1), nn.BatchNorm2d(12), nn.SiLU())
        self.fuse, self.head = nn.Sequential(nn.Conv2d(24, 16, 3, padding=1), nn.SiLU()), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.enter(x + self.local(x))
        n, c, h, w = y.shape
        y = y.reshape(n * c * (h // 2), 2, w // 2, 2).transpose(1, 2).reshape(n, c, h * w // 4, 4)
        y = y.transpose(1, 3).reshape(n * 4, h * w // 4, c)
        y = self.norm(self.blocks(y))
        y = y.contiguous().view(n, 4, h * w // 4, c).transpose(1, 3)
        y = y.reshape(n * c * (h // 2), w // 2, 2, 2).transpose(1, 2).reshape(n, c, h, w)
        y = self.fuse(torch.cat([x, self.leave(y)], 1))
        return self.head(y.mean((2, 3)))


class ResponseNorm(nn.Module):
    """Global response normalization, channels last (Woo et al. 2023)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.5 * torch.randn(width)), nn.Parameter(0.2 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(p=2, dim=(1, 2), keepdim=True)
        return x + self.bias + self.weight * (x * (norm / (norm.mean(-1, keepdim=True) + 1e-6)))


class ConvNext(nn.Module):
    """A block with a layer scale (Liu et al. 2022) and one with a response norm, between norms of channels first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.depth = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))
        self.response = ResponseNorm(2 * WIDTH)
        self.layer_scale = nn.Parameter(0.5 + 0.3 * torch.randn(WIDTH))
        self.weight, self.bias = nn.Parameter(1.0 + 0.2 * torch.randn(WIDTH)), nn.Parameter(0.2 * torch.randn(WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def first(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        y = F.gelu(self.up[0](self.norms[0](self.depth[0](x).permute(0, 2, 3, 1))))
        x = x + (self.layer_scale * self.down[0](y)).permute(0, 3, 1, 2)
        y = F.gelu(self.up[1](self.norms[1](self.depth[1](x).permute(0, 2, 3, 1))))
        x = x + self.down[1](self.response(y)).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class GroupNorms(nn.Module):
    """Residual convolutions behind group norms, as diffusion networks and detectors' heads have them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, 16), nn.GroupNorm(1, 16), nn.InstanceNorm2d(16, affine=True)])
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(F.silu(norm(x)))
        return self.head(x.mean((2, 3)))


class Softmaxes(nn.Module):
    """Softmax over channels, over places, and gates: attention as detectors' necks and heads have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.key, self.value = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.gate, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = self.key(x).softmax(1) * self.value(x)
        places = self.key(x).flatten(2).softmax(-1)
        context = (places * y.flatten(2)).sum(-1)
        x = x * torch.sigmoid(self.gate(context))[:, :, None, None] + torch.tanh(y)
        return self.head(F.elu(x).mean((2, 3)))


def _causal(hidden: float) -> Tensor:
    """A mask that hides what comes later behind a number."""
    return torch.full((1 + SIDE**2, 1 + SIDE**2), hidden).triu(1)


#: Networks by name, made anew at each call.
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "vit": lambda: Vit(Block(Attention(), Mlp()), Block(Attention(by_hand=True), Mlp("tanh"))),
    "swin": Swin,
    "mobilevit": MobileVit,
    "convnext": ConvNext,
    "rmsnorm-swiglu": lambda: Vit(
        Block(Attention(), SwiGlu(), RootNorm), Block(Attention(by_hand=True), SwiGlu(), nn.RMSNorm), norm=RootNorm
    ),
    "groupnorm": GroupNorms,
    "cosine": lambda: Vit(Block(CosineAttention(), Mlp())),
    "multihead": lambda: Vit(Block(Own(), Mlp()), Block(Own(_causal(-torch.inf)), Mlp())),
    "softmax-dim-1": Softmaxes,
    "masks": lambda: Vit(
        Block(Attention(mask=_causal(-torch.inf)), Mlp()),
        Block(Attention(mask=_causal(1.0).eq(0.0)), Mlp()),
        Block(Attention(by_hand=True, mask=_causal(-100.0)), Mlp()),
    ),
}


@torch.no_grad()
def attention_network(name: str, seed: int = 0) -> nn.Module:
    """One of `NETWORKS` in evaluation mode, with norms away from their defaults."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name]()
        for module in model.modules():
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.BatchNorm2d, nn.RMSNorm)):
                module.weight.uniform_(0.6, 1.6)
                if getattr(module, "bias", None) is not None:
                    module.bias.normal_(0.0, 0.3)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.2, 1.5)
            if isinstance(module, nn.Linear):
                module.weight.mul_(1.7)
    return model.eval()


def attention_study(name: str, scheme: str = "int8") -> qkit.Study:
    """One of `NETWORKS` on noise; its score is agreement with float."""
    draw = torch.Generator().manual_seed(3)
    data = [torch.randn(16, 3, 16, 16, generator=draw) for _ in range(2)]
    return qkit.Study(attention_network(name), data, data, scheme=scheme)
