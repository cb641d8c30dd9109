"""Structure that observers and quantization-aware training trip over: shared modules, layers in float, numbers out of tensors."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, fx, nn

from qkit.graph.normal_form.form import Outline
from qkit.graph.table import module_kind
from qkit.linting.finding import Finding, Severity, moved
from qkit.linting.net import Net
from qkit.linting.probe_notes import Site, Traced
from qkit.listing import few

#: Kinds of operations whose result gets a grid: those that observers have to see.
_OBSERVED = frozenset(
    {"conv", "conv-transpose", "linear", "batchnorm", "add", "mul", "concat", "pool", "activation", "norm", "matmul", "resize"}
)


def shared_modules(model: nn.Module, seen: Traced) -> list[Finding]:
    """Modules that are called more than once, modules and parameters that go by several names."""
    found = _called_often(model, seen)
    named: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        named[id(module)].append(path)
    aliased = [paths for paths in named.values() if len(paths) > 1]
    inside = tuple(f"{path}." for paths in aliased for path in paths)
    for paths in aliased:
        if not all(path.startswith(inside) for path in paths) and _matters(model.get_submodule(paths[0])):
            found.append(
                Finding(
                    "shared-module",
                    _severity(model.get_submodule(paths[0])),
                    f"one module goes by {len(paths)} names: {few(paths)}.",
                    "Make an instance for each place, or quantization-aware training gives them one range.",
                    paths[0],
                )
            )
    tensors: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tensors[id(parameter)].append(name)
    for names in tensors.values():
        if len(names) > 1 and not all(
            name.startswith(inside) or name.rpartition(".")[0] in {p for ps in aliased for p in ps} for name in names
        ):
            found.append(
                Finding(
                    "shared-module",
                    "warning",
                    f"one parameter goes by {len(names)} names: {few(names)}.",
                    "Give each layer a parameter of its own; folding a batch norm or equalizing one layer would change "
                    "the other.",
                    names[0].rpartition(".")[0],
                )
            )
    return found


def _called_often(model: nn.Module, seen: Traced) -> list[Finding]:
    often = {path: n for path, n in seen.calls.items() if n > 1 and path and _matters(model.get_submodule(path))}
    sites: dict[str, Site | None] = {}
    if seen.graph is not None:
        net = Net(seen.graph, model)
        sites = {net.layer(node): net.site(node) for node in net.calls}
        computing = [net.layer(node) for node in net.calls if net.kind(node) in _OBSERVED or net.kind(node) is None]
        often = {path: n for path, n in often.items() if any(f"{layer}.".startswith(f"{path}.") for layer in computing)}
    found = []
    for path, n in often.items():
        if any(path.startswith(f"{other}.") and often[other] == n for other in often):
            continue  # is called often because what holds it is
        module = model.get_submodule(path)
        finding = Finding(
            "shared-module",
            _severity(module),
            f"{type(module).__name__} is called {n} times: one observer would see {n} tensors, and one "
            "range would serve them all.",
            "Make an instance for each call in __init__ (qkit itself keeps the calls apart as #2, #3).",
            path,
        )
        found.append(moved(finding, sites.get(path)))
    return found


def _matters(module: nn.Module) -> bool:
    """Whether a module computes anything that gets a range."""
    return module_kind(module) not in {"keep", "drop"}


def _severity(module: nn.Module) -> Severity:
    return "warning" if any(True for _ in module.parameters()) else "note"


def float_layers(net: Net) -> list[Finding]:
    """Operations that stay float in every lane, with the graph's own note."""
    found = []
    for op, node in net.of_kind("float"):
        finding = Finding(
            "float-layer",
            "warning",
            f"{op.note or 'it has no integer form'}.",
            "Replace it by operations with an integer form, or plan for it in float or 16 bits on the engine.",
            net.named(op.layer),
        )
        found.append(moved(finding, net.site(node)))
    return found


def _is_mask(value: object) -> bool:
    return isinstance(value, (Tensor, Outline)) and value.dtype is torch.bool


_SHAPED_BY_DATA = frozenset({"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive"})
_OUT_OF_TENSORS = frozenset({"item", "tolist", "numpy"})


def leaving_tensors(net: Net) -> list[Finding]:
    """What passes the trace and is still not for an engine: shapes by data, numbers taken out of tensors."""
    found = []
    for node in net.calls:
        if node.op == "call_module":
            continue
        name = net.name(node)
        mask = node.args[1] if name == "getitem" and len(node.args) > 1 else None
        by_mask = isinstance(mask, fx.Node) and _is_mask(mask.meta.get("value"))
        if name in _SHAPED_BY_DATA or by_mask or (name == "where" and len(node.args) == 1 and not node.kwargs):
            what = "indexing by a mask" if by_mask else f"{name}()"
            finding = Finding(
                "data-dependent-shape",
                "warning",
                f"{what} has a result whose shape depends on the data: lanes that round differently end "
                "in different shapes, and engines plan memory beforehand.",
                "Keep the shape: torch.where or a product with the mask.",
                net.layer(node),
            )
        elif name in _OUT_OF_TENSORS:
            finding = Finding(
                "untraceable-call",
                "warning",
                f".{name}() takes the value out of the tensor: from there on it is a number in float, which no integer engine "
                "computes.",
                "Stay in tensors: a tensor of one element broadcasts as a number does.",
                net.layer(node),
            )
        else:
            continue
        found.append(moved(finding, net.site(node)))
    return found


def non_finite(model: nn.Module) -> list[Finding]:
    """Weights and statistics that hold NaN or infinity."""
    found = []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # one pass over large weights: a sum is finite only if all its terms are, and where it overflows the terms are counted
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            message = f"{name} holds {bad} values of {tensor.numel()} that are NaN or infinite: whatever they reach has no score."
            cure = "Load a sound checkpoint, or train again with a smaller rate; quantization is not the trouble here."
            found.append(Finding("non-finite", "error", message, cure, name.rpartition(".")[0]))
    return found
