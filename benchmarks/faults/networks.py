"""What a plant has to know of a network: convolutions with their norms, and who reads their channels.

Found by tracing with `torch.fx` alone, so that no analysis is shared with the kit.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_CHANNELWISE_MODULES = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Identity,
    nn.ReLU,
    nn.Flatten,
)
_CHANNELWISE = frozenset(
    "max_pool2d boolean_dispatch avg_pool2d adaptive_avg_pool2d relu dropout flatten contiguous mean".split()
)


@dataclass(frozen=True)
class Reader:
    """A weighted layer that reads a unit's channels.

    Attributes
    ----------
    path
        Of the module.
    offset
        Input channel at which the unit's first channel lies.
    spread
        Input columns a channel, above 1 behind a flattened image.
    depthwise
        Whether channel `c` is row `c` of its weight rather than column `c`.
    """

    path: str
    offset: int
    spread: int
    depthwise: bool

    def columns(self, model: nn.Module, channel: int) -> Tensor:
        """The weights that multiply the channel, a view to be edited in place."""
        weight = model.get_submodule(self.path).weight.data
        first = (self.offset + channel) * self.spread
        return weight[first : first + 1] if self.depthwise else weight[:, first : first + self.spread]


@dataclass(frozen=True)
class Unit:
    """A convolution with the batch norm behind it, and perhaps a ReLU.

    Attributes
    ----------
    conv, norm
        Module paths.
    relu
        Whether a ReLU alone reads the norm.
    depthwise
        One filter a channel.
    source, pre, end
        Nodes of the convolution's input, of the norm and of the unit's last operation.
    readers
        All that read its channels, or None if something else than convolutions and linear layers does.
    """

    conv: str
    norm: str
    relu: bool
    depthwise: bool
    source: fx.Node
    pre: fx.Node
    end: fx.Node
    readers: tuple[Reader, ...] | None

    @property
    def layers(self) -> frozenset[str]:
        """Names that count as this unit."""
        return frozenset((self.conv, self.norm, f"{self.conv}.weight"))


@dataclass(frozen=True)
class Branch:
    """A unit that ends in a concatenation."""

    unit: Unit
    join: int


class Network:
    """A model, traced; edits of the model are edits of the trace, which shares its modules.

    Parameters
    ----------
    model
        In evaluation mode.
    images
        A batch to take shapes and statistics from.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model = model
        self.images = images
        self.traced = fx.symbolic_trace(model)
        # symbolic_trace copies the module tree: put the model's own modules back, so that edits are seen
        self.nodes = list(self.traced.graph.nodes)
        self.modules = dict(model.named_modules())
        self.shapes = {n: tuple(v.shape) for n, v in self._run(images[:2]).items() if isinstance(v, Tensor)}
        self.units = {u.conv: u for u in self._units()}

    def unit(self, path: str) -> Unit:
        """The unit of that convolution."""
        return self.units[path]

    def where(self, *, relu: bool | None = None, depthwise: bool | None = None, readers: bool = False) -> list[Unit]:
        """Units with these properties, in execution order."""
        return [
            u
            for u in self.units.values()
            if (relu is None or u.relu == relu)
            and (depthwise is None or u.depthwise == depthwise)
            and (not readers or bool(u.readers))
        ]

    @property
    def joins(self) -> list[fx.Node]:
        """Concatenations, in execution order."""
        return [n for n in self.nodes if n.op == "call_function" and n.target in (torch.cat, torch.concat)]

    def branches(self, join: int) -> list[Unit]:
        """Units that feed the concatenation directly and nothing else."""
        node = self.joins[join]
        return [u for u in self.units.values() if list(u.end.users) == [node]]

    @property
    def first(self) -> str:
        """Path of the convolution that reads the images."""
        return next(str(n.target) for n in self.nodes if isinstance(self._module(n), nn.Conv2d))

    @torch.no_grad()
    def values(self, wanted: Iterable[fx.Node], images: Tensor | None = None) -> list[Tensor]:
        """The nodes' tensors on the images, in float."""
        found = self._run(self.images if images is None else images)
        return [found[n] for n in wanted]

    @torch.no_grad()
    def _run(self, images: Tensor) -> dict[fx.Node, Any]:
        found: dict[fx.Node, Any] = {}
        for node in self.nodes:
            args = fx.node.map_arg(node.args, found.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, found.__getitem__)
            if node.op == "placeholder":
                found[node] = images
            elif node.op == "call_module":
                found[node] = _copied(self.modules[str(node.target)], args, kwargs)
            elif node.op == "call_function":
                found[node] = node.target(*_cloned(node, args), **kwargs)
            elif node.op == "call_method":
                found[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            elif node.op == "get_attr":
                found[node] = operator.attrgetter(str(node.target))(self.model)
        return found

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def _units(self) -> list[Unit]:
        found = []
        for node in self.nodes:
            conv, users = self._module(node), list(node.users)
            if not isinstance(conv, nn.Conv2d) or len(users) != 1 or not isinstance(self._module(users[0]), nn.BatchNorm2d):
                continue
            norm = users[0]
            after = list(norm.users)
            relu = len(after) == 1 and self._is_relu(after[0])
            end = after[0] if relu else norm
            found.append(
                Unit(
                    str(node.target),
                    str(norm.target),
                    relu,
                    conv.groups == conv.in_channels > 1,
                    node.all_input_nodes[0],
                    norm,
                    end,
                    self._readers(end, 0, 1),
                )
            )
        return found

    def _is_relu(self, node: fx.Node) -> bool:
        return isinstance(self._module(node), nn.ReLU) or (node.op != "call_module" and _name(node) == "relu")

    def _readers(self, node: fx.Node, offset: int, spread: int) -> tuple[Reader, ...] | None:
        found: list[Reader] = []
        for user in node.users:
            module = self._module(user)
            deeper: tuple[Reader, ...] | None = None
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                groups = getattr(module, "groups", 1)
                if groups == 1:
                    deeper = (Reader(str(user.target), offset, spread, False),)
                elif groups == module.in_channels:  # type: ignore[union-attr]
                    deeper = (Reader(str(user.target), offset, spread, True),)
            elif user in self.joins:
                parts = user.args[0]
                before = parts.index(node)  # type: ignore[union-attr]
                width = sum(self.shapes[p][1] for p in parts[:before])  # type: ignore[index,union-attr]
                deeper = self._readers(user, offset + width, spread)
            elif isinstance(module, _CHANNELWISE_MODULES) or (module is None and _name(user) in _CHANNELWISE):
                shape = self.shapes[node]
                flattens = len(shape) == 4 and len(self.shapes[user]) == 2 and self.shapes[user][1] != shape[1]
                deeper = self._readers(user, offset, spread * (shape[2] * shape[3] if flattens else 1))
            if deeper is None:
                return None
            found += deeper
        return tuple(found) or None


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _copied(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The module's output; ReLUs that work in place would change what was recorded before them."""
    if isinstance(module, nn.ReLU):
        return F.relu(args[0])
    return module(*args, **kwargs)


def _cloned(node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
    in_place = node.kwargs.get("inplace") or _name(node).startswith("i")
    return tuple(a.clone() if in_place and isinstance(a, Tensor) else a for a in args)
