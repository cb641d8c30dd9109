"""The public function: what keeps a study from taking a model, and what predicts trouble in fixed point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn, optim
from torch.export import ExportedProgram

from qkit.errors import DataError, GraphError, QkitError
from qkit.graph.assembly import Assembly, assemble
from qkit.graph.buffers import unchanged
from qkit.graph.door.arguments import call_arguments, does_not_run
from qkit.graph.door.arrival import arrive
from qkit.graph.door.copying import copy_of
from qkit.graph.door.explaining import REASONS, UserCode, place_of
from qkit.graph.door.leaves import as_leaves, leaf_paths
from qkit.graph.door.model_files import network, origin_of
from qkit.graph.door.refusals import check_tensors, refuse_what_is_no_model
from qkit.graph.fronts.export import is_exported
from qkit.graph.structures import flatten, float_tensors, fresh, map_tensors
from qkit.linting.activations import activations_of_modules, gates_of, replaceable_activations, squeeze_and_excitation
from qkit.linting.breaks import tracing_findings
from qkit.linting.convolutions import folding, kernels_and_pools, spread_depthwise, standing_norms, without_batch_norm
from qkit.linting.finding import Finding, Lint, ordered
from qkit.linting.net import Net, path_of
from qkit.linting.optimizers import weight_decay
from qkit.linting.probe import probe
from qkit.linting.probe_notes import Site, Traced
from qkit.linting.state import State, changed_state, differ, state_of
from qkit.linting.structure import float_layers, leaving_tensors, non_finite, shared_modules
from qkit.linting.unreached import suspicions

#: Greatest relative difference between the graph's output and the model's that rounding explains.
_SAME = 1e-3

#: Rule of a refusal, by its reason in `qkit.graph.door.explaining`.
_RULES: Mapping[str, str] = {
    "assert": "assert",
    "branch": "data-dependent-control-flow",
    "loop": "data-dependent-control-flow",
    "cond": "data-dependent-control-flow",
    "shape": "data-dependent-shape",
}


@dataclass(frozen=True, eq=False)
class _Seen:
    """What there is to judge by: a private copy of the model, what traces of it gave, and why a study refuses it."""

    model: nn.Module
    traced: Traced
    assembly: Assembly | None
    refused: QkitError | None
    state: State
    has_source: bool
    draws: bool = False


def lint(
    model: nn.Module | str | Path | ExportedProgram,
    example_inputs: Any,
    optimizer: optim.Optimizer | None = None,
    *,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
) -> Lint:
    """What keeps a study from taking a model, with file, line and cure, and what guidelines for fixed point warn against.

    Nothing is judged by its looks where it can be tried: the graph is made that a study would have, and norms are judged by
    whether that graph folds them. The model is traced beside its real values on the example batch too, so that every line that
    stops a trace is noted, not only the first. Source code is read for the lines that this batch does not reach. The model, its
    modes and weights, and the global random state stay as they are; the same call says the same.

    Parameters
    ----------
    model
        What `qkit.Study` takes: a module in float32 on one device (in training mode, a copy is looked at in evaluation mode), a
        wrapper around one, a program of torch.export, or the path of an ``.onnx`` or ``.pt2`` file. Files have no source:
        findings name the file's tensors.
    example_inputs
        One batch that the model takes: a tensor, a tuple of its positional arguments, or a dict. One sample is enough.
    optimizer
        The one that trains or trained the model; adds the findings on weight decay.
    leaf_modules
        Module classes or paths that the study keeps in float.

    Raises
    ------
    GraphError
        If `model` is no network, is one that cannot be analysed (TorchScript, quantized, …), or cannot be copied.
    DataError
        If the model does not take `example_inputs`, is not float32, or `optimizer` holds none of its parameters.
    """
    refuse_what_is_no_model(model)
    arrival = arrive(model)
    inputs = _batch(example_inputs)
    found = arrival.model
    has_source = isinstance(found, nn.Module) and not is_exported(found) and origin_of(found) is None
    opened = found if isinstance(found, nn.Module) else network(found, inputs)
    inputs = map_tensors(inputs, partial(torch.Tensor.to, device=check_tensors(opened)))
    findings = weight_decay(opened, optimizer) if optimizer is not None else []
    leaves = as_leaves(leaf_modules)
    seen = _look(opened, model, inputs, leaves, has_source=has_source)
    findings += non_finite(seen.model)
    remarks = list(seen.assembly.graph.remarks if seen.assembly is not None else arrival.remarks)
    findings += _tracing(seen, remarks)
    findings += changed_state(seen.model, seen.state)
    findings += _result(seen)
    findings += _guidelines(seen, remarks)
    findings = _shapes_refused(findings, seen)
    findings += _refusal(seen, findings)
    name = str(getattr(opened, "file_name", type(opened).__name__))
    if not has_source:
        remarks.append(f"{name} has no source: nothing is said of how it is written.")
    front = None if seen.assembly is None else seen.assembly.graph.front
    return Lint(ordered(findings), name, seen.refused is None, tuple(remarks), front)


def _look(
    opened: nn.Module, given: Any, inputs: tuple[Any, ...], leaves: tuple[type[nn.Module] | str, ...], *, has_source: bool
) -> _Seen:
    """Run and trace a copy of the model; nothing of the user's changes."""
    copied = copy_of(opened)
    args, kwargs = call_arguments(copied, inputs)
    paths = leaf_paths(copied, leaves)
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.no_grad():
        with unchanged(copied):
            _run(copied, args, kwargs)
        state = state_of(copied, lambda net: _run(net, args, kwargs))
        traced = probe(copied, args, kwargs, paths) if has_source else Traced()
        assembly, refused = _assemble(given, inputs, leaves)
        drawn = assembly is not None and assembly.graph.unexplained > _SAME and _draws(copied, args, kwargs)
    return _Seen(copied, traced, assembly, refused, state, has_source, drawn)


def _draws(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether the answer depends on random numbers."""
    found = []
    for seed in (0, 1):
        with unchanged(model):
            found.append([tensor.clone() for tensor in float_tensors(_run(model, args, kwargs, seed))])
    return differ(*found)


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    try:
        return model(*fresh(args), **fresh(dict(kwargs)))
    except QkitError:
        raise
    except Exception as error:
        raise does_not_run(model, args, kwargs, error) from error


def _assemble(
    model: Any, inputs: tuple[Any, ...], leaves: tuple[type[nn.Module] | str, ...]
) -> tuple[Assembly | None, QkitError | None]:
    """The graph that a study would have, or why there is none."""
    try:
        return assemble(model, inputs, leaf_modules=leaves), None
    except QkitError as error:
        return None, error


def _tracing(seen: _Seen, remarks: list[str]) -> list[Finding]:
    """What hinders tracing: errors where the study refuses the model, else notes."""
    if not seen.has_source:
        return []
    refused = seen.refused if isinstance(seen.refused, GraphError) or seen.refused is None else GraphError(str(seen.refused))
    found = tracing_findings(seen.traced, seen.model, refused)
    doubtful = suspicions(seen.model, seen.traced, {(f.file, f.line) for f in found}, remarks)
    return found + [f if _is_serious(f, seen) else replace(f, severity="note") for f in doubtful]


def _parted(seen: _Seen) -> bool:
    """Whether the graph computes something else than the model; where the numbers are not finite, nobody knows."""
    return seen.assembly is not None and seen.assembly.graph.unexplained > _SAME


def _is_serious(finding: Finding, seen: _Seen) -> bool:
    """Whether a suspicion about lines that were not reached, or decided otherwise, is one about this model in a study."""
    return _parted(seen) if finding.rule == "frozen-control-flow" else seen.assembly is None


def _refusal(seen: _Seen, findings: list[Finding]) -> list[Finding]:
    """The study's own words, where no other error says what they say."""
    if seen.refused is None:
        return []
    file, line = getattr(seen.refused, "file", None), getattr(seen.refused, "line", None)
    errors = [f for f in findings if f.severity == "error" and f.rule not in {"non-finite"}]
    kind = _kind(seen.refused)
    shaped = kind == "shape" and any(f.rule == "data-dependent-shape" for f in findings)
    if any((f.file, f.line) == (file, line) for f in errors) or (file is None and (errors or shaped)):
        return []
    rule = _RULES.get(kind, "untraceable-call")
    return [Finding(rule, "error", str(seen.refused), "qkit.Study refuses the model for the same reason.", "", file, line)]


def _kind(refused: QkitError | None) -> str:
    return next((kind for kind, reason in REASONS.items() if refused is not None and reason in str(refused)), "")


def _shapes_refused(findings: list[Finding], seen: _Seen) -> list[Finding]:
    """Shapes that depend on the data are errors where they are what a study refuses."""
    if _kind(seen.refused) != "shape":
        return findings
    return [replace(f, severity="error") if f.rule == "data-dependent-shape" else f for f in findings]


def _result(seen: _Seen) -> list[Finding]:
    """Whether the graph computes what the model does; it may not where a decision falls otherwise while tracing."""
    if not _parted(seen):
        return []
    assert seen.assembly is not None
    said = f"the graph's output differs from the model's by {seen.assembly.graph.deviation:.2g} of its greatest value"
    if seen.state.matters and seen.state.changed:
        why, cure = "forward changes state that its answer depends on", "See the findings on changed buffers."
    elif seen.assembly.form.autocast:
        why = f"the forward turns autocast to {seen.assembly.form.autocast} on, and the graph computes in float32"
        cure = "Turn autocast on around the model where it is trained, not inside of it."
    elif seen.draws:
        why, cure = "the forward draws random numbers in evaluation mode", "Draw them in training mode only (if self.training:)."
    elif seen.state.matters:
        why, cure = "two passes of the model itself differ", "Make the forward pass repeatable in evaluation mode."
    else:
        why = "some decision falls otherwise while tracing (the type of a tensor, a try, a patched method)"
        cure = "See the findings on frozen control flow; decide in __init__ what the trace has to follow."
    return [Finding("different-result", "error", f"{said}: {why}.", cure)]


def _guidelines(seen: _Seen, remarks: list[str]) -> list[Finding]:
    net = _net(seen)
    if net is None:
        remarks.append("The model could not be traced to its end: layers were looked at one by one, without what follows them.")
        return [*activations_of_modules(seen.model), *shared_modules(seen.model, seen.traced)]
    gates = gates_of(net)
    members: set[fx.Node] = {member for gate in gates for member in gate.members}
    if seen.assembly is None:
        if seen.traced.leaves:
            remarks.append(f"Left out, since tracing ends in them: {', '.join(sorted(seen.traced.leaves))}.")
        remarks.append("The findings on layers are those of the way that the example batch takes through the model.")
    elif (said := folding(net)) is not None:
        remarks.append(said)
    written_by_exporter = seen.assembly is not None and seen.assembly.graph.front == "onnx"
    if written_by_exporter:
        remarks.append("Exporters fold batch norms when they write ONNX: nothing is said of convolutions without one.")
    return [
        *([] if written_by_exporter else without_batch_norm(net, members)),
        *standing_norms(net),
        *spread_depthwise(net),
        *replaceable_activations(net, gates),
        *squeeze_and_excitation(net, gates),
        *leaving_tensors(net),
        *float_layers(net),
        *(shared_modules(seen.model, seen.traced) if seen.has_source else []),
        *kernels_and_pools(net),
    ]


def _net(seen: _Seen) -> Net | None:
    """The study's normal form, or what the probe traced where there is none."""
    if seen.assembly is None:
        return None if seen.traced.graph is None else Net(seen.traced.graph, seen.model)
    code = UserCode(seen.model)
    known: dict[Any, Site] = {}
    for node in seen.traced.graph.nodes if seen.traced.graph is not None else ():
        if node.op.startswith("call_") and node.meta.get("site") is not None:
            known.setdefault(path_of(node), node.meta["site"])
            known.setdefault((path_of(node), Net.name(node)), node.meta["site"])

    def place(node: fx.Node) -> Site | None:
        if not seen.has_source:
            return None
        site = place_of(node, code)
        if site is not None and code.owns(site[0]):
            return site
        return known.get((path_of(node), Net.name(node)), known.get(path_of(node)))

    origin = origin_of(seen.model)
    return Net(seen.assembly.form.graph, seen.assembly.model, seen.assembly, place, {} if origin is None else origin.names)


def _batch(example_inputs: Any) -> tuple[Any, ...]:
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not any(isinstance(value, Tensor) for _, value in flatten(inputs)[0]):
        what = ", ".join(type(x).__name__ for x in inputs) or "an empty tuple"
        raise DataError(
            f"example_inputs is one batch: a tensor, a tuple of the model's arguments, or a dict, with tensors in it; got {what}."
        )
    return inputs
