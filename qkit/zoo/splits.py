"""A seeded, stratified order of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def stratified_order(labels: Sequence[int], seed: int = 0) -> list[int]:
    """Return all indices in an order whose every stretch has the classes in proportion, to within one.

    Each class is shuffled, its samples are spread evenly over [0, 1), and the classes are merged by that
    position. A split is then nothing but slices, and batches of unshuffled loaders are balanced too.

    Parameters
    ----------
    labels
        The class of each sample.
    seed
        Of the shuffle. The same on every platform and NumPy version.

    Returns
    -------
    list of int
        A permutation of ``range(len(labels))``.
    """
    classes = np.asarray(labels)
    # RandomState's streams are frozen for good; those of numpy.random.Generator may change with NumPy
    random = np.random.RandomState(seed)
    position = np.empty(len(classes))
    for label in np.unique(classes):
        members = random.permutation(np.flatnonzero(classes == label))
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    order: list[int] = np.lexsort((classes, position)).tolist()
    return order
