"""How a graph takes a batch: the tensors that it reads, found in the structure that the batch comes in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from qkit.errors import DataError
from qkit.graph.door.arguments import Leaf, arguments, call_arguments, leaves
from qkit.graph.structures import Spec, flatten


@dataclass(frozen=True, eq=False)
class Entry:
    """The call that a graph was made from.

    Attributes
    ----------
    model
        Name of the network's class.
    leaves
        All values of a call, tensors without their numbers; those are the graph's inputs.
    keywords
        Whether a batch's dict goes as keyword arguments.
    specs
        Structures of positional and keyword arguments.
    """

    model: str
    leaves: tuple[Leaf, ...]
    keywords: bool
    specs: tuple[Spec, Spec]

    def values(self, inputs: tuple[Any, ...]) -> list[Any]:
        """The tensors of another batch, in order.

        Raises
        ------
        DataError
            If the batch does not come in the structure that the graph was made with.
        """
        if self.keywords and not (len(inputs) == 1 and isinstance(inputs[0], Mapping)):
            raise DataError(
                f"{self.model} was made with a dict as its batch, and this one is {_kinds(inputs)}: check the loader."
            )
        args, kwargs = ((), dict(inputs[0])) if self.keywords else (inputs, {})
        found, specs = leaves(args, kwargs)
        if (
            inputs
            and self.leaves[0].is_tensor
            and self.specs[0].parts[:1] == (flatten(None)[1],)
            and not isinstance(inputs[0], Tensor)
        ):
            raise DataError(
                f"{self.leaves[0].name} is a {type(inputs[0]).__name__}, the model takes a torch.Tensor: collate the batch into "
                "tensors."
            )
        if specs != self.specs or len(found) != len(self.leaves):
            wanted = [leaf.name for leaf in self.leaves]
            missing = (
                f" {wanted[len(found)]!r} is what the batch of {len(found)} does not have." if len(found) < len(wanted) else ""
            )
            raise DataError(
                f"{self.model} takes an input {', '.join(map(repr, wanted))}, and this batch is {_kinds(inputs)}.{missing} Give "
                "all batches the structure of the first."
            )
        for leaf, known in zip(found, self.leaves, strict=True):
            if leaf.is_tensor != known.is_tensor or not (leaf.is_tensor or _same(leaf.value, known.value)):
                raise DataError(
                    f"{known.name} is {_short(leaf.value)} in this batch and was {_short(known.value)} in the one that the graph "
                    "was made with: only tensors may differ from batch to batch."
                )
        return [leaf.value for leaf in found if leaf.is_tensor]


def entry_of(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Entry, list[Leaf]]:
    """The entry for calls like this one, and the leaves of this one."""
    args, kwargs = call_arguments(model, inputs)
    found, specs = leaves(args, kwargs, model)
    outlines = tuple(replace(leaf, value=leaf.value.to("meta")) if leaf.is_tensor else leaf for leaf in found)
    return Entry(str(getattr(model, "file_name", type(model).__name__)), outlines, bool(kwargs) and not args, specs), found


def batch_of_call(entry: Entry, model: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of ``model(*inputs, **named)`` as a batch for the entry.

    Raises
    ------
    DataError
        If the model cannot be called so, or an input goes by name alone.
    """
    if entry.keywords:
        return (dict(named),) if named else inputs
    try:
        bound = inspect.signature(model.forward).bind(*inputs, **named)
    except TypeError as error:
        raise DataError(f"the batch does not fit what {entry.model} takes: {error}.") from error
    if bound.kwargs:
        raise DataError(
            f"{', '.join(bound.kwargs)}: the network is analysed without inputs that go by name alone. Leave them out."
        )
    return bound.args


def call(entry: Entry, model: nn.Module, values: list[Any]) -> Any:
    """The model's output on the leaves."""
    args, kwargs = arguments(entry.specs, values)
    return model(*args, **kwargs)


def _kinds(inputs: tuple[Any, ...]) -> str:
    return "(" + ", ".join(f"{tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__ for x in inputs) + ")"


def _same(a: Any, b: Any) -> bool:
    return a is b or bool(a == b)


def _short(value: Any) -> str:
    return "a tensor" if isinstance(value, Tensor) else repr(value)
