"""The places of a weights file where a network's tensors are: under which prefix, and how well they fit there.

A file is one flat list of tensors with dotted names. Keys of the dictionaries around a state dict, DataParallel's ``module.``,
Lightning's ``model.`` and names of modules around the network are prefixes alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

#: What torch.compile, FSDP and activation checkpointing put into names, at any place of them.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: Numbers that averaging keeps beside the averages.
COUNTERS = ("n_averaged", "steps", "num_updates", "decay")
#: Names of DenseNet's layers in torchvision's own files, which are of a time when they had one more dot.
_DENSE = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")
_AVERAGED = re.compile(
    r"(?i:(?:^|[^a-z])(?:ema|swa|avg|averaged?|polyak|shadow)(?:$|[^a-z]))|(?:^|[^A-Za-z])(?:EMA|SWA)(?=[A-Z])"
)


@dataclass(frozen=True)
class Copy:
    """What a file has of a network under one prefix.

    Attributes
    ----------
    prefix
        In the file, without wrappers; "" or ending with a dot.
    outer
        Prefix of all names of the network that the file does not have.
    tensors
        The file's full name of a tensor by the network's name.
    missing, differing
        The network's names of tensors that are not there, and that are there in another shape.
    unknown
        What else is there, by its name behind the prefix.
    """

    prefix: str
    outer: str
    tensors: Mapping[str, str]
    missing: tuple[str, ...]
    differing: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def key(self) -> str:
        """The prefix as users write it; a dot for the top of the file."""
        return self.prefix.removesuffix(".") or "."

    @property
    def fits(self) -> bool:
        """Whether these are the weights of the network and nothing else."""
        return not (self.missing or self.differing or self.unknown)

    @property
    def matched(self) -> int:
        """How many tensors are there in their shape."""
        return len(self.tensors) - len(self.differing)


def find_copies(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], free: frozenset[str] = frozenset()) -> list[Copy]:
    """Every prefix under which there is a tensor of the network, those that fit first and then those with most tensors.

    Parameters
    ----------
    tensors
        By full name in the file.
    wanted
        By the network's names. ``num_batches_tracked`` may be missing, which evaluation does not use.
    free
        The network's names of which only the number of dimensions is known.
    """
    full = _without_wrappers(tensors)
    own = _without_wrappers(wanted)
    found: list[Copy] = []
    for outer in ("", *_common_prefixes(own)):
        if any(copy.fits for copy in found):
            break
        found += _Search(tensors, full, wanted, own, free, outer).copies()
    return sorted(found, key=lambda copy: (not copy.fits, -copy.matched, len(copy.prefix)))


def bare(name: str) -> str:
    """A name as it is compared: without wrappers, and in the form of today."""
    return _DENSE.sub(r"\1", ".".join(part for part in name.split(".") if part not in WRAPPERS))


def looks_averaged(name: str) -> bool:
    """Whether a key or a name is one that training code gives to averages of weights."""
    return _AVERAGED.search(name) is not None


@dataclass(frozen=True)
class _Search:
    """`full` and `own` are names of the file and of the network by what they are without wrappers."""

    tensors: Mapping[str, Tensor]
    full: Mapping[str, str]
    wanted: Mapping[str, Tensor]
    own: Mapping[str, str]
    free: frozenset[str]
    outer: str

    def copies(self) -> list[Copy]:
        ends = {name[len(self.outer) :]: own for name, own in self.own.items()}
        prefixes = dict.fromkeys(name[: len(name) - len(end)] for name in self.full for end in _ends(name) if end in ends)
        made: list[Copy] = []
        # the longest first: a copy of its own inside another's prefix is no part of that
        for prefix in sorted(prefixes, key=len, reverse=True):
            made.append(self._copy(prefix, ends, [copy.prefix for copy in made if copy.fits]))
        return made

    def _copy(self, prefix: str, ends: Mapping[str, str], inside: Sequence[str]) -> Copy:
        here = [name for name in self.full if name.startswith(prefix)]
        tensors = {ends[end]: self.full[name] for name in here if (end := name[len(prefix) :]) in ends}
        unknown = [
            end
            for name in here
            if (end := name[len(prefix) :]) not in ends
            and not self._is_counter(name)
            and not looks_averaged(end.partition(".")[0])
            and not name.startswith(tuple(inside))
        ]
        missing = [name for name in ends.values() if name not in tensors and not name.endswith("num_batches_tracked")]
        differing = [name for name, place in tensors.items() if not self._same_shape(name, place)]
        return Copy(prefix, self.outer, tensors, tuple(missing), tuple(differing), tuple(unknown))

    def _is_counter(self, name: str) -> bool:
        return name.rpartition(".")[2] in COUNTERS and self.tensors[self.full[name]].numel() == 1

    def _same_shape(self, name: str, place: str) -> bool:
        if isinstance(self.wanted[name], (UninitializedBuffer, UninitializedParameter)):
            return True  # a lazy module takes the shape that it is given
        shape, expected = self.tensors[place].shape, self.wanted[name].shape
        return len(shape) == len(expected) if name in self.free else shape == expected


def _without_wrappers(names: Mapping[str, Tensor]) -> dict[str, str]:
    """Names by what they are without wrappers; as they are where two would be one."""
    found = {bare(name): name for name in names}
    return found if len(found) == len(names) else {name: name for name in names}


def _ends(name: str) -> Iterator[str]:
    """The name, and what is left of it behind each dot."""
    while True:
        yield name
        _, dot, name = name.partition(".")
        if not dot:
            return


def _common_prefixes(names: Mapping[str, str]) -> list[str]:
    """Prefixes, ending with a dot, that all names have; the shortest first."""
    first = next(iter(names), "")
    prefixes = [first[: len(first) - len(end)] for end in _ends(first)][1:]
    return [prefix for prefix in prefixes if all(name.startswith(prefix) for name in names)]
