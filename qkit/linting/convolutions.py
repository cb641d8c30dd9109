"""Guidelines for convolutions: batch norm behind them, even channel ranges, small odd kernels, small pools."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from qkit.graph import table
from qkit.graph.normal_form.fixed_norms import Norm
from qkit.linting.finding import Finding, moved
from qkit.linting.net import Net

#: Widest over median range of a depthwise layer's channels that is worth a warning. With one 8-bit step for all, the median
#: channel then has 127 / 16, 8 steps to either side: half of its bits are gone. The bundled networks' depthwise layers
#: stay below 7 where training was sound, and lie between 110 and 270 in most layers of the one that collapses in int8.
DEPTHWISE_SPREAD = 16.0

#: Kernels beyond this and pools from `LARGE_POOL` on are what lite models split into several small ones.
LARGE_KERNEL = 7
LARGE_POOL = 5


def without_batch_norm(net: Net, gates: Collection[fx.Node]) -> list[Finding]:
    """Convolutions that no norm is folded into.

    Left out are the layers whose output is the prediction, and those in `gates`: squeeze-and-excitation has a finding of its
    own. What is folded is what the study's graph folds, in whatever form the norm comes. Where a batch norm comes only behind a
    join or an activation, it cannot be folded into the convolution, and a note or a warning says so.
    """
    found = []
    for node in net.calls:
        if net.is_convolution(node) and node not in gates and not net.feeds_output_alone(node):
            finding = _without_batch_norm(net, node)
            if finding is not None:
                found.append(moved(finding, net.site(node)))
    return found


def _without_batch_norm(net: Net, node: fx.Node) -> Finding | None:
    if net.folded(node):
        return None
    readers = net.readers(node)
    norms = [user for user in readers if net.kind(user) == "batchnorm"]
    layer = net.layer(node)
    what = "depthwise convolution" if net.is_depthwise(node) else "convolution"
    if norms and len(readers) > 1:
        return Finding(
            "convolution-without-batchnorm",
            "warning",
            f"the {what}'s output is read by its batch norm and by {len(readers) - 1} more, so the norm cannot be "
            "folded into it.",
            "Let the others read what comes behind the norm.",
            layer,
        )
    if norms and _step_of(net, norms[0]) == "float":
        return Finding(
            "convolution-without-batchnorm",
            "warning",
            f"the batch norm behind the {what} takes its statistics from the batch: it cannot be folded, and runs in float.",
            "Train with track_running_stats=True, and call eval() on the model.",
            layer,
        )
    if norms:
        return Finding(
            "convolution-without-batchnorm",
            "warning",
            f"the batch norm behind the {what} is not folded: the weight is used in several places, which would need one each.",
            "Give every place a layer of its own.",
            layer,
        )
    between: list[str] = []
    for user in net.behind(node):
        kind = net.kind(user)
        if kind == "batchnorm":
            joined = not {"add", "concat"}.isdisjoint(net.kind(n) or "" for n in net.behind(node))
            return Finding(
                "convolution-without-batchnorm",
                "note" if joined else "warning",
                f"the batch norm comes only behind {', '.join(dict.fromkeys(between)) or 'a join'}: it cannot be folded "
                f"into the {what}, and "
                "an integer engine computes it as a scale and an offset of its own.",
                "In a new architecture put a batch norm right behind each convolution; in a pre-activation network watch the "
                "range of the joined tensor.",
                layer,
            )
        if kind == "norm":
            return Finding(
                "convolution-without-batchnorm",
                "warning",
                f"the {what} is normalized by {_norm(net, user)}, which needs the data's statistics at inference and cannot be "
                "folded.",
                "Train with batch norm instead.",
                layer,
            )
        between.append(net.shown(user))
    worst = " Depthwise layers suffer most: nothing evens out their channels' ranges." if net.is_depthwise(node) else ""
    return Finding(
        "convolution-without-batchnorm",
        "warning",
        f"no batch norm behind the {what}: training does not hold its output's range.{worst}",
        "Add a batch norm right behind it and retrain; at inference it is folded and costs nothing.",
        layer,
    )


def _step_of(net: Net, node: fx.Node) -> str:
    op = net.operation(node)
    return "" if op is None else op.kind


def _norm(net: Net, node: fx.Node) -> str:
    kind = str(node.meta.get("class", "")).rpartition(".")[2]
    return kind if "Norm" in kind else net.shown(node)


def standing_norms(net: Net) -> list[Finding]:
    """Norms with fixed statistics that no layer can take in: operations of their own, with a scale and an offset per channel."""
    found = []
    for op, node in net.of_kind("batchnorm"):
        before = net.operations[op.inputs[0]]
        finding = Finding(
            "norm-not-folded",
            "note",
            f"the norm stands behind {before.name}, and no layer takes it in: it is a scale and an offset per channel with a "
            "grid of its own.",
            "Nothing has to be done; in a new architecture put norms right behind convolutions and linear layers.",
            net.named(op.layer),
        )
        found.append(moved(finding, net.site(node)))
    return found


def folding(net: Net) -> str | None:
    """A sentence on what will be folded; None where there is no norm or no graph."""
    if net.assembly is None:
        return None
    folded = sum(net.folded(node) for node in net.calls if net.is_convolution(node) or net.kind(node) == "linear")
    alone = sum(op.kind == "batchnorm" for op in net.operations)
    if not folded + alone:
        return None
    said = f"Norms with fixed statistics: folded into {folded} layer{'' if folded == 1 else 's'}"
    stand = "1 stands as an operation of its own" if alone == 1 else f"{alone} stand as operations of their own"
    return f"{said}; {stand}, since no layer can take {'it' if alone == 1 else 'them'} in." if alone else f"{said}."


def spread_depthwise(net: Net) -> list[Finding]:
    """Depthwise convolutions whose channels' ranges, batch norm folded, spread by more than `DEPTHWISE_SPREAD`."""
    found = []
    for node in dict.fromkeys(net.calls):
        if not net.is_convolution(node) or not net.is_depthwise(node):
            continue
        weight = _folded(net, node)
        if weight is None or not bool(torch.isfinite(weight).all()):
            continue
        peaks = weight.abs().flatten(1).amax(1)
        channels = peaks.numel()
        used = peaks[peaks > 0]
        if not used.numel():
            continue
        middle, widest = float(used.median()), float(used.max())
        if widest > DEPTHWISE_SPREAD * middle:
            steps = 127.0 * middle / widest
            finding = Finding(
                "depthwise-spread",
                "warning",
                f"the ranges of {channels} channels spread: channel {int(peaks.argmax())} reaches {widest:.3g}, the "
                "median channel "
                f"{middle:.3g}, {widest / middle:.0f} times less, batch norm folded. With one 8-bit step for all, the median "
                f"channel has {steps:.1f} steps to either side.",
                "Use a step per channel (scheme='int8') or cross-layer equalization; train with weight decay on "
                "depthwise layers.",
                net.layer(node),
            )
            found.append(moved(finding, net.site(node)))
    return list(dict.fromkeys(found))


def _folded(net: Net, node: fx.Node) -> Tensor | None:
    """The weight, output channels first, with what the study's graph folds into it; as it stands where there is no graph."""
    folded = net.folded_weight(node)
    if folded is not None:
        weight, axis = folded
        return weight.transpose(0, axis)
    plain, readers = net.weight(node), net.readers(node)
    norm = net.module(readers[0]) if len(readers) == 1 and net.kind(readers[0]) == "batchnorm" else None
    mean, variance, gamma = (getattr(norm, name, None) for name in ("running_mean", "running_var", "weight"))
    if plain is None or mean is None or net.kind(node) != "conv":
        return plain
    return Norm(mean, variance, gamma, eps=float(getattr(norm, "eps", 0.0))).fold(plain, None, 0)[0]


def kernels_and_pools(net: Net) -> list[Finding]:
    """Convolution kernels that are large or even, and pools with large windows."""
    found = []
    for node in net.calls:
        weight = net.weight(node) if net.is_convolution(node) else None
        if weight is not None:
            found += [moved(f, net.site(node)) for f in _kernel(net, node, tuple(weight.shape[2:]))]
        window = _window(net, node)
        if max(window, default=0) >= LARGE_POOL:
            finding = Finding(
                "large-pool",
                "note",
                f"a pool over {'×'.join(map(str, window))}: several engines pool over 3×3 at most in one go.",
                "Chain small pools with the same result (two 3×3 max pools of stride 1 are one of 5×5), if your engine "
                "asks for it.",
                net.layer(node),
            )
            found.append(moved(finding, net.site(node)))
    return found


def _kernel(net: Net, node: fx.Node, kernel: tuple[int, ...]) -> list[Finding]:
    shown, layer = "×".join(map(str, kernel)), net.layer(node)
    if max(kernel, default=0) > LARGE_KERNEL:
        return [
            Finding(
                "kernel-size",
                "note",
                f"a kernel of {shown}: engines for embedded use are made for up to 7×7.",
                "Replace it by several small convolutions and retrain, if your engine asks for it.",
                layer,
            )
        ]
    # an even kernel of the stride's size tiles its input: patches, and upsampling by transposed convolutions
    stride = getattr(net.module(node), "stride", table.weighted_arguments(node).get("stride", 1))
    tiles = tuple(stride) == kernel if isinstance(stride, (tuple, list)) else all(stride == k for k in kernel)
    if any(k % 2 == 0 for k in kernel) and net.kind(node) == "conv" and not tiles:
        return [
            Finding(
                "kernel-size",
                "note",
                f"an even kernel of {shown} has no middle: it needs padding on one side only.",
                "Use an odd kernel, if your engine asks for it.",
                layer,
            )
        ]
    return []


def _window(net: Net, node: fx.Node) -> tuple[int, ...]:
    """The window of a pool that slides; () for global pools and all else."""
    module, name = net.module(node), net.name(node)
    size: Any = None
    if isinstance(module, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)):
        size = module.kernel_size
    elif module is None and name in {
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
    }:
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("kernel_size")
    spatial = net.shape(node)[2:]
    if size is None or all(n == 1 for n in spatial):
        return ()
    window = size if isinstance(size, (tuple, list)) else (size,) * len(spatial)
    return tuple(k for k in window if isinstance(k, int))
