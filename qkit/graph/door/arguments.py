"""How a batch is handed to a model, and how what the model returns is taken apart.

Names are for people and stable over batches. The first tensor of a call is ``input``; every other value is
``input:<way to it>``, as ``input:mask`` or ``input:images[1]``. A model's only output is ``output``; parts of several are
``output:logits``, ``output[0]`` or ``output:features[1].mean``.
"""

from __future__ import annotations

import difflib
import enum
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from qkit.errors import DataError, GraphError
from qkit.graph.structures import Path, Spec, flatten, path_text, rebuild, unique

Parameter = inspect.Parameter

#: What may stand in an output beside tensors: it is the same for every batch, as far as one run can tell.
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.Size, torch.dtype, torch.device)


@dataclass(frozen=True, eq=False)
class Leaf:
    """One value that a model is called with.

    Attributes
    ----------
    name
        ``input`` for the first tensor, ``input:<way to it>`` for all others; unique in a call.
    value
        A tensor, a number, a string, None, or an object that cannot be taken apart.
    """

    name: str
    value: Any

    @property
    def is_tensor(self) -> bool:
        """Whether it holds a tensor."""
        return isinstance(self.value, Tensor)


@dataclass(frozen=True)
class OutputSpec:
    """How output tensors go together: the structure, and what else is in it by position among the leaves.

    Numbers and strings beside the tensors are those of the run that the spec was taken from.
    """

    structure: Spec
    constants: tuple[tuple[int, Any], ...] = ()


def call_arguments(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, for ``model(*args, **kwargs)``, from a batch's inputs.

    Inputs go by position. One dict alone goes by keywords if all its keys are parameters of ``model.forward``, or if forward
    takes ``**kwargs`` and the dict has everything that forward needs; any other dict is one argument.

    Parameters
    ----------
    model
        Its ``forward`` is looked at, never called.
    inputs
        As `qkit.execution.loading` gives them: tensors, or nested containers of tensors and numbers.

    Raises
    ------
    DataError
        If forward cannot be called so: a required argument is missing, there are too many, or some keys of the dict are
        parameters and others are not. Says what forward takes, what was given, and the nearest names.
    """
    parameters = _parameters(model)
    if parameters is None:  # compiled code, say: whatever is wrong shows when it runs
        return inputs, {}
    if len(inputs) == 1 and isinstance(inputs[0], Mapping) and _by_keyword(model, inputs[0], parameters):
        args, kwargs = (), dict(inputs[0])
    else:
        args, kwargs = inputs, {}
    _check_binds(model, parameters, args, kwargs)
    return args, kwargs


def does_not_run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception) -> DataError:
    """What to raise when ``model(*args, **kwargs)`` raised `error`: names shapes, the reason, and keys that look misspelt."""
    said = (str(error) or type(error).__name__).splitlines()[0]
    parameters = _parameters(model) or []
    text = f"{type(model).__name__} does not run on the batch it was given ({_outline(args, kwargs)}): {said}"
    if len(args) == 1 and isinstance(args[0], Mapping) and not kwargs:
        keys = [key for key in args[0] if isinstance(key, str)]
        text += (
            f". The batch is a dict ({_listed(keys)}) and went as one argument, since forward takes "
            f"{_signature(parameters)}{_nearest(keys, parameters)}."
        )
    return DataError(text)


def leaves(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], model: nn.Module | None = None
) -> tuple[list[Leaf], tuple[Spec, Spec]]:
    """All values of a call, named, and the specs of ``args`` and ``kwargs`` for `arguments`.

    Parameters
    ----------
    args, kwargs
        As from `call_arguments`.
    model
        Gives positional arguments the names of forward's parameters; without it they are numbered.
    """
    names = _positional_names(model, len(args))
    first, args_spec = flatten(tuple(args))
    second, kwargs_spec = flatten(dict(kwargs))
    found = [((*names[cast("int", path[0])], *path[1:]), value) for path, value in first] + second
    main = next((i for i, (_, value) in enumerate(found) if isinstance(value, Tensor)), None)
    texts = unique(["input" if i == main else f"input:{path_text(path)}" for i, (path, _) in enumerate(found)])
    return [Leaf(name, value) for name, (_, value) in zip(texts, found, strict=True)], (args_spec, kwargs_spec)


def arguments(specs: tuple[Spec, Spec], values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``(args, kwargs)`` again, from the values of all leaves in order; the inverse of `leaves`."""
    cut = specs[0].size
    return rebuild(specs[0], values[:cut]), rebuild(specs[1], values[cut:])


def batch_size(found: Sequence[Leaf]) -> int:
    """Number of samples: the first dimension of the first tensor that has one; 1 if no tensor has any.

    Raises
    ------
    DataError
        If there is no tensor, or the batch is empty.
    """
    tensors = [leaf.value for leaf in found if leaf.is_tensor]
    if not tensors:
        kinds = ", ".join(f"{leaf.name}: {type(leaf.value).__name__}" for leaf in found) or "nothing"
        raise DataError(f"a batch holds at least one tensor; this one holds {kinds}.")
    size = next((int(tensor.shape[0]) for tensor in tensors if tensor.ndim), 1)
    if size == 0:
        raise DataError("the batch is empty: its first tensor has no samples.")
    return size


def doubled(found: Sequence[Leaf]) -> list[Leaf]:
    """The leaves at a batch of exactly two samples, copied.

    A trace takes sizes of one for constants, and a small batch traces fastest. Every tensor whose first dimension is the
    batch's size counts as samples: its first two are taken, or its only one twice. All other leaves stay as they are.
    """
    size = batch_size(found)
    return [replace(leaf, value=_two(leaf.value)) if _has_samples(leaf.value, size) else leaf for leaf in found]


def flatten_output(value: Any) -> tuple[list[tuple[str, Tensor]], OutputSpec]:
    """The tensors of a model's output with their names, and the spec for `rebuild_output`.

    Takes tensors, tuples, lists, mappings, namedtuples, dataclasses and transformers' outputs, nested in any way, with None,
    numbers and strings among them.

    Raises
    ------
    GraphError
        If something else is in it, since tensors may hide there.
    """
    found, structure = flatten(value)
    tensors: list[tuple[str, Tensor]] = []
    constants: list[tuple[int, Any]] = []
    for i, (path, leaf) in enumerate(found):
        if isinstance(leaf, Tensor):
            tensors.append((_output_name(path), leaf))
        elif isinstance(leaf, _CONSTANTS):
            constants.append((i, leaf))
        else:
            raise GraphError(
                f"{_output_name(path)} of the model is a {type(leaf).__name__}, which cannot be taken apart: let forward return "
                "its tensors, in tuples, lists, dicts or dataclasses."
            )
    names = unique([name for name, _ in tensors])
    return [(name, tensor) for name, (_, tensor) in zip(names, tensors, strict=True)], OutputSpec(structure, tuple(constants))


def rebuild_output(spec: OutputSpec, tensors: Sequence[Tensor]) -> Any:
    """The output as the model returns it, with these tensors in it, in the order of `flatten_output`.

    Raises
    ------
    GraphError
        If there are more or fewer tensors than the output has.
    """
    needed = spec.structure.size - len(spec.constants)
    if len(tensors) != needed:
        raise GraphError(f"the model returns {needed} tensors; {len(tensors)} cannot be made into its output.")
    constants = dict(spec.constants)
    rest = iter(tensors)
    return rebuild(spec.structure, [constants[i] if i in constants else next(rest) for i in range(spec.structure.size)])


def _has_samples(value: Any, size: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size


def _two(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor]) if tensor.shape[0] == 1 else tensor[:2].clone()


def _output_name(path: Path) -> str:
    if not path:
        return "output"
    return f"output:{path_text(path)}" if isinstance(path[0], str) else path_text(path, start="output")


def _parameters(model: nn.Module) -> list[Parameter] | None:
    """Parameters of the model's forward; None where Python cannot tell."""
    try:
        return list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return None


def _positional_names(model: nn.Module | None, count: int) -> list[Path]:
    """A way to each positional argument: the parameter's name, and a number behind it for ``*args``."""
    parameters = (_parameters(model) if model is not None else None) or []
    named = [p.name for p in parameters if p.kind in {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}]
    rest = next((p.name for p in parameters if p.kind is Parameter.VAR_POSITIONAL), None)
    ways: list[Path] = [(name,) for name in named[:count]]
    return ways + [(str(i),) if rest is None else (rest, i - len(named)) for i in range(len(ways), count)]


def _takes_keywords(parameters: Sequence[Parameter]) -> bool:
    return any(p.kind is Parameter.VAR_KEYWORD for p in parameters)


def _keyword_names(parameters: Sequence[Parameter]) -> list[str]:
    return [p.name for p in parameters if p.kind in {Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY}]


def _required(parameters: Sequence[Parameter]) -> list[Parameter]:
    return [
        p for p in parameters if p.default is Parameter.empty and p.kind not in {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}
    ]


def _by_keyword(model: nn.Module, batch: Mapping[Any, Any], parameters: Sequence[Parameter]) -> bool:
    """Whether a dict that is the whole batch is forward's keywords.

    Raises
    ------
    DataError
        If it is neither that nor one argument.
    """
    keys = list(batch)
    names = _keyword_names(parameters)
    if not keys or not all(isinstance(key, str) for key in keys):
        return False
    unknown = [key for key in keys if key not in names]
    if not unknown:
        return True
    needs = _required(parameters)
    complete = all(p.name in keys and p.kind is not Parameter.POSITIONAL_ONLY for p in needs)
    takes_one = any(p.kind is not Parameter.KEYWORD_ONLY and p.kind is not Parameter.VAR_KEYWORD for p in parameters)
    if _takes_keywords(parameters) and complete and (len(unknown) < len(keys) or not takes_one):
        return True
    if len(unknown) < len(keys) or not takes_one or len(needs) > 1:
        missing = [p.name for p in needs if p.name not in keys]
        raise DataError(
            f"{type(model).__name__} cannot be called with the batch's keys ({_listed(keys)}): its forward takes "
            f"{_signature(parameters)}. {_listed(unknown)} {'is' if len(unknown) == 1 else 'are'} none of them"
            f"{_nearest(unknown, parameters)}{'; missing: ' + _listed(missing) if missing else ''}. Rename the keys, leave out "
            "what forward does not take, or give a tuple of its arguments."
        )
    return False


def _check_binds(model: nn.Module, parameters: Sequence[Parameter], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise `DataError` if forward cannot be called with these arguments."""
    try:
        inspect.Signature(parameters).bind(*args, **kwargs)
    except TypeError as error:
        filled = {*kwargs, *(str(way[0]) for way in _positional_names(model, len(args)))}
        missing = [p.name for p in _required(parameters) if p.name not in filled]
        if missing:
            what = (
                f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing. Give the model's inputs as a tuple or a dict"
            )
        else:
            what = f"cannot be called so: {error}. A tuple of inputs is the model's arguments, in order"
        raise DataError(
            f"{type(model).__name__} does not run on the batch it was given ({_outline(args, kwargs)}): its forward takes "
            f"{_signature(parameters)}, and {what}."
        ) from error


def _signature(parameters: Sequence[Parameter]) -> str:
    """The parameters as they are written, without types: ``pixel_values, mask=None, **kwargs``."""
    return ", ".join(str(p.replace(annotation=Parameter.empty)) for p in parameters) or "no argument"


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names)) or "none"


def _nearest(keys: Sequence[str], parameters: Sequence[Parameter]) -> str:
    """``(did you mean mask for masks?)``, or nothing."""
    near = [(key, difflib.get_close_matches(key, _keyword_names(parameters), 1, 0.6)) for key in keys]
    meant = [f"{match[0]} for {key}" for key, match in near if match and match[0] != key]
    return f" (did you mean {', '.join(meant)}?)" if meant else ""


def _outline(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Shapes and types of all arguments, in a line."""
    said = [_shape(value) for value in args] + [f"{key}: {_shape(value)}" for key, value in kwargs.items()]
    return ", ".join(said) or "no input"


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shape(part)}" for key, part in value.items()) + "}"
    return type(value).__name__
