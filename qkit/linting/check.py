"""The public function: what hinders tracing and what predicts trouble in fixed point."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn, optim

from qkit.errors import DataError, GraphError, QkitError
from qkit.graph import Graph, build, deviation
from qkit.linting.activations import activations_of_modules, gates_of, replaceable_activations, squeeze_and_excitation
from qkit.linting.breaks import tracing_findings
from qkit.linting.convolutions import kernels_and_pools, spread_depthwise, without_batch_norm
from qkit.linting.finding import Finding, Lint, ordered
from qkit.linting.net import Net
from qkit.linting.optimizers import weight_decay
from qkit.linting.probe import buffers_kept, probe
from qkit.linting.seen import MISSING, Traced
from qkit.linting.structure import float_layers, functional_operations, leaving_tensors, non_finite, shared_modules
from qkit.linting.suspicion import suspicions
from qkit.steps import tensors_in

#: Greatest relative difference between the traced graph's output and the model's that rounding explains.
_SAME = 1e-3


def lint(model: nn.Module, example_inputs: Tensor | tuple[Any, ...], optimizer: optim.Optimizer | None = None) -> Lint:
    """What hinders symbolic tracing, with file, line and cure, and what training guidelines for fixed point warn against.

    Nothing is judged by its looks where it can be tried: the model is traced beside its real values on the example batch, and
    every line that stops the trace is noted, not only the first. Source code is read for the lines that this batch does not
    reach. The model, its modes and weights, and the global random state stay as they are; the same call says the same.

    Parameters
    ----------
    model
        In float32, on one device; may be in training mode (a copy is looked at, in evaluation mode).
    example_inputs
        One batch that the model takes: a tensor, or a tuple of its positional arguments. One sample is enough.
    optimizer
        The one that trains or trained the model; adds the findings on weight decay.

    Raises
    ------
    GraphError
        If `model` is no `nn.Module`, is scripted, or cannot be copied.
    DataError
        If the model does not take `example_inputs`, is not float32, or `optimizer` holds none of its parameters.
    """
    inputs = _checked(model, example_inputs)
    findings = weight_decay(model, optimizer) if optimizer is not None else []
    copied = _copy(model)
    findings += non_finite(copied)
    remarks: list[str] = []
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.no_grad():
        with buffers_kept(copied):
            torch.manual_seed(0)
            reference = _run(copied, inputs)
        seen = probe(copied, inputs, _fresh)
        graph, refusal = _build(model, inputs)
    findings = _tracing(model, copied, seen, refusal, findings)
    findings += _result(seen, reference)
    if not any(f.severity == "error" for f in findings) and refusal is not None:
        findings.append(_refused(refusal))
    findings += suspicions(copied, seen, {(f.file, f.line) for f in findings}, remarks)
    findings += _guidelines(copied, seen, graph, remarks)
    traced = refusal is None or (seen.graph is not None and all(item.kind == "run" for item in seen.breaks))
    if not traced and seen.graph is not None:
        remarks.append("The findings on layers are those of the way that the example batch takes through the model.")
    return Lint(ordered(findings), type(model).__name__, traced, tuple(remarks))


def _tracing(
    model: nn.Module, copied: nn.Module, seen: Traced, refusal: QkitError | None, findings: list[Finding]
) -> list[Finding]:
    found = tracing_findings(seen, copied, shown_to_break=refusal is not None)
    lines = {(f.file, f.line) for f in found}
    place = getattr(refusal, "file", None), getattr(refusal, "line", None)
    if refusal is not None and place[0] is not None and place not in lines and not seen.breaks:
        found.append(_refused(refusal))
    return [*findings, *found]


def _refused(refusal: QkitError) -> Finding:
    file, line = getattr(refusal, "file", None), getattr(refusal, "line", None)
    return Finding("untraceable-call", "error", str(refusal), "qkit.Study refuses the model for the same reason.", "", file, line)


def _result(seen: Traced, reference: Any) -> list[Finding]:
    """Whether what was traced computes what the model does; it may not where the model asks what it is given."""
    if seen.output is MISSING or any(item.kind == "run" or item.skipped for item in seen.breaks):
        return []
    tensors = tensors_in(reference)
    if len(tensors_in(seen.output)) != len(tensors):
        said = f"the traced graph returns {len(tensors_in(seen.output))} tensors, the model {len(tensors)}"
    elif any(a.shape != b.shape for a, b in zip(tensors_in(seen.output), tensors, strict=True)):
        said = "the traced graph returns tensors of other shapes than the model"
    elif all(bool(torch.isfinite(t).all()) for t in tensors) and (d := deviation(seen.output, reference)) > _SAME:
        said = f"the traced graph's output differs from the model's by {d:.2g} of its greatest value"
    else:
        return []
    return [
        Finding(
            "different-result",
            "error",
            f"{said}: some decision falls otherwise while tracing (isinstance, an optional argument, try).",
            "See the findings on frozen control flow; decide in __init__ what the trace has to follow.",
        )
    ]


def _guidelines(copied: nn.Module, seen: Traced, graph: Graph | None, remarks: list[str]) -> list[Finding]:
    if seen.graph is None:
        remarks.append("The model could not be traced to its end: layers were looked at one by one, without what follows them.")
        return [*activations_of_modules(copied), *shared_modules(copied, seen)]
    net = Net(seen.graph, copied)
    gates = gates_of(net)
    members: set[fx.Node] = {member for gate in gates for member in gate.members}
    if seen.leaves:
        remarks.append(f"Left out, since tracing ends in them: {', '.join(sorted(seen.leaves))}.")
    return [
        *without_batch_norm(net, members),
        *spread_depthwise(net),
        *replaceable_activations(net, gates),
        *squeeze_and_excitation(net, gates),
        *leaving_tensors(net),
        *(float_layers(graph, net) if graph is not None else []),
        *shared_modules(copied, seen),
        *kernels_and_pools(net),
        *functional_operations(net),
    ]


def _build(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Graph | None, QkitError | None]:
    """The graph that a study would have, or why there is none."""
    try:
        return build(model, inputs), None
    except QkitError as error:
        return None, error
    except Exception as error:  # what was traced does not run, as where an optional argument is left out
        return None, GraphError(f"{type(model).__name__} can be traced, but what was traced does not run: {error}")


def _checked(model: nn.Module, example_inputs: Any) -> tuple[Any, ...]:
    if not isinstance(model, nn.Module):
        raise GraphError(f"a torch.nn.Module is needed, not {type(model).__name__}; if it is a function that makes one, call it.")
    if isinstance(model, torch.jit.ScriptModule):
        raise GraphError(
            f"{type(model).__name__} is scripted, and scripted code cannot be traced: give the module it was made from."
        )
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not tensors_in(inputs) and not any(isinstance(x, Tensor) for x in inputs):
        what = ", ".join(type(x).__name__ for x in inputs) or "an empty tuple"
        raise DataError(
            f"example_inputs is one batch, a tensor or a tuple of the model's arguments with tensors in it; got {what}."
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise DataError(f"{name} is on the meta device and holds no numbers: load the checkpoint into the model first.")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise DataError(f"{name} is {tensor.dtype}; qkit analyses float32 models. Convert with model.float() first.")
    return inputs


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model).eval().requires_grad_(False)
    except RuntimeError as error:
        raise GraphError(
            f"{type(model).__name__} cannot be copied ({error}): remove what keeps computed tensors in it, for example with "
            "torch.nn.utils.remove_weight_norm."
        ) from error


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    try:
        return model(*_fresh(inputs))
    except QkitError:
        raise
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        shapes = ", ".join(f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__ for x in inputs)
        raise DataError(f"{type(model).__name__} does not run on the batch it was given ({shapes}): {said}") from error


def _fresh(inputs: Any) -> Any:
    """The inputs with every tensor copied, also within tuples, lists and dicts: a model may write to what it is given."""
    if isinstance(inputs, Tensor):
        return inputs.detach().clone()
    if isinstance(inputs, dict):
        return {key: _fresh(value) for key, value in inputs.items()}
    return type(inputs)(_fresh(value) for value in inputs) if type(inputs) in (tuple, list) else inputs
