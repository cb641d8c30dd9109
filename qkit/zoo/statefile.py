"""Read a user's weights file and put the right weights of it into a network: without wrappers, averaged ones before raw ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qkit.errors import QkitError
from qkit.listing import few
from qkit.zoo.copies import COUNTERS, Copy, bare, find_copies, looks_averaged
from qkit.zoo.mismatch import describe
from qkit.zoo.weightsfile import read_content

logger = logging.getLogger(__name__)

#: Dictionaries beside weights whose tensors are states of other things.
_NO_WEIGHTS = re.compile(r"optim|sched|scaler|(^|_)rng|hyper_param|hparams|loops")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DEEPEST = 6


@dataclass(frozen=True)
class StateFile:
    """A weights file as read.

    Attributes
    ----------
    path
        Of the file.
    tensors
        By full name: the keys of the dictionaries around a tensor and its own name, joined by dots.
    containers
        By the same name, how much of it is keys: ``"state_dict."``, or "" at the top.
    others
        Full names of entries that are neither tensors nor dictionaries.
    averaged
        Whether the weights under an outermost key are averages, where the file's kind says it otherwise than the key's name.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    containers: Mapping[str, str]
    others: tuple[str, ...]
    averaged: Mapping[str, bool]

    def is_averaged(self, copy: Copy) -> bool:
        """Whether a copy of the weights is an average over steps of the training."""
        return self.averaged.get(copy.key.partition(".")[0], looks_averaged(copy.key))


@dataclass(frozen=True)
class Chosen:
    """The weights that were taken from a file.

    Attributes
    ----------
    tensors
        By the network's names.
    key
        Where in the file they are; "." for its top.
    remarks
        What was done to read them, a sentence each.
    """

    tensors: Mapping[str, Tensor]
    key: str
    remarks: tuple[str, ...]


def read_state(path: str | Path) -> StateFile:
    """Read the tensors of a weights file, as `qkit.zoo.weightsfile.read_content` takes it.

    Raises
    ------
    QkitError
        If the file is missing, damaged, needs code to be read, or holds no tensors.
    """
    path = Path(path)
    content = read_content(path)
    if not isinstance(content, Mapping):
        held = "one tensor" if isinstance(content, Tensor) else f"a {type(content).__name__}"
        raise QkitError(f"{path} holds no state dict but {held}: save one with torch.save(model.state_dict(), path).")
    found = list(_flatten(content, "", _DEEPEST))
    if not any(isinstance(value, Tensor) for _, _, value in found):
        # weights of other frameworks that were saved by torch; beside tensors, arrays are logs
        found = [(container, name, _as_tensor(value)) for container, name, value in found]
    tensors = {container + name: value.detach() for container, name, value in found if isinstance(value, Tensor)}
    others = tuple(container + name for container, name, value in found if not isinstance(value, Tensor))
    empty = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if empty is not None:
        raise QkitError(f"{path}: {empty!r} is on the meta device, without numbers: save the weights from where they are.")
    tensors = {name: tensor.to_dense() if tensor.layout != torch.strided else tensor for name, tensor in tensors.items()}
    if not tensors:
        held = f"{others[0]!r} is no tensor, nor is anything else in it" if others else "it is empty"
        raise QkitError(f"{path} holds no state dict: {held}. Save one with torch.save(model.state_dict(), path).")
    return StateFile(path, tensors, {container + name: container for container, name, _ in found}, others, _swapped(content))


def _as_tensor(value: Any) -> Any:
    numeric = isinstance(value, np.ndarray) and value.dtype.kind in "bif"
    return torch.from_numpy(value.copy()) if numeric else value


def choose(
    file: StateFile, wanted: Mapping[str, Tensor], architecture: str, *, key: str | None = None, free: Iterable[str] = ()
) -> Chosen:
    """The weights of a network in a file.

    Prefixes are taken off where the names fit then and not as they are. Of averaged and raw weights the averaged ones are taken,
    since the training code evaluates those; `key` chooses others.

    Parameters
    ----------
    wanted
        The network's state dict, of which names, shapes and types count. ``num_batches_tracked`` may be missing in the file.
    architecture
        The network's name, for errors.
    key
        Where in the file to look: a key of the dictionaries in it, or a prefix of names; "." is the top.
    free
        Names of which only the number of dimensions is known.

    Raises
    ------
    QkitError
        If no weights in the file fit, with the tensors and the likely reason; if several do and nothing says which are meant; or
        if `key` is not in the file.
    """
    # a module's extra state may be anything else
    wanted = {name: tensor for name, tensor in wanted.items() if isinstance(tensor, Tensor)}
    copies = every = find_copies(file.tensors, wanted, frozenset(free))
    if key is not None:
        copies = _under(file, copies, key)
    complete = [copy for copy in copies if copy.fits]
    if not complete:
        raise QkitError(describe(str(file.path), architecture, copies, wanted, file.tensors))
    taken = _preferred(file, complete, key)
    remarks = [
        *_said_prefix(file, taken),
        *_said_averages(file, [copy for copy in copies if copy is not taken], taken, len(wanted)),
        *_said_left_out(file, taken, [copy for copy in every if copy.fits]),
    ]
    tensors = {name: file.tensors[place] for name, place in taken.tensors.items()}
    return Chosen(_converted(file, tensors, wanted, remarks), taken.key, tuple(remarks))


def load_state(model: nn.Module, chosen: Chosen) -> None:
    """Put the weights into `model`, and log what there is to say of them."""
    model.load_state_dict(dict(chosen.tensors), strict=False)
    for remark in chosen.remarks:
        logger.warning("%s", remark)


def _flatten(content: Mapping[Any, Any], prefix: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """Container, name and value of every entry that is no dictionary; dictionaries that hold no weights are left out."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            if depth and isinstance(key, str) and not _NO_WEIGHTS.search(key.lower()):
                yield from _flatten(value, f"{prefix}{key}.", depth - 1)
        elif isinstance(key, str):
            yield prefix, key, value


def _swapped(content: Mapping[Any, Any]) -> dict[str, bool]:
    """Of files whose keys do not say what is averaged: those of Lightning's WeightAveraging and of MMEngine's EMAHook.

    Both put the averages where the weights usually are, and the raw weights under another key.
    """
    if "current_model_state" in content:
        return {"state_dict": True, "current_model_state": False}
    meta = content.get("meta")
    if "ema_state_dict" in content and ("message_hub" in content or (isinstance(meta, Mapping) and "mmengine_version" in meta)):
        return {"state_dict": True, "ema_state_dict": False}
    return {}


def _under(file: StateFile, copies: Sequence[Copy], key: str) -> list[Copy]:
    """The copies at the key or within it."""
    wanted = bare(key)
    found = [copy for copy in copies if copy.key == wanted or (wanted != "." and copy.prefix.startswith(f"{wanted}."))]
    if found:
        return found
    keys = [copy.key for copy in copies if copy.fits] or [
        c.removesuffix(".") or "." for c in dict.fromkeys(file.containers.values())
    ]
    raise QkitError(f"{file.path} has no weights of the network under {key!r}; there are {few(map(repr, keys), 8)}.")


def _preferred(file: StateFile, complete: Sequence[Copy], key: str | None) -> Copy:
    """The one that is meant: the averaged one where there is one."""
    exact = [copy for copy in complete if key is not None and copy.key == bare(key)]
    averaged = [copy for copy in complete if file.is_averaged(copy)]
    pool = exact or averaged or complete
    if all(_equal(file, pool[0], other) for other in pool[1:]):
        return pool[0]
    raise QkitError(
        f"{file.path} has the network's weights more than once, and they differ: choose with --weights-key (weights_key=) among "
        f"{few(map(repr, [copy.key for copy in pool]), 8)}."
    )


def _equal(file: StateFile, one: Copy, other: Copy) -> bool:
    return all(
        name in other.tensors and torch.equal(file.tensors[place], file.tensors[other.tensors[name]])
        for name, place in one.tensors.items()
    )


def _said_prefix(file: StateFile, taken: Copy) -> list[str]:
    """What was taken off the names, and what was put before them."""
    said = []
    pairs = {bare(name)[len(taken.outer) :]: place.removeprefix(file.containers[place]) for name, place in taken.tensors.items()}
    end, own = next(iter(pairs.items()))
    prefix = own.removesuffix(end) if own.endswith(f".{end}") else ""
    if prefix:
        said.append(f"The prefix {prefix!r} was taken off the names of {file.path.name}.")
    end, own = next(((end, own) for end, own in pairs.items() if own not in (end, prefix + end)), ("", ""))
    if end and len(own) > len(end):
        said.append(f"Names of {file.path.name} were brought into the network's form: {own} is taken for {end}.")
    if taken.outer:
        said.append(f"The network's prefix {taken.outer!r} was put before the names of {file.path.name}.")
    return said


def _said_averages(file: StateFile, others: Sequence[Copy], taken: Copy, tensors: int) -> list[str]:
    """Which weights were taken, where averaged and raw ones are side by side."""
    averaged = file.is_averaged(taken)
    rivals = [copy for copy in others if copy.fits and file.is_averaged(copy) != averaged]
    if rivals:
        kinds = ("averaged", "raw") if averaged else ("raw", "averaged")
        return [
            f"{file.path.name} has averaged weights beside the raw ones: the {kinds[0]} ones, {taken.key!r}, are taken; "
            f"--weights-key {rivals[0].key} (weights_key={rivals[0].key!r}) takes the {kinds[1]} ones."
        ]
    lacking = [copy for copy in others if file.is_averaged(copy) and 2 * copy.matched >= tensors]
    if averaged or not lacking:
        return []
    lack = lacking[0]
    name = next(iter((*lack.missing, *lack.differing, *lack.unknown)), "a tensor")
    return [
        f"The averaged weights of {file.path.name}, {lack.key!r}, are not the whole network ({name}): the raw ones are taken."
    ]


def _said_left_out(file: StateFile, taken: Copy, complete: Sequence[Copy]) -> list[str]:
    used = {place for copy in complete for place in copy.tensors.values()}
    here = file.containers[next(iter(taken.tensors.values()))]
    left = [
        name
        for name, tensor in file.tensors.items()
        if name not in used and not (tensor.numel() == 1 and name.rpartition(".")[2] in COUNTERS)
    ]
    left += [name for name in file.others if file.containers[name] == here]
    if not left:
        return []
    return [f"Left out of {file.path.name}, since they are no tensors of the network: {few(left, 3)}."]


def _converted(
    file: StateFile, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], remarks: list[str]
) -> dict[str, Tensor]:
    """The tensors in the network's types; adds to the remarks which other ones they had."""
    types: dict[tuple[torch.dtype, torch.dtype], int] = {}
    for name, tensor in tensors.items():
        to = wanted[name].dtype
        if not to.is_floating_point or tensor.dtype == to:
            continue
        if tensor.dtype not in _FLOATS:
            likely = "" if tensor.is_complex() else ": these are weights of a quantized network"
            raise QkitError(
                f"{file.path}: {name} is {_plain(tensor.dtype)} and the network's is {_plain(to)}{likely}. Give those in float "
                "that it was made of."
            )
        types[tensor.dtype, to] = types.get((tensor.dtype, to), 0) + 1
    remarks += [
        f"{count} of {len(tensors)} tensors are {_plain(a)} in {file.path.name} and were converted to {_plain(b)}."
        for (a, b), count in types.items()
    ]
    return {name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()}


def _plain(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
