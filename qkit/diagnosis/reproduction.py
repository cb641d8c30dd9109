"""Whether the float pass can be relied on: the same twice, and the traced and folded graph the same as the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qkit.diagnosis.candidates import Cause, CauseKind
from qkit.diagnosis.remedies import Remedy
from qkit.execution.lanes import Frontier, Lane, run_lanes, run_to
from qkit.execution.loading import Batch, batches
from qkit.execution.metrics import score_batch
from qkit.execution.statistics import Interval, Samples, paired_interval
from qkit.graph import Graph
from qkit.graph.assembly import OWN
from qkit.graph.buffers import changed_buffers
from qkit.graph.door.arguments import call_arguments
from qkit.graph.operation import Operation
from qkit.graph.structures import float_tensors, map_tensors
from qkit.listing import few

if TYPE_CHECKING:
    from qkit.study import Study

#: Relative difference of two float results that rounding in another order explains.
_SAME = 1e-4


def nondeterminism(study: Study) -> list[Cause]:
    """Two float passes of one batch differ; names the operation behind the first tap that does."""
    batch = next(iter(batches(study.evaluation)))
    passes: list[dict[str, float]] = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            sums: dict[str, float] = {}

            def look(op: Operation, values: Any, sums: dict[str, float] = sums) -> None:
                sums[op.name] = float(values["float"].double().square().sum())

            output = run_lanes(study.graph, [Lane("float")], batch.inputs, observe=look)["float"]
            if isinstance(output, Tensor):
                sums["output"] = float(output.double().square().sum())
            passes.append(sums)
    first, second = passes
    name = next((n for n, value in first.items() if abs(value - second[n]) > _SAME * max(abs(value), 1e-30)), None)
    if name is None:
        return []
    layer = _unseen_source(study.graph, name, first).layer
    evidence = f"two float passes of the same batch differ from {name} on."
    dropping = [s for s in study.graph.operations if s.kind == "float" and "dropout" in s.name.lower()]
    if dropping:
        cure = "Let dropout follow the mode of its module: training=self.training, and call model.eval()."
        return [_cause("train-mode", dropping[0].layer, f"{evidence} {dropping[0].name} drops in evaluation mode.", cure)]
    cure = f"Make the forward pass of {layer or name} repeatable in evaluation mode: no dropout, no noise."
    return [_cause("nondeterminism", layer, evidence, cure)]


def _unseen_source(graph: Graph, name: str, seen: Mapping[str, float]) -> Operation:
    """The earliest operation without a tap that leads to that tap or the output from taps alike; else the tap's own operation."""
    op = next((s for s in graph.operations if s.name == name), graph.operations[-1])
    found, todo = op, list(op.inputs)
    while todo:
        source = graph.operations[todo.pop()]
        if source.name in seen:
            continue
        if source.kind == "float" and (found is op or source.index < found.index):
            found = source
        todo += source.inputs
    return found


def graph_differs(study: Study, limit: int | None) -> list[Cause]:
    """The traced and folded graph and the model disagree; names the layer at which they part."""
    worst = study.graph.unexplained
    model = copy.deepcopy(study.model).eval()
    batch = next(iter(batches(study.evaluation)))
    if worst <= _SAME and not _second_pass_differs(study, model, batch):
        return []
    scores = module_samples(model, study, limit).values, study.evaluate(("float",), batches=limit, progress=False).lanes["float"]
    apart = paired_interval(*scores, ranks=study.metric.whole is None)
    gain = apart if abs(apart.value) > 0.0 else None
    changed = _state_that_matters(study, batch)
    if changed:
        return [_stateful(study.model, changed, worst, gain)]
    layer = _parting(study, limit)
    at = f", from {layer} on" if layer else ""
    evidence = (
        f"the folded graph's output differs from the model's by {worst:.1e} relative{at}; the model itself scores "
        f"{float(scores[0].mean()):.4g}, the graph {float(scores[1].mean()):.4g}."
    )
    cure = f"Look at the forward code of {layer or 'the model'} for what a trace cannot see: hooks, patched methods, state."
    return [_cause("graph-transform", layer, evidence, cure, gain)]


def _state_that_matters(study: Study, batch: Batch) -> list[str]:
    """Paths of the state that a pass changes, where a second pass over the same batch answers otherwise; else none."""
    changed = changed_buffers(study.model, lambda net: run_model(net, batch))
    if not changed:
        return []
    model = copy.deepcopy(study.model).eval()
    answers = []
    with torch.random.fork_rng(), torch.no_grad():
        for _ in range(2):
            torch.manual_seed(0)
            answers.append([tensor.clone() for tensor in float_tensors(run_model(model, batch))])
    first, second = answers
    same = len(first) == len(second) and not any(_differ(b, a) for a, b in zip(first, second, strict=True))
    return [] if same else list(changed)


def _stateful(model: nn.Module, changed: Sequence[str], deviation: float, gain: Interval | None) -> Cause:
    """The finding on state: it is named, and no layer that reads it."""
    modules = dict(model.named_modules())
    layer = changed[0].rpartition(".")[0]
    while layer and layer not in modules:
        layer = layer.rpartition(".")[0]
    listed = few(changed)
    evidence = (
        f"forward changes {listed} in evaluation mode, and two passes of the model over the same batch differ; the graph starts "
        f"every pass from the values that the model was handed over with, and differs from the model by {deviation:.1e} relative."
    )
    cure = f"Change {listed} in training mode only, or make it an input and an output of the model."
    return _cause("graph-transform", layer, evidence, cure, gain)


def _second_pass_differs(study: Study, model: nn.Module, batch: Batch) -> bool:
    """Whether the model answers another batch otherwise than the graph: the trace was compared on a single one."""
    with torch.no_grad(), torch.random.fork_rng():
        theirs = run_model(model, batch)
    ours = run_lanes(study.graph, [Lane("float")], batch.inputs)["float"]
    # another batch may be rounded a little worse than that on which the model's own error was found
    most = max(_SAME, 2 * OWN * study.graph.own_error)
    return isinstance(theirs, Tensor) and isinstance(ours, Tensor) and _differ(ours, theirs, most)


def _parting(study: Study, limit: int | None) -> str:
    """Path of the first layer whose result is another in the graph than in the model; "" where none is found.

    Layers with weights are looked at, each by what it is handed: where that differs, the layer that it comes from is the one.
    Batch after batch, since a model that keeps a state may part from the graph late.
    """
    model = copy.deepcopy(study.model).eval()
    paths = {module: name for name, module in model.named_modules()}
    given: dict[str, list[Tensor]] = {}
    made: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor):
            given.setdefault(paths[module], []).append(args[0].detach().clone())
        if isinstance(output, Tensor):
            made.append(output.detach().clone())

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    parted = ""
    for batch in batches(study.evaluation, limit):
        given.clear()
        made.clear()
        with torch.no_grad(), torch.random.fork_rng():
            run_model(model, batch)
        if parted := _parting_of(study.graph, batch, given, made):
            break
    for handle in handles:
        handle.remove()
    return parted


def _parting_of(graph: Graph, batch: Batch, given: Mapping[str, list[Tensor]], made: Sequence[Tensor]) -> str:
    """`_parting` on one batch: what every module was given there, call by call, and all that modules made."""
    ours: dict[int, Tensor] = {}

    def look(op: Operation, values: Mapping[str, Tensor]) -> None:
        ours[op.index] = values["float"].clone()

    run_lanes(graph, [Lane("float")], batch.inputs, observe=look)
    at: Frontier | None = None
    last: Operation | None = None
    for op in graph.operations:
        if op.weight is None or not given.get(op.layer):
            continue
        at = run_to(graph, Lane("float"), batch.inputs, op.index, start=at)
        if _differ(at.values[op.inputs[0]].data, given[op.layer].pop(0)):
            sources = _givers(graph, op)
            # of several that a join brings together, the one whose result no module made
            return next((s.layer for s in sources if s.index in ours and not _among(ours[s.index], made)), sources[0].layer)
        last = op
    if last is not None and last.index in ours and not _among(ours[last.index], made):
        return last.layer
    return ""


def _differ(ours: Tensor, theirs: Tensor, most: float = _SAME) -> bool:
    return ours.shape != theirs.shape or float((ours - theirs).abs().max()) > most * max(float(theirs.abs().max()), 1e-30)


def _among(ours: Tensor, made: Sequence[Tensor]) -> bool:
    return any(ours.shape == theirs.shape and not _differ(ours, theirs) for theirs in made)


def _givers(graph: Graph, op: Operation) -> list[Operation]:
    """The nearest operations with weights, or in float, before this one; the first operation where there are none."""
    found, todo = [], [graph.operations[op.inputs[0]]]
    while todo:
        source = todo.pop(0)
        if source.weight is not None or source.kind == "float":
            found.append(source)
        else:
            todo += [graph.operations[i] for i in source.inputs]
    return found or [graph.operations[0]]


def run_model(model: nn.Module, batch: Batch) -> Any:
    """The model's own output on a batch."""
    args, kwargs = call_arguments(model, on_device(model, batch))
    return model(*args, **kwargs)


def on_device(model: nn.Module, batch: Batch) -> tuple[Any, ...]:
    device = next(model.parameters(), torch.zeros(0)).device
    inputs: tuple[Any, ...] = map_tensors(batch.inputs, lambda x: x.to(device))
    return inputs


def module_samples(model: nn.Module, study: Study, limit: int | None) -> Samples:
    """What a module itself scores, not a lane."""
    rows = []
    with torch.no_grad(), torch.random.fork_rng():
        for batch in batches(study.evaluation, limit):
            output = run_model(model, batch)
            rows.append(score_batch(study.metric, output, batch.targets, output, batch.size))
    return Samples.joined(rows)


def _cause(kind: CauseKind, layer: str, evidence: str, cure: str, gain: Interval | None = None) -> Cause:
    return Cause(kind, layer, layer, evidence, Remedy("fix-input", layer, cure), gain)
