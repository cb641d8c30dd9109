"""The network as an integer engine sees it: a list of steps, with a tap at every tensor that the engine would hold.

:func:`build` copies the model, traces it, folds batch norms, fuses activations that clamp into their producers, and
leaves a :class:`Graph`: steps in execution order, each a plain function of earlier steps' values. The user's model is
never touched.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from qkit.building import Builder
from qkit.errors import DataError, GraphError
from qkit.recording import Recorder, make_pure, untangle
from qkit.steps import Step, tensors_in
from qkit.tracing import trace


@dataclass(frozen=True, eq=False)
class Graph:
    """The folded network: `steps` in execution order, `weights` and `biases` by name, all on one device.

    `deviation` is the greatest difference between this graph's float output and the model's on the example batch,
    relative to the output's greatest magnitude. `leaf_modules` were kept out of the trace.
    """

    steps: tuple[Step, ...]
    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    model_name: str
    device: torch.device
    deviation: float = 0.0
    last_use: Mapping[int, int] = field(default_factory=dict)
    leaf_modules: tuple[type[nn.Module] | str, ...] = ()

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
            if tap in (step.name, step.weight):
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
        listed = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        return f"Graph({self.model_name}: {len(self.taps)} taps ({listed}), {floats} operations stay float)"


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
    return assemble(model, example_inputs, device=device, leaf_modules=leaf_modules).graph


@dataclass(frozen=True, eq=False)
class Assembly:
    """A graph and what it was made from.

    Attributes
    ----------
    nodes
        The trace with dropout left in, which training needs.
    steps
        Index in ``graph.steps`` of the step that each of `nodes` is a part of; dropout is part of none.
    model
        The copy that was traced, its weights plain: what the nodes' targets are paths in.
    """

    graph: Graph
    nodes: fx.Graph
    steps: Mapping[fx.Node, int]
    model: nn.Module


def assemble(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    device: torch.device | str | None = None,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
) -> Assembly:
    """`build`, with the trace behind the steps."""
    if not isinstance(model, nn.Module):
        raise GraphError(f"a torch.nn.Module is needed, not {type(model).__name__}; if it is a function that makes one, call it.")
    target = _device_of(model, device)
    try:
        copied = copy.deepcopy(model)
    except RuntimeError as error:
        raise GraphError(
            f"{type(model).__name__} cannot be copied ({error}): remove what keeps computed tensors in it, for example with "
            "torch.nn.utils.remove_weight_norm."
        ) from error
    copied = _plain_weights(copied.eval().requires_grad_(False)).to(target)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    inputs = tuple(x.to(target) if isinstance(x, Tensor) else x for x in inputs)
    leaves = (leaf_modules,) if isinstance(leaf_modules, (str, type)) else tuple(leaf_modules)
    from qkit.lanes import execution

    generators = [target] if target.type == "cuda" else []
    with execution(target), torch.random.fork_rng(generators), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = trace(copied, leaves)
        try:
            reference = copied(*(x.clone() if isinstance(x, Tensor) else x for x in inputs))
        except Exception as error:
            shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
            raise DataError(f"{type(model).__name__} does not run on the batch it was given ({shapes}): {error}") from error
        twins: dict[fx.Node, fx.Node] = {}
        nodes = fx.Graph()
        nodes.output(nodes.graph_copy(traced.graph, twins))
        untangle(fx.GraphModule(traced, nodes), dropout=True)
        make_pure(traced)
        try:
            values = Recorder(traced).record(inputs)
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise GraphError(
                f"{type(model).__name__} runs, its trace does not ({error}): its forward decides by an argument that the batch "
                "leaves out, which a trace takes as given. Pass all arguments in the batch, or wrap the model in one without "
                "that choice."
            ) from error
        builder = Builder(traced, values)
        steps = builder.build()
        graph = Graph(
            steps, builder.weights, builder.biases, type(model).__name__, target, last_use=_last_use(steps), leaf_modules=leaves
        )
        output = run_float(graph, inputs)
    graph = replace(graph, deviation=deviation(output, reference))
    return Assembly(graph, nodes, {twins[node]: index for node, index in builder.at.items() if node in twins}, copied)


def run_float(graph: Graph, inputs: tuple[Any, ...]) -> Any:
    """The graph's float output, every value kept until its last use."""
    from qkit.lanes import Lane, run_lanes

    return run_lanes(graph, [Lane("float")], inputs)["float"]


def deviation(output: Any, reference: Any) -> float:
    """Greatest absolute difference over all tensors of two equal structures, relative to the reference's greatest magnitude."""
    pairs = list(zip(tensors_in(output), tensors_in(reference), strict=True))
    peak = max((float(b.abs().max()) for _, b in pairs if b.numel()), default=0.0)
    return max((float((a - b).abs().max()) for a, b in pairs if b.numel()), default=0.0) / max(peak, 1e-30)


def _plain_weights(model: nn.Module) -> nn.Module:
    """The model with every parametrized weight (weight norm, spectral norm, …) replaced by its value; in place."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            values: dict[str, Tensor] = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
            # not remove_parametrizations: it edits the class, which the user's model shares
            plain = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            module.__class__ = plain
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return model


def _last_use(steps: tuple[Step, ...]) -> dict[int, int]:
    last: dict[int, int] = {}
    for step in steps:
        last |= dict.fromkeys((*step.inputs, step.index), step.index)
    return last


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
    try:
        target = torch.device(device if device is not None else devices[0] if devices else "cpu")
        torch.zeros(1).to(target)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"device={str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if target.type == "meta":
        raise DataError("device='meta' holds no numbers: name a device that computes, such as 'cpu' or 'cuda'.")
    return target
