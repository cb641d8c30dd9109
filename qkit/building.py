"""From traced nodes to steps: batch norms folded, activations that clamp fused into their producers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qkit import operations as ops
from qkit.steps import QUANTIZED, Step, tensors_in

#: Kinds that clamping activations fuse into.
_FUSES = frozenset({"conv", "conv-transpose", "linear", "batchnorm", "add"})


class Builder:
    """Walks the traced nodes once and appends steps."""

    def __init__(self, traced: fx.GraphModule, values: Mapping[fx.Node, Any]) -> None:
        self.traced = traced
        self.values = values
        self.steps: list[Step] = []
        self.at: dict[fx.Node, int] = {}
        self.weights: dict[str, Tensor] = {}
        self.biases: dict[str, Tensor] = {}
        self.names: Counter[str] = Counter()
        self.calls = Counter(str(n.target) for n in traced.graph.nodes if n.op == "call_module")
        self.placeholders = 0

    def build(self) -> tuple[Step, ...]:
        """The steps; `weights` and `biases` are filled meanwhile."""
        for node in self.traced.graph.nodes:
            if node not in self.at:
                self._add(node)
        return tuple(self.steps)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.traced.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _is_float(self, node: fx.Node) -> bool:
        return bool(tensors_in(self.values[node]))

    def _add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._add_placeholder(node)
        elif node.op == "get_attr":
            self._add_constant(node)
        elif node.op == "output":
            self._append(node, "output", "output", _caller(lambda x: x, node.args, {}, node.all_input_nodes))
        elif node.op == "call_module":
            self._add_module(node)
        else:
            self._add_function(node)

    def _add_placeholder(self, node: fx.Node) -> None:
        if node.users or self.placeholders == 0:
            base = "input" if self.placeholders == 0 else f"input:{node.target}"
            kind = "input" if self._is_float(node) else "meta"
            self._append(node, base, kind, _fresh_copy, argument=self.placeholders)
        self.placeholders += 1

    def _add_constant(self, node: fx.Node) -> None:
        value: Any = self.traced
        for part in str(node.target).split("."):
            value = getattr(value, part)
        arithmetic = any(ops.function_kind(user) in ops.ARITHMETIC for user in node.users if user.op.startswith("call_"))
        weight_only = all(user.target in ops.FUNCTIONAL_WEIGHTED and self._constant_weight(user) for user in node.users)
        if weight_only and node.users:
            return
        kind = "constant" if arithmetic and self._is_float(node) else "meta"
        self._append(node, str(node.target), kind, lambda: value.clone() if isinstance(value, Tensor) else value)

    def _add_module(self, node: fx.Node) -> None:
        module, path = self._module(node), str(node.target)
        assert module is not None
        kind = ops.module_kind(module)
        if kind in {"conv", "conv-transpose", "linear"} and len(node.all_input_nodes) == 1 == len(node.args) + len(node.kwargs):
            self._add_weighted(node, module, path, kind)
        elif kind == "batchnorm":
            self._add_batch_norm(node, module, path)
        else:
            # what is left of the weighted kinds: a transposed convolution that is told its output size
            kind = None if kind in ops.WEIGHTED.values() else kind
            self._add_plain(node, path, kind, module, node.args, node.kwargs)

    def _add_function(self, node: fx.Node) -> None:
        kind = ops.function_kind(node)
        name = f"{node.meta.get('path', '')}:{ops.short_name(node.target)}"
        if node.target in ops.FUNCTIONAL_WEIGHTED and self._constant_weight(node) is not None:
            self._add_functional_weighted(node, name)
            return
        target, args, kwargs = ops.out_of_place(node)
        function = target if callable(target) else _method(str(target))
        self._add_plain(node, name, kind, function, args, kwargs)

    def _add_plain(
        self, node: fx.Node, name: str, kind: str | None, function: Callable[..., Any], args: Any, kwargs: Any
    ) -> None:
        note = ops.note(kind) if kind else None
        if not self._is_float(node):
            kind, note = "meta", None
        elif kind is None:
            what = type(self._module(node)).__name__ if node.op == "call_module" else ops.short_name(node.target)
            why = "has its weight computed as it runs" if node.target in ops.FUNCTIONAL_WEIGHTED else "has no integer form here"
            kind, note = "float", f"{what} {why}: it runs in float on the lane's values and its output is not rounded"
        elif kind != "keep" and not isinstance(self.values[node], Tensor):
            kind, note = "float", f"{ops.short_name(node.target)} returns several tensors: they are not rounded"
        clamp = ops.clamp_bounds(node, self._module(node))
        act, last = self._fused_activation(node) if kind in _FUSES else (ops.UNBOUNDED, node)
        call = _caller(function, args, kwargs, node.all_input_nodes)
        if kind == "activation" and clamp is not None:
            # a clamp with a tap of its own: copy, and let the grid's own clamp do the work
            act, call = clamp, _fresh_copy
        self._append(node, name, kind, call, act=act, last=last, note=note)

    def _add_weighted(self, node: fx.Node, module: nn.Module, path: str, kind: str) -> None:
        last = node
        norm = self._following_batch_norm(node)
        fused: Any = module
        if norm is not None:
            bn: Any = self._module(norm)
            fused = fuse_linear_bn_eval(fused, bn) if kind == "linear" else fuse_conv_bn_eval(fused, bn, kind == "conv-transpose")
            last = norm
        act, last = self._fused_activation(last)
        self._weigh(path, fused.weight, fused.bias)
        axis: int | None = 0
        note = None
        if kind == "conv-transpose":
            axis = 1 if module.groups == 1 else None
            note = None if axis == 1 else "transposed convolution in groups: its weight gets one grid per tensor, not per channel"
        self._append(
            node, path, kind, ops.weighted_call(module), act=act, last=last, weight_axis=axis, note=note,
            weight=f"{path}.weight", bias=f"{path}.bias" if fused.bias is not None else None,
            norm=None if norm is None else str(norm.target),
        )  # fmt: skip

    def _add_functional_weighted(self, node: fx.Node, name: str) -> None:
        weight = self._constant_weight(node)
        assert weight is not None
        key, tensor = weight
        arguments = ops.weighted_arguments(node)
        source, bias = arguments["input"], arguments.get("bias")
        settings = {k: v for k, v in arguments.items() if k not in {"input", "weight", "bias"}}
        function: Any = node.target
        act, last = self._fused_activation(node)
        bias_name = None
        if isinstance(bias, fx.Node):
            bias_name = str(bias.target)
            self.biases[bias_name] = self._attribute(bias)
        self.weights[key] = _packed(tensor)
        self._append(
            node, name, ops.FUNCTIONAL_WEIGHTED[node.target], lambda x, w, b: function(x, w, b, **settings),
            act=act, last=last, weight=key, bias=bias_name, inputs=(source,),
        )  # fmt: skip

    def _constant_weight(self, node: fx.Node) -> tuple[str, Tensor] | None:
        arguments = ops.weighted_arguments(node)
        if any(isinstance(v, fx.Node) and v.op != "get_attr" for k, v in arguments.items() if k != "input"):
            return None
        weight = arguments.get("weight")
        return (str(weight.target), self._attribute(weight)) if isinstance(weight, fx.Node) else None

    def _attribute(self, node: fx.Node) -> Tensor:
        value: Any = self.traced
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value.detach()  # type: ignore[no-any-return]

    def _add_batch_norm(self, node: fx.Node, module: Any, path: str) -> None:
        """A batch norm that has no convolution to fold into is what engines make of it: a scale and an offset per channel."""
        scale = torch.rsqrt(module.running_var + module.eps)
        offset = -module.running_mean * scale
        if module.affine:
            offset = offset * module.weight + module.bias
            scale = scale * module.weight
        act, last = self._fused_activation(node)
        self._weigh(path, scale, offset)
        self._append(
            node, path, "batchnorm", _scale_and_shift, act=act, last=last,
            weight=f"{path}.weight", bias=f"{path}.bias", norm=path,
        )  # fmt: skip

    def _weigh(self, path: str, weight: Tensor, bias: Tensor | None) -> None:
        self.weights[f"{path}.weight"] = _packed(weight.detach())
        if bias is not None:
            self.biases[f"{path}.bias"] = bias.detach()

    def _following_batch_norm(self, node: fx.Node) -> fx.Node | None:
        """The batch norm that only this call feeds, that is used nowhere else, and whose channels are those of the weight."""
        users = list(node.users)
        module = self._module(node)
        if isinstance(module, nn.Linear) and self.values[node].ndim != 2:
            return None  # over (N, L, C) the norm's channels are L
        if getattr(module, "transposed", False) and module.groups != 1:  # type: ignore[union-attr]
            return None
        if len(users) != 1 or self.calls[str(node.target)] != 1 or users[0].op != "call_module":
            return None
        if self.calls[str(users[0].target)] != 1:
            return None
        return users[0] if ops.module_kind(self.traced.get_submodule(str(users[0].target))) == "batchnorm" else None

    def _fused_activation(self, node: fx.Node) -> tuple[ops.Bounds, fx.Node]:
        """Bounds of the clamp that alone reads `node`, and the node whose value the step then has."""
        users = list(node.users)
        if len(users) == 1 and users[0].op.startswith("call_"):
            bounds = ops.clamp_bounds(users[0], self._module(users[0]))
            if bounds is not None and users[0].all_input_nodes == [node]:
                return bounds, users[0]
        return ops.UNBOUNDED, node

    def _unique(self, name: str) -> str:
        self.names[name] += 1
        return name if self.names[name] == 1 else f"{name}#{self.names[name]}"

    def _append(
        self, node: fx.Node, name: str, kind: str, call: Callable[..., Any], *, last: fx.Node | None = None,
        inputs: tuple[Any, ...] | None = None, **rest: Any,
    ) -> None:  # fmt: skip
        sources = list(inputs) if inputs is not None else ([] if node.op in {"placeholder", "get_attr"} else node.all_input_nodes)
        indices = tuple(self.at[n] for n in sources)
        final = last if last is not None else node
        value = self.values[final]
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        name = self._unique(name)
        tap = name if kind in QUANTIZED else self._kept_tap(indices) if kind == "keep" else None
        step = Step(
            len(self.steps), name, kind, self._layer(node, name), indices, call, tap=tap, shape=shape,
            channel_axis=self._channel_axis(node, kind, indices, shape), **rest,
        )  # fmt: skip
        self.steps.append(replace(step, macs=self._macs(step)))
        for member in {node, final, *self._between(node, final)}:
            self.at[member] = step.index

    @staticmethod
    def _between(node: fx.Node, final: fx.Node) -> list[fx.Node]:
        found = []
        while final is not node:
            found.append(final)
            final = final.all_input_nodes[0]
        return found

    @staticmethod
    def _layer(node: fx.Node, name: str) -> str:
        return str(node.target) if node.op in {"call_module", "get_attr"} else node.meta.get("path", "") or name

    def _kept_tap(self, indices: tuple[int, ...]) -> str | None:
        taps = [self.steps[i].tap for i in indices if self.steps[i].kind != "meta"]
        return taps[0] if taps else None

    def _channel_axis(self, node: fx.Node, kind: str, indices: tuple[int, ...], shape: tuple[int, ...]) -> int:
        if kind in {"conv", "conv-transpose", "batchnorm"} or len(shape) < 2:
            return min(1, max(len(shape) - 1, 0))
        if kind == "linear" or (kind == "norm" and "layer" in str(self._module(node) or node.target).lower()):
            return len(shape) - 1
        sources = [self.steps[i] for i in indices if len(self.steps[i].shape) == len(shape)]
        if not sources:
            return 2 if len(shape) == 3 and not any(self._reads_channels_first(user) for user in node.users) else 1
        axis = sources[0].channel_axis
        name = ops.short_name(node.target) if node.op != "call_module" else ""
        if name == "permute":
            order = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
            return [d % len(shape) for d in order].index(axis)  # type: ignore[operator]
        if name in {"transpose", "swapaxes", "swapdims"}:
            a, b = (int(d) % len(shape) for d in node.args[1:3])  # type: ignore[arg-type]
            return b if axis == a else a if axis == b else axis
        return axis

    def _reads_channels_first(self, user: fx.Node) -> bool:
        return isinstance(self._module(user), (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d)) or user.target is F.conv1d

    def _macs(self, step: Step) -> int:
        if step.weight is None or not step.shape:
            return 0
        weight = self.weights[step.weight]
        outputs = 1
        for size in step.shape[1:]:
            outputs *= size
        if step.kind == "conv-transpose":
            source = self.steps[step.inputs[0]].shape
            inputs = 1
            for size in source[1:]:
                inputs *= size
            return inputs * weight[0].numel()
        return outputs * weight[0].numel()


def _packed(weight: Tensor) -> Tensor:
    """A weight in the memory layout that lanes run fastest with: no gaps, images' channels last."""
    return weight.contiguous(memory_format=torch.channels_last if weight.ndim == 4 else torch.contiguous_format)


def _fresh_copy(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def _scale_and_shift(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *([1] * (x.ndim - 2)))
    scaled = x * weight.view(shape)
    return scaled if bias is None else scaled.add_(bias.view(shape))


def _method(name: str) -> Callable[..., Any]:
    return lambda obj, *args, **kwargs: getattr(obj, name)(*args, **kwargs)


def _caller(function: Callable[..., Any], args: Any, kwargs: Any, sources: list[fx.Node]) -> Callable[..., Any]:
    """``call(*values)`` that puts the values of `sources` where the nodes stand in `args` and `kwargs`."""

    def call(*values: Any) -> Any:
        env = dict(zip(sources, values, strict=True))
        return function(*map_arg(args, env.__getitem__), **map_arg(kwargs, env.__getitem__))

    return call
