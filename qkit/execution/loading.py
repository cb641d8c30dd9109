"""What comes out of a loader, as inputs and targets."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.errors import DataError
from qkit.graph.structures import flatten
from qkit.progress import uninterrupted

#: A loader without a length that has given so many batches is taken for an endless one.
_ENDLESS = 10_000
_INPUTS = frozenset({"input", "inputs", "image", "images", "pixel_values", "x"})
_TARGETS = frozenset({"target", "targets", "label", "labels", "y"})


@dataclass(frozen=True)
class Batch:
    """One batch: the model's positional inputs, and targets if the loader gives any."""

    inputs: tuple[Any, ...]
    targets: Any = None

    @property
    def size(self) -> int:
        """Number of samples: the first tensor's first dimension."""
        first = first_tensor(self.inputs)
        return 1 if first is None else int(first.shape[0])


def first_tensor(inputs: Any) -> Tensor | None:
    """The first tensor with a batch in nested inputs, None where there is none."""
    return next((x for _, x in flatten(inputs)[0] if isinstance(x, Tensor) and x.ndim), None)


class Randomness:
    """A loader's own random state, started from a fixed seed, so that shuffling and augmentation repeat in every pass.

    Paired comparisons across passes need the same samples in the same order, and the user's state has to come back as it
    was, the global ones and those of the loader's own generators: all are swapped around each access to the loader.
    """

    _SEED = 0

    def __init__(self, loader: Any, seed: int = _SEED) -> None:
        self.generators = _generators(loader)
        self.state: tuple[Any, ...] = (
            torch.Generator().manual_seed(seed).get_state(),
            random.Random(seed).getstate(),
            np.random.RandomState(seed).get_state(),
            *(torch.Generator(g.device).manual_seed(seed).get_state() for g in self.generators),
        )

    def _exchange(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        own = [generator.get_state() for generator in self.generators]
        before = torch.get_rng_state(), random.getstate(), np.random.get_state(), *own
        torch.set_rng_state(state[0])
        random.setstate(state[1])
        np.random.set_state(state[2])
        for generator, mine in zip(self.generators, state[3:], strict=True):
            generator.set_state(mine)
        return before

    @property
    def key(self) -> Any:
        """The state as something to compare: it changes where a random number is drawn."""
        first, second, (name, third, *more), *own = self.state
        return first.numpy().tobytes(), second, name, third.tobytes(), more, [state.numpy().tobytes() for state in own]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with uninterrupted() as interruptible:
            outer = self._exchange(self.state)
            try:
                with interruptible():
                    yield
            finally:
                self.state = self._exchange(outer)


def _generators(loader: Any) -> list[torch.Generator]:
    """The generators that a DataLoader was given: it shuffles by them and not by the global state."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


@contextmanager
def seeded(loader: Any, seed: int) -> Iterator[None]:
    """Random states, the global ones and those of the loader's own generators, start from `seed` and come back as they were."""
    with Randomness(loader, seed)():
        yield


class Batches:
    """Batches of a loader, at most `limit`, the same ones in every pass; has a length where the loader has one."""

    def __init__(self, loader: Iterable[Any], limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise DataError(f"at least one batch has to be taken, not {limit}.")
        if not hasattr(loader, "__iter__"):
            raise DataError(f"a loader is an iterable of batches, not a {type(loader).__name__}; wrap a single batch in a list.")
        if isinstance(loader, Tensor):
            raise DataError("a loader is an iterable of batches; this is one tensor. Wrap it in a list: [tensor].")
        if isinstance(loader, Iterator):
            raise DataError(
                "this loader can be consumed once only (a generator or iterator), and qkit needs several passes over the same "
                "samples: pass a DataLoader, or a list of its batches."
            )
        self.loader = loader
        self.limit = limit

    def __iter__(self) -> Iterator[Batch]:
        randomness = Randomness(self.loader)
        with randomness():
            source = iter(self.loader)
        count = 0
        while self.limit is None or count < self.limit:
            with randomness():
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield as_batch(item)
            count += 1
            if self.limit is None and count >= _ENDLESS and not self.__length_hint__():
                raise DataError(
                    f"the loader has given {count:,} batches, has no length and no end so far: pass batches= to take so many, "
                    "or a "
                    "loader that ends."
                )

    def __len__(self) -> int:
        length = len(self.loader)  # type: ignore[arg-type]
        return length if self.limit is None else min(length, self.limit)

    def __length_hint__(self) -> int:
        try:
            return len(self)
        except TypeError:
            return 0


def batches(loader: Iterable[Any], limit: int | None = None) -> Batches:
    """The loader's batches; at most `limit`."""
    return Batches(loader, limit)


def as_batch(item: Any) -> Batch:
    """``inputs``, ``(inputs, targets)`` or ``{"pixel_values": …, "labels": …}`` as a `Batch`.

    Inputs may be a tensor, a tuple of the model's positional inputs, or a dict of its inputs by name. Of a dict alone what is
    called target, label or y is the targets.

    Raises
    ------
    DataError
        For anything else.
    """
    if isinstance(item, Tensor):
        return Batch((item,))
    pair: Any = item
    if isinstance(item, Mapping):
        goals = [key for key in item if key in _TARGETS]
        rest = {key: value for key, value in item.items() if key not in _TARGETS}
        tensors = {key: value for key, value in rest.items() if isinstance(value, Tensor)}
        alone = len(tensors) == 1 and next(iter(tensors)) in _INPUTS  # paths, sizes and the like may be beside it
        pair = (next(iter(tensors.values())) if alone else rest, item[goals[0]] if goals else None) if len(goals) <= 1 else None
    if isinstance(pair, (tuple, list)) and 1 <= len(pair) <= 2:
        inputs, targets = pair[0], pair[1] if len(pair) == 2 else None
        if isinstance(inputs, Tensor):
            return Batch((inputs,), targets)
        if isinstance(inputs, Mapping) and any(isinstance(value, Tensor) for value in inputs.values()):
            return Batch((dict(inputs),), targets)
        if isinstance(inputs, (tuple, list)) and inputs and isinstance(inputs[0], Tensor):
            return Batch(tuple(inputs), targets)
    what = f"{type(item).__name__} of {len(item)}" if isinstance(item, (tuple, list, Mapping)) else type(item).__name__
    raise DataError(
        f"a batch is a tensor of inputs or a pair (inputs, targets), not a {what}: "
        "pass a loader that collates its samples to that."
    )


def targets_tensor(targets: Any, size: int) -> Tensor:
    """Class indices as an int64 tensor of shape (N,).

    Raises
    ------
    DataError
        If they are no integers or not one for each sample.
    """
    try:
        tensor = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"top-1 and top-5 need one class index for each of {size} samples, not {type(targets).__name__}: {error}"
        ) from error
    if tensor.is_floating_point() or tensor.is_complex() or tensor.shape != (size,):
        raise DataError(
            f"top-1 and top-5 need one class index for each of {size} samples, not targets of {tensor.dtype} "
            f"{tuple(tensor.shape)}."
        )
    return tensor.long()


def fingerprint(batch: Batch) -> tuple[Any, ...]:
    """What tells a batch from others: shape, a weighted sum of the first input's values, and of the targets where they are
    numbers. It is one of integers, the values' bits, so that it does not depend on how many threads add it up.
    """
    return _mark(first_tensor(batch.inputs)), _mark(batch.targets if isinstance(batch.targets, Tensor) else None)


def _mark(tensor: Tensor | None) -> tuple[Any, ...] | None:
    if tensor is None:
        return None
    values = tensor.detach().flatten().double().view(torch.int64)
    # weights by position, since a batch of the same samples in another order is another batch
    weights = torch.arange(1, len(values) + 1, device=values.device).remainder_(997)
    return tuple(tensor.shape), int((values * weights).sum())


def refuse_non_finite(batch: Batch, number: int) -> None:
    """Nothing, if the batch's inputs are finite.

    Raises
    ------
    DataError
        Otherwise; says how many samples of which batch.
    """
    for _, value in flatten(batch.inputs)[0]:
        if not isinstance(value, Tensor) or not value.is_floating_point() or bool(value.isfinite().all()):
            continue
        bad = int((~value.flatten(1).isfinite()).any(1).sum()) if value.ndim > 1 else int((~value.isfinite()).sum())
        raise DataError(
            f"{bad} of {batch.size} samples of evaluation batch {number} hold NaN or infinity: look at how they are read and "
            "normalized (a division by a deviation of 0, a corrupt file), or leave them out."
        )


def samples_at(
    loader: Iterable[Any], numbers: Iterable[int], limit: int | None = None
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The samples with these numbers in the loader's order, each with its tensors by the path to them in the inputs.

    The loader is read up to the last of them, and no other sample is kept.

    Raises
    ------
    DataError
        If the loader ends before.
    """
    wanted = sorted({int(number) for number in numbers})
    at = 0
    for batch in batches(loader, limit) if wanted else ():
        tensors = _named_tensors(batch.inputs)
        while wanted and wanted[0] < at + batch.size:
            number = wanted.pop(0)
            yield number, {name: tensor[number - at] for name, tensor in tensors.items()}
        at += batch.size
        if not wanted:
            return
    if wanted:
        raise DataError(f"the loader ended after {at} samples, before number {wanted[0]}: pass the data that the figures are of.")


def _named_tensors(inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """The tensors of nested inputs by the path to them, such as "0" for the first input and "0.mask"."""
    return {".".join(map(str, path)): x for path, x in flatten(inputs)[0] if isinstance(x, Tensor) and x.ndim}
