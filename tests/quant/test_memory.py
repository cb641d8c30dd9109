"""Views of memory: nothing lost, nothing doubled, copies only where they are needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qkit.quant.memory import ROW, blocks, channels_innermost, dense, rows, without_gaps

SHAPES = [(), (1,), (7,), (1, 1), (5, 3), (2, 4097), (3, 5, 7), (2, 3, 8, 8), (2, 1, 31, 67), (1, 5000, 2, 2), (2, 3, 4, 5, 6)]
LAYOUTS = ["contiguous", "channels_last", "transposed", "sliced"]


def laid_out(shape: tuple[int, ...], layout: str) -> Tensor:
    x = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)
    if layout == "channels_last" and x.ndim > 2:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "transposed" and x.ndim > 1:
        return x.transpose(0, -1)
    if layout == "sliced" and x.ndim > 0:
        return torch.stack([x, -x], dim=-1)[..., 0]
    return x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_holds_every_element_once(shape: tuple[int, ...], layout: str) -> None:
    x = laid_out(shape, layout)
    flat = dense(x)
    assert flat.ndim == 1
    assert flat.is_contiguous()
    assert sorted(flat.tolist()) == sorted(x.reshape(-1).tolist())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_of_without_gaps_shares_memory(shape: tuple[int, ...], layout: str) -> None:
    x = laid_out(shape, layout)
    kept = without_gaps(x)
    assert torch.equal(kept, x)
    assert dense(kept).data_ptr() == kept.data_ptr()
    dense(kept).fill_(3.0)
    assert bool((kept == 3.0).all())
    if layout in {"contiguous", "channels_last"}:
        assert kept is x


@pytest.mark.parametrize("shape", [s for s in SHAPES if s])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_keep_channels_apart(shape: tuple[int, ...], layout: str) -> None:
    x = laid_out(shape, layout)
    for axis in range(-x.ndim, x.ndim):
        inner = channels_innermost(x, axis)
        assert torch.equal(inner, x)
        array, channels = rows(inner, axis)
        assert channels == x.shape[axis]
        assert array.size == x.numel()
        assert array.shape[1] % channels == 0
        assert array.shape[1] <= max(ROW, channels)
        for c in range(min(channels, 7)):
            mine = array.reshape(-1, channels)[:, c]
            np.testing.assert_array_equal(np.sort(mine), np.sort(x.select(axis, c).reshape(-1).numpy()))


def test_rows_share_the_memory_that_is_innermost() -> None:
    x = laid_out((2, 3, 8, 8), "channels_last")
    array, _ = rows(channels_innermost(x, 1), 1)
    array[:] = 5.0
    assert bool((x == 5.0).all())


def test_rows_of_a_0d_and_of_an_empty_tensor() -> None:
    array, channels = rows(channels_innermost(torch.tensor(2.0), 0), 0)
    assert (array.tolist(), channels) == ([[2.0]], 1)
    array, channels = rows(torch.empty(0, 3).T.contiguous().T, 1)
    assert array.size == 0
    assert channels == 3


def test_two_tensors_of_one_shape_lie_in_the_same_order() -> None:
    """A lane's tensor and its reference are read side by side whatever their layouts were."""
    x = torch.randn(2, 6, 5, 7)
    contiguous, _ = rows(channels_innermost(x, 1), 1)
    other, _ = rows(channels_innermost(x.contiguous(memory_format=torch.channels_last), 1), 1)
    np.testing.assert_array_equal(contiguous, other)


def test_channels_that_lie_apart_are_blocks_without_a_copy() -> None:
    x = torch.arange(2 * 3 * 64 * 49, dtype=torch.float32).view(2, 3, 64, 49)
    found = blocks(x, 1)
    assert found is not None
    assert found.ctypes.data == x.data_ptr()
    assert found.shape[0] == 6
    for i in range(6):
        assert sorted(found[i].ravel().tolist()) == sorted(x[i // 3, i % 3].ravel().tolist())


#: Innermost channels, short stretches, one channel, too many stretches, a prime length, nothing, too few axes.
OTHERS = [((2, 3, 64, 49), 3), ((2, 3, 5, 5), 1), ((4, 1, 64, 64), 1), ((400, 3, 64, 49), 1), ((2, 3, 2053), 1), ((2, 3, 0), 1)]


@pytest.mark.parametrize(("shape", "axis"), [*OTHERS, ((7, 3), 1)])
def test_other_tensors_have_no_blocks(shape: tuple[int, ...], axis: int) -> None:
    assert blocks(torch.zeros(shape), axis) is None


def test_tensors_with_gaps_have_no_blocks() -> None:
    assert blocks(torch.zeros(2, 3, 64, 98)[..., ::2], 1) is None
    assert blocks(torch.zeros(2, 3, 64, 49).transpose(2, 3), 1) is None
