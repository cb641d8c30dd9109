"""Epochs of a module in a user's training loop, which says when they begin by calls of ``train()`` alone."""

from __future__ import annotations

from dataclasses import dataclass

from qkit.errors import QkitError


@dataclass
class Clock:
    """Which epoch it is; replicas of a module share their clock with it.

    Attributes
    ----------
    epoch
        From 0; -1 before the first training batch.
    counts
        Whether calls of ``train()`` begin epochs: until the user sets the epoch.
    ran
        Whether there was a training batch in this epoch.
    warned
        Whether more epochs than planned were remarked on.
    """

    epoch: int = -1
    counts: bool = True
    ran: bool = False
    warned: bool = False

    @property
    def current(self) -> int:
        """The epoch, 0 before the first batch too."""
        return max(self.epoch, 0)

    def set(self, epoch: int) -> None:
        """The user's own count, which ends the counting by calls of ``train()``.

        Raises
        ------
        QkitError
            If it is none.
        """
        if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
            raise QkitError(f"epoch = {epoch!r}: epochs are whole numbers from 0.")
        self.epoch, self.counts = epoch, False

    def batch(self) -> None:
        """A training batch is run."""
        self.epoch, self.ran = self.current, True

    def train(self, total: int) -> bool:
        """``train()`` was called; true the first time that more epochs than `total` have begun by that."""
        if not (self.counts and self.ran):
            return False
        self.epoch, self.ran = self.current + 1, False
        beyond = self.epoch >= total and not self.warned
        self.warned = self.warned or beyond
        return beyond

    def state(self) -> list[int]:
        """For `state_dict`."""
        return [self.epoch, int(self.counts), int(self.ran)]

    def restore(self, state: list[int]) -> None:
        """From `state_dict`."""
        epoch, counts, ran = state
        self.epoch, self.counts, self.ran = int(epoch), bool(counts), bool(ran)
