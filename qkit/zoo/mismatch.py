"""Why a file's weights do not fit a network, in words: which tensors, and what that usually comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from qkit.zoo.copies import Copy


def describe(
    source: str, architecture: str, copies: Sequence[Copy], wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> str:
    """The sentences of an error.

    Parameters
    ----------
    source, architecture
        Names of the file and of the network.
    copies
        As `find_copies` orders them; none fits.
    wanted, tensors
        Of the network, and of the file by full name.
    """
    if not copies:
        here, there = next(iter(tensors)), next(iter(wanted), "no tensors")
        return (
            f"{source}: no tensor of {architecture} is in it: the file has {here!r} and {len(tensors) - 1} more, the network "
            f"{there!r}. {_other_names(wanted, tensors)}"
        )
    best = copies[0]
    said = []
    if best.differing:
        name = best.differing[0]
        found, expected = tuple(tensors[best.tensors[name]].shape), tuple(wanted[name].shape)
        more = _and_more(best.differing, "other shapes")
        said.append(f"{name} has shape {found}, but {architecture} needs {expected}{more}")
    if best.missing:
        said.append(f"{best.missing[0]} of {architecture} is missing{_and_more(best.missing)}")
    if best.unknown:
        said.append(f"{best.unknown[0]} is no tensor of {architecture}{_and_more(best.unknown)}")
    under = f" (without the prefix {best.prefix!r})" if best.prefix else ""
    return f"{source}{under}: {'; '.join(said)}. {_reason(best, wanted, tensors)}"


def _reason(copy: Copy, wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    last = next((name.rpartition(".")[0] for name in reversed(list(wanted)) if wanted[name].ndim), "")
    if copy.differing and not copy.missing and not copy.unknown:
        pairs = [(tuple(tensors[copy.tensors[name]].shape), tuple(wanted[name].shape)) for name in copy.differing]
        heads = all(len(a) == len(b) and a[1:] == b[1:] for a, b in pairs)
        if heads and len({name.rpartition(".")[0] for name in copy.differing}) == 1 and len(copy.tensors) > len(copy.differing):
            return (
                f"Likely another number of classes: {pairs[0][0][0]} in the file, {pairs[0][1][0]} in the network. "
                "Build the network with the file's number."
            )
        return "Likely another width, depth or variant of the network: build it with the arguments that it was trained with."
    if copy.missing and not copy.unknown:
        if all(name.startswith(last + ".") for name in copy.missing):
            return f"Likely saved without its last layer, {last}: give the file of the whole network."
        return "Likely a part of the network only, or a smaller variant: give the file of the whole network."
    if copy.unknown and not copy.missing:
        return "Likely a larger variant, or with parts that are used in training alone: build the network with them too."
    if 2 * copy.matched < len(wanted):
        return f"Likely another network. {_other_names(wanted, tensors)}"
    return "Likely another variant of the network: build it with the arguments that it was trained with."


def _other_names(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    if [t.shape for t in wanted.values()] == [t.shape for t in tensors.values()]:
        return (
            "All shapes are the same in the same order, so that it is likely the same network in another code base: rename the "
            "tensors after the network's state_dict()."
        )
    return "It was saved of another network, or names its tensors as another code base does."


def _and_more(names: Sequence[str], what: str = "more") -> str:
    return f", and {len(names) - 1} {what}" if len(names) > 1 else ""
