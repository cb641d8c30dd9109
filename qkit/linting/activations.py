"""Activations and gates that lite models, made for fixed point, do without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from qkit.linting.finding import Finding, Severity, moved
from qkit.linting.net import Net

_TABLE = "an integer engine needs a table or float for it, and its small negative values share one step with large positive ones"
_SLOPE = "its negative side is scaled apart from the positive one, which few engines fuse"

#: Function's name -> how much it matters, how people write it, and why it is replaced.
REPLACEABLE: Mapping[str, tuple[Severity, str, str]] = {
    "silu": ("warning", "SiLU", _TABLE),
    "hardswish": ("warning", "Hardswish", _TABLE),
    "gelu": ("warning", "GELU", _TABLE),
    "mish": ("warning", "Mish", _TABLE),
    "elu": ("warning", "ELU", _TABLE),
    "selu": ("warning", "SELU", _TABLE),
    "celu": ("warning", "CELU", _TABLE),
    "softplus": ("warning", "Softplus", "an integer engine needs a table or float for it"),
    "softsign": ("warning", "Softsign", "an integer engine needs a table or float for it"),
    "tanh": ("warning", "Tanh", "an integer engine needs a table or float for it"),
    "sigmoid": ("warning", "Sigmoid", "an integer engine needs a table or float for it"),
    "hardsigmoid": ("warning", "Hardsigmoid", "it saturates on both sides, and few engines fuse it"),
    "prelu": ("warning", "PReLU", _SLOPE),
    "leakyrelu": ("note", "LeakyReLU", _SLOPE),
    "relu6": ("note", "ReLU6", "it clamps what a calibrated range holds anyway, and keeps power-of-two grids from fitting"),
}

#: Activations that are another's approximation.
_SAME: Mapping[str, str] = {"quickgelu": "gelu"}
_SIGMOIDS = ("sigmoid", "hardsigmoid")


@dataclass(frozen=True, eq=False)
class Gate:
    """A squeeze-and-excitation: the product, the pooled tensor's node, and all nodes from the pool to the gate."""

    product: fx.Node
    pool: fx.Node
    members: frozenset[fx.Node]


def replaceable_activations(net: Net, gates: list[Gate]) -> list[Finding]:
    """Activations in `REPLACEABLE`, modules, functions and ``x * sigmoid(x)``; not those of gates and of the prediction."""
    members = {member for gate in gates for member in gate.members}
    found = []
    for node in net.calls:
        if node in members:
            continue
        said = _SAME.get(net.activation(node), net.activation(node))
        name = said if said in REPLACEABLE else None
        if name in {"sigmoid", "hardsigmoid", "tanh", "softplus"} and net.feeds_output_alone(node):
            continue  # turns the last layer's numbers into the answer
        if name == "sigmoid" and any(_is_swish(net, user, node) for user in net.readers(node)):
            name = "silu"
        if name is not None:
            severity, shown, why = REPLACEABLE[name]
            finding = Finding(
                "replaceable-activation",
                severity,
                f"{shown}: {why}.",
                "Replace it by nn.ReLU and retrain (fine-tuning is often enough).",
                net.layer(node),
            )
            found.append(moved(finding, net.site(node)))
    return found


def activations_of_modules(model: nn.Module) -> list[Finding]:
    """As `replaceable_activations`, where there is no graph: every module of these classes."""
    found = []
    for path, module in model.named_modules():
        entry = REPLACEABLE.get(type(module).__name__.lower()) if type(module).__module__.startswith("torch.nn") else None
        if entry is not None:
            severity, shown, why = entry
            cure = "Replace it by nn.ReLU and retrain (fine-tuning is often enough)."
            found.append(Finding("replaceable-activation", severity, f"{shown}: {why}.", cure, path))
    return found


def gates_of(net: Net) -> list[Gate]:
    """Squeeze-and-excitations by their structure: a tensor times a sigmoid of layers of its own global pool."""
    found = []
    for node in net.calls:
        if net.kind(node) != "mul" or len(net.inputs(node)) != 2:
            continue
        for gate, scaled in (net.inputs(node), net.inputs(node)[::-1]):
            excited = _gate(net, node, gate, scaled)
            if excited is not None:
                found.append(excited)
                break
    return found


def squeeze_and_excitation(net: Net, gates: list[Gate]) -> list[Finding]:
    """A finding per gate."""
    found = []
    for gate in gates:
        weighted = [net.layer(n) for n in net.calls if n in gate.members and (net.is_convolution(n) or net.kind(n) == "linear")]
        channels = net.shape(gate.product)[1] if len(net.shape(gate.product)) > 1 else 0
        finding = Finding(
            "squeeze-and-excitation",
            "warning",
            f"{channels} channels are scaled by a gate computed from their own means ({', '.join(weighted)}): the "
            "product has a range "
            "that no single layer bounds, and the means are rounded before they decide.",
            "Leave it out and retrain, as lite models do; or keep the gate's layers in 16 bits.",
            net.layer(gate.product),
        )
        found.append(moved(finding, net.site(gate.product)))
    return found


def _gate(net: Net, product: fx.Node, gate: fx.Node, scaled: fx.Node) -> Gate | None:
    top = net.source(gate)
    if not net.is_activation(top, *_SIGMOIDS):
        return None
    origin = net.source(scaled)
    queue, seen, pools, weighted = net.inputs(top), {gate, top}, [], False
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        if _is_global_pool(net, node):
            pools.append(node)
        elif net.kind(node) in {
            "conv",
            "conv-transpose",
            "linear",
            "batchnorm",
            "norm",
            "activation",
            "keep",
            "drop",
            "add",
            "concat",
            "pool",
        }:
            weighted |= net.is_convolution(node) or net.kind(node) == "linear"
            queue += net.inputs(node)
        else:
            return None
    of_itself = any(pool.all_input_nodes and net.source(pool.all_input_nodes[0]) is origin for pool in pools)
    return Gate(product, pools[0], frozenset(seen)) if weighted and of_itself else None


def _is_global_pool(net: Net, node: fx.Node) -> bool:
    if (
        net.kind(node) == "pool"
        or net.name(node) in {"adaptive_max_pool2d", "amax", "max_pool2d"}
        or "Pool" in type(net.module(node)).__name__
    ):
        source, shape = net.shape(node.all_input_nodes[0]) if node.all_input_nodes else (), net.shape(node)
        if len(source) > 2 and len(shape) >= 2 and source[:2] == shape[:2]:
            return all(n == 1 for n in shape[2:]) and any(n > 1 for n in source[2:])
    return False


def _is_swish(net: Net, product: fx.Node, sigmoid: fx.Node) -> bool:
    return net.kind(product) == "mul" and sigmoid.all_input_nodes[0] in product.all_input_nodes
