"""The network as an integer engine sees it: a list of steps, with a tap at every tensor that the engine would hold.

:func:`build` copies the model, traces it, folds batch norms, fuses activations that clamp into their producers, and
leaves a :class:`Graph`: steps in execution order, each a plain function of earlier steps' values. The user's model is
never touched.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from qkit import operations as ops
from qkit.errors import DataError, GraphError
from qkit.tracing import trace

#: Kinds that end in a grid of their own.
QUANTIZED = frozenset(
    [
        "input",
        "constant",
        "conv",
        "conv-transpose",
        "linear",
        "batchnorm",
        "add",
        "mul",
        "concat",
        "pool",
        "activation",
        "norm",
        "matmul",
        "resize",
    ]
)
#: Kinds that clamping activations fuse into.
_FUSES = frozenset({"conv", "conv-transpose", "linear", "batchnorm", "add"})


@dataclass(frozen=True, eq=False)
class Step:
    """One operation of the engine.

    Attributes
    ----------
    index
        Position in `Graph.steps`.
    name
        Unique; the tap's name if the step has a grid of its own (see DESIGN: module path, ``path:op``, ``input``).
    kind
        One of `QUANTIZED`, or "keep" (shares its input's grid), "float" (stays float), "meta" (no tensor), "output".
    layer
        Path of the module that the operation is in.
    inputs
        Indices of the steps that it reads.
    argument
        Position of the model's argument that it stands for, or None.
    call
        ``call(*values)``, for weighted steps ``call(value, weight, bias)``; returns a fresh tensor where `quantized`.
    tap
        Name of the tap whose grid the output is on, None where it is float.
    weight
        Name of its weight in `Graph.weights`, or None; `bias` likewise in `Graph.biases`.
    weight_axis
        Output-channel axis of the weight, None where a grid per channel is impossible.
    act
        Bounds of the fused activation.
    shape, channel_axis
        Of the output on the example batch; () where there is no single tensor.
    macs
        Multiply-accumulates per sample.
    note
        What a person should know: why it stays float, or what is simulated in float inside.
    """

    index: int
    name: str
    kind: str
    layer: str
    inputs: tuple[int, ...]
    call: Callable[..., Any]
    tap: str | None = None
    weight: str | None = None
    bias: str | None = None
    weight_axis: int | None = 0
    act: ops.Bounds = ops.UNBOUNDED
    shape: tuple[int, ...] = ()
    channel_axis: int = 1
    argument: int | None = None
    macs: int = 0
    note: str | None = None

    @property
    def quantized(self) -> bool:
        """Whether its output has a grid of its own."""
        return self.kind in QUANTIZED

    def __repr__(self) -> str:
        return f"Step({self.index}: {self.name}, {self.kind}, {'x'.join(map(str, self.shape))})"


@dataclass(frozen=True, eq=False)
class Graph:
    """The folded network: `steps` in execution order, `weights` and `biases` by name, all on one device.

    `deviation` is the greatest difference between this graph's float output and the model's on the example batch,
    relative to the output's greatest magnitude.
    """

    steps: tuple[Step, ...]
    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    model_name: str
    device: torch.device
    deviation: float = 0.0
    last_use: Mapping[int, int] = field(default_factory=dict)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps in execution order."""
        return tuple(step.name for step in self.steps if step.quantized)

    def step(self, tap: str) -> Step:
        """The step with that name.

        Raises
        ------
        GraphError
            If there is none; suggests the nearest names.
        """
        for step in self.steps:
            if step.name == tap or step.weight == tap:
                return step
        near = [name for name in self.taps if tap and (tap in name or name in tap)][:5] or list(self.taps[:5])
        raise GraphError(f"there is no tap {tap!r} in {self.model_name}; did you mean one of {', '.join(near)}?")

    @property
    def notes(self) -> dict[str, str]:
        """What stays float, or is simulated in float inside, by step name."""
        return {step.name: step.note for step in self.steps if step.note}

    def __repr__(self) -> str:
        kinds = Counter(step.kind for step in self.steps if step.quantized)
        floats = sum(step.kind == "float" for step in self.steps)
        return f"Graph({self.model_name}: {len(self.taps)} taps ({', '.join(f'{n} {k}' for k, n in kinds.items())}), {floats} operations stay float)"


def build(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    device: torch.device | str | None = None,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
) -> Graph:
    """Trace, fold and fuse a copy of `model`.

    Parameters
    ----------
    model
        In float32; may be in training mode, the copy is put in evaluation mode.
    example_inputs
        One batch, from which shapes are taken.
    device
        Where the graph shall run; the model's own by default.
    leaf_modules
        Module classes or paths to keep out of the trace; they stay float unless qkit knows them.

    Raises
    ------
    GraphError
        If the model cannot be traced (with file, line and cure) or changes its inputs in place.
    DataError
        If the model is not float32 or lies on several devices, or the batch does not fit it.
    """
    if not isinstance(model, nn.Module):
        raise GraphError(f"a torch.nn.Module is needed, not {type(model).__name__}; if it is a function that makes one, call it.")
    target = _device_of(model, device)
    copied = copy.deepcopy(model).eval().requires_grad_(False).to(target)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    inputs = tuple(x.to(target) if isinstance(x, Tensor) else x for x in inputs)
    from qkit.lanes import execution

    generators = [target] if target.type == "cuda" else []
    with execution(target), torch.random.fork_rng(generators), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = trace(copied, leaf_modules)
        try:
            reference = copied(*(x.clone() if isinstance(x, Tensor) else x for x in inputs))
        except Exception as error:
            shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
            raise DataError(f"{type(model).__name__} does not run on the batch it was given ({shapes}): {error}") from error
        _make_pure(traced)
        values = _Recorder(traced).record(inputs)
        builder = _Builder(traced, values)
        graph = builder.graph(type(model).__name__, target)
        output = run_float(graph, inputs)
    return replace(graph, deviation=deviation(output, reference))


def run_float(graph: Graph, inputs: tuple[Any, ...]) -> Any:
    """The graph's float output, every value kept until its last use."""
    from qkit.lanes import Lane, run_lanes

    return run_lanes(graph, [Lane("float")], inputs)["float"]


def deviation(output: Any, reference: Any) -> float:
    """Greatest absolute difference over all tensors of two equal structures, relative to the reference's greatest magnitude."""
    pairs = list(zip(tensors_in(output), tensors_in(reference), strict=True))
    peak = max((float(b.abs().max()) for _, b in pairs if b.numel()), default=0.0)
    return max((float((a - b).abs().max()) for a, b in pairs if b.numel()), default=0.0) / max(peak, 1e-30)


def tensors_in(value: Any) -> list[Tensor]:
    """All floating tensors of a structure of tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in tensors_in(v)]
    return []


def _device_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    devices = sorted({str(t.device) for _, t in tensors})
    if len(devices) > 1 and device is None:
        raise DataError(
            f"{type(model).__name__} lies on several devices ({', '.join(devices)}): move it to one, or pass device=."
        )
    for name, t in tensors:
        if t.device.type == "meta":
            raise DataError(f"{name} is on the meta device and holds no numbers: load the checkpoint into the model first.")
        if t.is_floating_point() and t.dtype != torch.float32:
            raise DataError(f"{name} is {t.dtype}; qkit analyses float32 models. Convert with model.float() first.")
    return torch.device(device if device is not None else devices[0] if devices else "cpu")


def _make_pure(traced: fx.GraphModule) -> None:
    """Take out what does nothing at inference, and let later readers of an overwritten tensor read the operation's result.

    The steps then compute what the model does although none of them writes to its inputs. Changes the graph module in place.
    """
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        kind = ops.module_kind(module) if module is not None else ops.function_kind(node) if node.op.startswith("call_") else None
        if kind == "drop":
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)
            continue
        overwritten = ops.mutated(node, module)
        if overwritten is not None:
            node.meta["overwrites"] = overwritten
            later = {user for user in overwritten.users if order[user] > order[node]}
            overwritten.replace_all_uses_with(node, delete_user_cb=later.__contains__)
    for module in traced.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]


class _Recorder(fx.Interpreter):
    """Runs the traced model once; notes every node's value by shape and type, and refuses operations that write to their inputs."""

    def record(self, inputs: tuple[Any, ...]) -> dict[fx.Node, Any]:
        self.extra_traceback = False
        self.values: dict[fx.Node, Any] = {}
        self.run(*inputs)
        return self.values

    def run_node(self, n: fx.Node) -> Any:
        self._refuse_shared(n)
        before: list[tuple[Tensor, Tensor]] = []
        if n.op in {"call_function", "call_method"}:
            target, args, kwargs = ops.out_of_place(n)
            args, kwargs = (map_arg(a, self.env.__getitem__) for a in (args, kwargs))
            if ops.function_kind(n) is None:
                before = [(t, t.clone()) for t in tensors_in(args)]
            result = target(*args, **kwargs) if callable(target) else getattr(args[0], target)(*args[1:], **kwargs)
        else:
            if n.op == "call_module" and ops.module_kind(self.fetch_attr(str(n.target))) is None:
                before = [(t, t.clone()) for t in tensors_in(tuple(self.env[a] for a in n.all_input_nodes))]
            result = super().run_node(n)
        if any(not torch.equal(t, copied) for t, copied in before):
            raise GraphError(
                f"{n.target} in {n.meta.get('path') or 'the model'} changes its input in place; lanes share tensors, so give it a copy (x.clone())."
            )
        self.values[n] = _outline(result)
        return result

    def _refuse_shared(self, n: fx.Node) -> None:
        """An operation in place on a view changes the viewed tensor too: not to be had without writing to it."""
        overwritten = n.meta.get("overwrites")
        if overwritten is None:
            return
        storages = {t.untyped_storage().data_ptr() for t in tensors_in(self.env[overwritten])}
        for other, value in self.env.items():
            if other is not overwritten and any(t.untyped_storage().data_ptr() in storages for t in tensors_in(value)):
                raise GraphError(
                    f"{n.target} in {n.meta.get('path') or 'the model'} changes {overwritten.name} in place, which shares memory "
                    f"with {other.name}, used later; write it without the in-place operation."
                )


def _outline(value: Any) -> Any:
    """A value with tensors replaced by meta tensors, so that recording holds no memory."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        return tuple(_outline(v) for v in value)
    return value


class _Builder:
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

    def graph(self, name: str, device: torch.device) -> Graph:
        for node in self.traced.graph.nodes:
            if node not in self.at:
                self._add(node)
        last: dict[int, int] = {}
        for step in self.steps:
            last[step.index] = step.index
            for i in step.inputs:
                last[i] = step.index
        return Graph(tuple(self.steps), self.weights, self.biases, name, device, last_use=last)

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
            self._add_plain(node, path, kind, lambda *args, **kwargs: module(*args, **kwargs), node.args, node.kwargs)

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
            bn = self._module(norm)
            fused = (
                fuse_linear_bn_eval(module, bn) if kind == "linear" else fuse_conv_bn_eval(module, bn, kind == "conv-transpose")
            )  # type: ignore[type-var,arg-type]
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
            weight=f"{path}.weight", bias=f"{path}.bias",
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
