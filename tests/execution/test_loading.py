"""What a loader may be, that every pass sees the same samples, and that the user's random state stays theirs."""

# ruff: noqa: NPY002  # users' datasets draw from numpy's legacy state: that is what is tested

from __future__ import annotations

import random
from collections import UserDict, namedtuple
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from qkit.errors import DataError
from qkit.execution.loading import as_batch, batches, targets_tensor

IMAGES = torch.arange(24.0).view(2, 3, 2, 2)
LABELS = torch.tensor([3, 1])
Pair = namedtuple("Pair", "image label")


@pytest.mark.parametrize(
    "item",
    [
        IMAGES,
        (IMAGES,),
        [IMAGES],
        (IMAGES, LABELS),
        [IMAGES, LABELS],
        Pair(IMAGES, LABELS),
        ((IMAGES,), LABELS),
        ([IMAGES], LABELS),
        {"input": IMAGES},
        {"image": IMAGES, "label": LABELS, "path": ["a", "b"]},
        {"pixel_values": IMAGES, "labels": LABELS},
        UserDict({"pixel_values": IMAGES, "labels": LABELS}),
        {"x": IMAGES, "y": LABELS},
    ],
    ids=repr,
)
def test_accepted_batches(item: Any) -> None:
    batch = as_batch(item)
    assert len(batch.inputs) == 1
    assert batch.inputs[0] is IMAGES
    assert batch.targets is None or batch.targets is LABELS
    assert (batch.targets is None) == (len(item) == 1 or item is IMAGES)
    assert batch.size == 2


def test_several_inputs() -> None:
    batch = as_batch(((IMAGES, LABELS), "targets"))
    assert batch.inputs == (IMAGES, LABELS)
    assert batch.targets == "targets"
    assert as_batch(((IMAGES, 0.5),)).inputs == (IMAGES, 0.5)


@pytest.mark.parametrize("inputs", [{"picture": IMAGES}, {"pixel_values": IMAGES, "pixel_mask": IMAGES[:, 0] > 0}])
def test_a_dict_of_the_models_own_arguments_stays_a_dict(inputs: dict[str, Tensor]) -> None:
    batch = as_batch({**inputs, "labels": LABELS})
    assert list(batch.inputs[0]) == list(inputs)
    assert batch.targets is LABELS
    assert batch.size == 2
    assert list(as_batch((inputs, LABELS)).inputs[0]) == list(inputs)


def test_two_tensors_are_inputs_and_targets() -> None:
    batch = as_batch([IMAGES, IMAGES + 1])
    assert len(batch.inputs) == 1
    assert batch.targets is not None


@pytest.mark.parametrize(
    ("item", "found"),
    [
        (None, "NoneType"),
        (3, "int"),
        ("images", "str"),
        (np.zeros((2, 3)), "ndarray"),
        ((), r"tuple\b.*\b0"),
        ([], r"list\b.*\b0"),
        ((IMAGES, LABELS, LABELS), r"tuple\b.*\b3"),
        ((np.zeros(3), LABELS), r"tuple\b.*\b2"),
        (([], LABELS), r"tuple\b.*\b2"),
        (([np.zeros(3)], LABELS), r"tuple\b.*\b2"),
        ({}, r"dict\b.*\b0"),
        ({"label": LABELS}, r"dict\b.*\b1"),
        ({"picture": "a.png", "label": LABELS}, r"dict\b.*\b2"),
        ({"image": IMAGES, "label": LABELS, "y": LABELS}, r"dict\b.*\b3"),
        ({"image": "a.png"}, r"dict\b.*\b1"),
    ],
    ids=repr,
)
def test_other_batches_are_refused_with_what_was_found(item: Any, found: str) -> None:
    with pytest.raises(DataError, match=rf"\b{found}\b"):
        as_batch(item)
    with pytest.raises(DataError, match=rf"\b{found}\b"):
        list(batches([IMAGES, item]))


def numbers() -> Iterator[Tensor]:
    yield IMAGES


@pytest.mark.parametrize("loader", [numbers(), iter([IMAGES]), map(abs, [IMAGES]), zip([IMAGES], [LABELS], strict=True)])
def test_what_can_be_consumed_once_is_refused_unconsumed(loader: Iterator[Any]) -> None:
    with pytest.raises(DataError, match=r"once.*DataLoader"):
        batches(loader)
    assert next(loader) is not None


@pytest.mark.parametrize(("loader", "message"), [(IMAGES, r"\btensor\b"), (3, r"\bint\b"), (None, r"\bNoneType\b")])
def test_what_is_no_loader_is_refused(loader: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        batches(loader)


@pytest.mark.parametrize("limit", [0, -1])
def test_no_batches_at_all_is_refused(limit: int) -> None:
    with pytest.raises(DataError, match=rf"batch.* {limit}\b"):
        batches([IMAGES], limit)


def test_limit_takes_no_batch_too_many() -> None:
    taken = []

    class Counting:
        def __iter__(self) -> Iterator[Tensor]:
            for i in range(5):
                taken.append(i)
                yield IMAGES

    assert len(list(batches(Counting(), 2))) == 2
    assert taken == [0, 1]
    assert len(list(batches(Counting()))) == 5


def test_lengths() -> None:
    assert len(batches([IMAGES] * 5)) == 5
    assert len(batches([IMAGES] * 5, 2)) == 2
    assert len(batches([IMAGES], 2)) == 1

    class Endless(IterableDataset):
        def __iter__(self) -> Iterator[Tensor]:
            yield IMAGES

    assert batches(Endless()).__length_hint__() == 0
    assert len(list(batches(Endless()))) == 1


class Augmented(Dataset):
    """Draws from all three global generators, as augmentations do."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, random.random(), np.random.rand(), float(torch.rand(()))])


def shuffled() -> DataLoader:
    return DataLoader(Augmented(), batch_size=4, shuffle=True)


def with_own_generator() -> DataLoader:
    return DataLoader(Augmented(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(7))


def weighted() -> DataLoader:
    sampler = torch.utils.data.WeightedRandomSampler([1.0] * 12, 12, generator=torch.Generator().manual_seed(7))
    return DataLoader(Augmented(), batch_size=4, sampler=sampler)


def batch_sampled() -> DataLoader:
    sampler = torch.utils.data.RandomSampler(range(12), generator=torch.Generator().manual_seed(7))
    return DataLoader(Augmented(), batch_sampler=torch.utils.data.BatchSampler(sampler, 4, False))


def workers() -> DataLoader:
    return DataLoader(Augmented(), batch_size=4, shuffle=True, num_workers=1)


class Drawing:
    """A loader of the user's own that draws in its `__iter__`."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.rand(3, 4).split(1))


LOADERS = [shuffled, with_own_generator, weighted, batch_sampled, workers, Drawing]


def global_state() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), [np.asarray(part).tolist() for part in np.random.get_state()]


@pytest.mark.parametrize("make", LOADERS)
def test_every_pass_sees_the_same_samples(make: Callable[[], Any]) -> None:
    loader = make()
    first = torch.cat([batch.inputs[0] for batch in batches(loader)])
    torch.rand(5), random.random(), np.random.rand(3)  # whatever the user does in between
    second = torch.cat([batch.inputs[0] for batch in batches(loader)])
    assert torch.equal(first, second)
    (limited,) = batches(loader, 1)
    assert torch.equal(first[: limited.size], limited.inputs[0])
    list(loader)
    assert torch.equal(first, torch.cat([batch.inputs[0] for batch in batches(loader)]))


@pytest.mark.parametrize("make", LOADERS)
def test_the_users_random_state_is_left_alone(make: Callable[[], Any]) -> None:
    loader = make()
    before = global_state()
    for _ in batches(loader):
        assert global_state() == before
    assert global_state() == before
    for _ in batches(loader):
        break
    assert global_state() == before


@pytest.mark.parametrize("make", [with_own_generator, weighted, batch_sampled])
def test_the_loaders_own_generator_is_left_alone(make: Callable[[], DataLoader]) -> None:
    """The user's next epoch comes out as if qkit had never looked."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    undisturbed = torch.cat(list(make()))[:, 0].tolist()
    loader = make()
    list(batches(loader))
    assert torch.cat(list(loader))[:, 0].tolist() == undisturbed


def test_drawing_between_batches_does_not_disturb_the_loader() -> None:
    expected = torch.cat([batch.inputs[0] for batch in batches(shuffled())])
    got = []
    for batch in batches(shuffled()):
        torch.rand(3), random.random(), np.random.rand()
        got.append(batch.inputs[0])
    assert torch.equal(torch.cat(got), expected)


def test_a_shuffling_loader_is_shuffled_and_augmented() -> None:
    rows = torch.cat([batch.inputs[0] for batch in batches(shuffled())])
    assert sorted(rows[:, 0].tolist()) == list(range(12))
    assert rows[:, 0].tolist() != list(range(12))
    assert all(len(rows[:, column].unique()) == 12 for column in (1, 2, 3))


def test_two_passes_side_by_side() -> None:
    loader = shuffled()
    for one, other in zip(batches(loader), batches(loader), strict=True):
        assert torch.equal(one.inputs[0], other.inputs[0])


def test_a_failing_loader_gives_the_random_state_back() -> None:
    class Failing(Augmented):
        def __getitem__(self, index: int) -> Tensor:
            torch.rand(1), random.random(), np.random.rand()
            raise OSError("gone")

    before = global_state()
    with pytest.raises(OSError, match=r"^gone$"):
        list(batches(DataLoader(Failing(), batch_size=2, shuffle=True)))
    assert global_state() == before


def test_a_dataset_with_targets() -> None:
    loader = DataLoader(TensorDataset(torch.randn(6, 2), torch.arange(6)), batch_size=4)
    sizes = [(batch.size, batch.targets.tolist()) for batch in batches(loader)]
    assert sizes == [(4, [0, 1, 2, 3]), (2, [4, 5])]


@pytest.mark.parametrize(
    "targets",
    [torch.tensor([1, 2]), torch.tensor([1, 2], dtype=torch.uint8), [1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2]).int()],
)
def test_targets_are_class_indices(targets: Any) -> None:
    tensor = targets_tensor(targets, 2)
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == [1, 2]


@pytest.mark.parametrize(
    "targets", [[1.0, 2.0], torch.eye(2), [1], [[1], [2]], ["cat", "dog"], None, {"a": 1}, [1, None], 3, torch.ones(2).cfloat()]
)
def test_other_targets_are_refused(targets: Any) -> None:
    with pytest.raises(DataError, match=r"class\b.*\b2 samples"):
        targets_tensor(targets, 2)
