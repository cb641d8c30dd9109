"""A module in a user's training loop, in the place of the model: its epochs, which begin by calls of ``train()`` alone."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn

from qkit.errors import QkitError

logger = logging.getLogger(__name__)


def check_epochs(name: str, value: int, least: int) -> None:
    """Raise `QkitError` unless the argument of that name is a whole number, `least` or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise QkitError(f"{name}={value!r} has to be a whole number of epochs, {least} or more.")


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
        check_epochs("epoch", epoch, 0)
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


class LoopModule(nn.Module):
    """A module that stands in a training loop where the model stood; see `Clock` for its epochs. It computes in float32.

    Attributes
    ----------
    model
        The network; what is learnt of it, a subclass says.
    total_epochs
        Epochs that are planned.
    clock
        Which epoch it is.
    """

    #: Said of epochs beyond the planned ones.
    _beyond = ""

    def __init__(self, model: nn.Module, total_epochs: int) -> None:
        super().__init__()
        self.model = model
        self.total_epochs = total_epochs
        self.clock = Clock()
        self._autocast_told = False

    @property
    def epoch(self) -> int:
        """The epoch, from 0. Setting it ends the counting by calls of ``train()``."""
        return self.clock.current

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.clock.set(epoch)
        self._follow_epoch()

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; begins the next epoch if a training batch was run since the last."""
        super().train(mode)
        if mode and self.clock.train(self.total_epochs):
            logger.warning(
                "train() has begun epoch %d of %d%s. The module takes each call of train() after a training batch for a new "
                "epoch: if that is not what your loop means, set module.epoch at the start of every epoch.",
                self.epoch + 1, self.total_epochs, self._beyond,
            )  # fmt: skip
        self._follow_epoch()
        return self

    def _follow_epoch(self) -> None:
        """Bring in line what depends on the epoch and on the mode."""

    def _float32(self, device: str) -> AbstractContextManager[object]:
        """Autocast switched off on a type of device, which is said once where it was on."""
        if not torch.is_autocast_enabled(device):
            return nullcontext()
        if not self._autocast_told:
            self._autocast_told = True
            logger.warning("autocast is on: a %s needs float32 and computes in it all the same.", type(self).__name__)
        return torch.autocast(device, enabled=False)
