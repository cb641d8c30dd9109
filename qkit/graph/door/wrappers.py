"""Wrappers around a model that are no part of the network: parallel, compiled, averaged, checkpointed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Wrapper:
    """A class of wrappers: the attribute that holds the model, what the wrapper is called, and what is worth saying of it."""

    attribute: str
    name: str
    said: str = "what it wraps is analysed"


#: By full name of the class, so that nothing has to be imported to know one. Subclasses of them count.
WRAPPERS: Mapping[str, Wrapper] = {
    "torch.nn.parallel.data_parallel.DataParallel": Wrapper("module", "nn.DataParallel"),
    "torch.nn.parallel.distributed.DistributedDataParallel": Wrapper("module", "DistributedDataParallel"),
    "torch._dynamo.eval_frame.OptimizedModule": Wrapper("_orig_mod", "torch.compile", "the model that was compiled is analysed"),
    "torch.optim.swa_utils.AveragedModel": Wrapper("module", "AveragedModel", "the averaged weights are analysed"),
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper": Wrapper(
        "_checkpoint_wrapped_module", "a checkpoint wrapper"
    ),
    "lightning.fabric.wrappers._FabricModule": Wrapper("_forward_module", "Lightning Fabric"),
    "lightning_fabric.wrappers._FabricModule": Wrapper("_forward_module", "Lightning Fabric"),
    "deepspeed.runtime.engine.DeepSpeedEngine": Wrapper("module", "DeepSpeedEngine"),
    "timm.utils.model_ema.ModelEmaV2": Wrapper("module", "ModelEmaV2", "the averaged weights are analysed"),
    "timm.utils.model_ema.ModelEmaV3": Wrapper("module", "ModelEmaV3", "the averaged weights are analysed"),
}


def class_names(thing: object) -> list[str]:
    """Full names of the thing's class and all its bases."""
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(thing).__mro__]


def wrapped(module: nn.Module) -> tuple[nn.Module, Wrapper] | None:
    """What the module wraps, if its class is one of `WRAPPERS`; an attribute alone that is called ``module`` proves nothing."""
    for name in class_names(module):
        wrapper = WRAPPERS.get(name)
        inner: Any = getattr(module, wrapper.attribute, None) if wrapper is not None else None
        if wrapper is not None and isinstance(inner, nn.Module):
            return inner, wrapper
    return None


def innermost(module: nn.Module) -> tuple[nn.Module, list[tuple[nn.Module, Wrapper]]]:
    """The module without its wrappers, and the wrappers from the outside in."""
    around: list[tuple[nn.Module, Wrapper]] = []
    while (found := wrapped(module)) is not None:
        around.append((module, found[1]))
        module = found[0]
    return module, around


def unwrap(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The model without the wrappers around it, and a remark on each."""
    inner, around = innermost(model)
    remarks = []
    for module, wrapper in around:
        of = type(inner).__name__
        remarks.append(f"The model came in {wrapper.name}: {wrapper.said} ({of}).{_also(module)}")
    return inner, tuple(remarks)


@dataclass(frozen=True, eq=False)
class Inside:
    """A wrapper below the model's own level, or several around one another.

    Attributes
    ----------
    parent, name
        The module that holds the outermost, and its name there.
    path, state_path
        Path of what is wrapped, once all wrappers are gone, and as the model's own state dict has it.
    module
        What is wrapped.
    around
        The wrappers, from the outside in.
    """

    parent: nn.Module
    name: str
    path: str
    state_path: str
    module: nn.Module
    around: list[tuple[nn.Module, Wrapper]]


def wrappers_inside(model: nn.Module, path: str = "", state_path: str = "") -> Iterator[Inside]:
    """All wrappers inside the model; one that is used in two places comes twice."""
    for name, child in list(model._modules.items()):  # named_children() leaves out a child's second name
        if child is None:
            continue
        module, around = innermost(child)
        here, there = f"{path}{name}", ".".join([f"{state_path}{name}", *(wrapper.attribute for _, wrapper in around)])
        if around:
            yield Inside(model, name, here, there, module, around)
        yield from wrappers_inside(module, f"{here}.", f"{there}.")


def unwrap_inside(copied: nn.Module) -> tuple[str, ...]:
    """Put what they hold in the place of all wrappers inside the model; in place, so give a copy.

    Returns
    -------
    tuple of str
        A remark on each. The wrapper's attribute leaves the names of the state dict: ``backbone.module.conv.weight`` becomes
        ``backbone.conv.weight``.
    """
    found = list(wrappers_inside(copied))
    remarks = tuple(map(_remark_inside, found))
    for inside in found:
        setattr(inside.parent, inside.name, inside.module)
    return remarks


def remarks_inside(model: nn.Module) -> tuple[str, ...]:
    """What `unwrap_inside` would say of a copy; changes nothing."""
    return tuple(map(_remark_inside, wrappers_inside(model)))


def _remark_inside(inside: Inside) -> str:
    names = " in ".join(wrapper.name for _, wrapper in reversed(inside.around))
    also = "".join(_also(module) for module, _ in inside.around)
    return (
        f"{inside.path} came in {names}: {inside.around[0][1].said}. Its layers and parameters are called {inside.path}.… here, "
        f"{inside.state_path}.… in the state dict of the model as it came.{also}"
    )


def _also(module: nn.Module) -> str:
    """What else has to be said of this wrapper."""
    said = ""
    if module._forward_hooks or module._forward_pre_hooks:
        said += " Hooks on the wrapper are left out."
    if "torch.optim.swa_utils.AveragedModel" not in class_names(module):
        return said
    count: Any = getattr(module, "n_averaged", 1)
    if not (isinstance(count, Tensor) and count.is_meta) and int(count) == 0:
        return said + " Nothing has been averaged yet: its weights are those that it was made with."
    statistics = any(name.endswith("running_mean") for name, _ in module.named_buffers())
    if statistics and not getattr(module, "use_buffers", False):
        said += " The batch norms' statistics are averaged by torch.optim.swa_utils.update_bn alone: run it first."
    return said
