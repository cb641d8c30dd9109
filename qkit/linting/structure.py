"""Structure that observers, hooks and quantization-aware training trip over: shared modules, functions, layers in float."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import fx, nn

from qkit.graph import Graph
from qkit.linting.finding import Finding, Severity, moved
from qkit.linting.net import Net
from qkit.linting.seen import Site, Traced

_NAMES = 4

#: Kinds of operations whose result gets a grid: those that observers have to see.
_OBSERVED = frozenset(
    {"conv", "conv-transpose", "linear", "batchnorm", "add", "mul", "concat", "pool", "activation", "norm", "matmul", "resize"}
)

_MODULE_FORMS = {
    "relu": "nn.ReLU",
    "relu6": "nn.ReLU6",
    "silu": "nn.SiLU",
    "gelu": "nn.GELU",
    "hardswish": "nn.Hardswish",
    "sigmoid": "nn.Sigmoid",
    "tanh": "nn.Tanh",
    "softmax": "nn.Softmax",
    "log_softmax": "nn.LogSoftmax",
    "leaky_relu": "nn.LeakyReLU",
    "elu": "nn.ELU",
    "hardsigmoid": "nn.Hardsigmoid",
    "mish": "nn.Mish",
    "avg_pool2d": "nn.AvgPool2d",
    "adaptive_avg_pool2d": "nn.AdaptiveAvgPool2d",
    "batch_norm": "nn.BatchNorm2d",
    "layer_norm": "nn.LayerNorm",
    "conv1d": "nn.Conv1d",
    "conv2d": "nn.Conv2d",
    "conv3d": "nn.Conv3d",
    "linear": "nn.Linear",
    "interpolate": "nn.Upsample",
}


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
                    f"one module goes by {len(paths)} names: {_listed(paths)}.",
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
                    f"one parameter goes by {len(names)} names: {_listed(names)}.",
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
    from qkit.operations import module_kind

    return module_kind(module) not in {"keep", "drop"}


def _severity(module: nn.Module) -> Severity:
    return "warning" if any(True for _ in module.parameters()) else "note"


def functional_operations(net: Net) -> list[Finding]:
    """Operations on tensors that are no modules, one finding an operation and a module that does them."""
    groups: dict[tuple[str, str], list[fx.Node]] = defaultdict(list)
    for node in net.calls:
        if (
            node.op != "call_module"
            and net.kind(node) in _OBSERVED
            and net.shape(node)
            and node.meta["value"].is_floating_point()
        ):
            groups[net.layer(node), net.name(node)].append(node)
    found = []
    for (layer, name), nodes in groups.items():
        form = _MODULE_FORMS.get(name)
        cure = (
            f"Use {form}"
            if form
            else f"Put it into a small module of its own (its forward is one line, `return torch.{name}(…)`)"
        )
        times = f" {len(nodes)} times" if len(nodes) > 1 else ""
        finding = Finding(
            "functional-operation",
            "note",
            f"{name} is called as a function{times}: hooks and quantizers that swap modules do not see it.",
            f"{cure}, if your tools work on modules; qkit takes it as it is, as {layer}:{name}.",
            layer,
        )
        found.append(moved(finding, net.site(nodes[0])))
    return found


def float_layers(graph: Graph, net: Net) -> list[Finding]:
    """Operations that stay float in every lane, with the graph's own note."""
    sites: dict[str, Site | None] = {}
    for node in net.calls:
        sites.setdefault(net.layer(node), net.site(node))
        sites.setdefault(f"{node.meta.get('path', '')}:{net.name(node)}", net.site(node))
    found = []
    for step in graph.steps:
        if step.kind == "float":
            finding = Finding(
                "float-layer",
                "warning",
                f"{step.note or 'it has no integer form'}.",
                "Replace it by operations with an integer form, or plan for it in float or 16 bits on the engine.",
                step.layer,
            )
            found.append(moved(finding, sites.get(step.name.partition("#")[0]) or sites.get(step.layer)))
    return found


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
        by_mask = isinstance(mask, fx.Node) and getattr(mask.meta.get("value"), "dtype", None) is torch.bool
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
        elif node.op == "call_method" and name in _OUT_OF_TENSORS:
            finding = Finding(
                "untraceable-call",
                "warning",
                f".{name}() passes the trace, and takes the value out of the tensor: no integer engine and no "
                "exporter can follow.",
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


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")
