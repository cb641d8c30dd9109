"""Batches of a loader by their number, in any order, the same ones that a pass gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from qkit.errors import DataError
from qkit.execution.loading import Batch, Randomness, as_batch, batches

#: Nothing that a loader can give.
_NOTHING = object()


class Picker:
    """Batches of a loader by number.

    A list's, and those of a `DataLoader` whose order is fixed, are read alone; reading happens in this process, without the
    loader's own. That holds while it draws no random numbers, since those depend on all that was read before. Every other
    loader is iterated to the batch that is asked for, and goes on from there.

    Parameters
    ----------
    loader
        As for `qkit.execution.loading.batches`.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader
        self._order = _order(loader)
        self._pass: Iterator[Batch] = iter(())
        self._at: int | None = None
        self.length: int | None = None if self._order is None else len(self._order)

    def __call__(self, number: int) -> Batch | None:
        """The batch of that number; None where the loader ends before, after `length` batches.

        Raises
        ------
        DataError
            If the loader cannot be read here.
        """
        if self.length is not None and number >= self.length:
            return None
        if self._order is not None:
            item = _alone(self._loader, self._order[number])
            if item is not _NOTHING:
                return as_batch(item)
            self._order = None
        return self._passed_to(number)

    def _passed_to(self, number: int) -> Batch | None:
        if self._at is None or self._at > number:
            self._pass, self._at = iter(batches(self._loader)), 0
        taken, self._at = self._at, None  # a pass that fails on the way is over, and is no end of the loader
        try:
            for batch in self._pass:
                taken += 1
                if taken > number:
                    self._at = taken
                    return batch
        except AssertionError as error:
            if "daemonic" not in str(error):
                raise
            raise DataError(
                "this loader has processes of its own (num_workers), which a worker of this kind may not start, and cannot be "
                "read without them, since it draws random numbers there: use num_workers=0, or no random augmentation."
            ) from error
        self.length = taken
        return None


def _order(loader: Any) -> Sequence[Any] | None:
    """What each batch is made of, where that is fixed: a list's items, a data set's indices; None elsewhere."""
    if type(loader) in (list, tuple):
        return range(len(loader))
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None
    if loader.num_workers and loader.worker_init_fn is not None:
        return None  # its own processes are set up in a way of theirs
    randomness = Randomness(loader)
    before = randomness.key
    with randomness():
        found = [list(indices) for indices in loader.batch_sampler]
    return found if randomness.key == before else None


def _alone(loader: Any, place: Any) -> Any:
    """One batch, or `_NOTHING` where reading it draws random numbers."""
    if isinstance(place, int):
        return loader[place]
    randomness = Randomness(loader)
    before = randomness.key
    with randomness():
        several = getattr(loader.dataset, "__getitems__", None)
        item = loader.collate_fn(several(place) if several else [loader.dataset[index] for index in place])
    return item if randomness.key == before else _NOTHING
