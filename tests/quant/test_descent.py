"""Single changes of numbers with two values: compiled and plain alike, and nothing left to gain by one more."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from qkit.quant import descent
from qkit.quant.descent import descend


def problem(seed: int, groups: int = 2, rows: int = 3, size: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, size, 2 * size, generator=draw, dtype=torch.float64)
    crossed = torch.randn(groups, rows, size, generator=draw, dtype=torch.float64)
    first = torch.randn(groups, rows, size, generator=draw, dtype=torch.float64)
    second = first + torch.rand(groups, rows, size, generator=draw, dtype=torch.float64)
    second[0, 0, 0] = first[0, 0, 0]  # the grid ends here: there is no choice
    return x @ x.transpose(1, 2), crossed, first, second


def objective(products: Tensor, crossed: Tensor, d: Tensor) -> Tensor:
    return torch.einsum("grk,gkl,grl->gr", d, products, d) + 2.0 * (crossed * d).sum(-1)


@pytest.mark.parametrize("seed", range(5))
def test_no_single_change_helps_any_more(seed: int) -> None:
    products, crossed, first, second = problem(seed)
    found = descend(products, crossed, first, first, second)
    assert bool(((found == first) | (found == second)).all())
    least = objective(products, crossed, found)
    assert bool((least <= objective(products, crossed, first) + 1e-12).all())
    for k in range(found.shape[-1]):
        changed = found.clone()
        changed[..., k] = torch.where(found[..., k] == first[..., k], second[..., k], first[..., k])
        assert bool((objective(products, crossed, changed) >= least - 1e-9).all())


def test_where_columns_do_not_meet_it_is_the_best_choice() -> None:
    products, crossed, first, second = problem(9)
    products = torch.diag_embed(products.diagonal(dim1=1, dim2=2))
    found = objective(products, crossed, descend(products, crossed, second, first, second))
    choices = torch.tensor(list(itertools.product((False, True), repeat=first.shape[-1])))
    every = [objective(products, crossed, torch.where(choice, first, second)) for choice in choices]
    torch.testing.assert_close(found, torch.stack(every).amin(0))


@pytest.mark.parametrize("seed", range(3))
def test_plain_and_compiled_choose_alike_and_leave_their_inputs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(seed, 3, 5, 11)
    before = [t.clone() for t in given]
    compiled = descend(*given[:2], given[2], *given[2:])
    monkeypatch.setattr(descent, "kernels", lambda: None)
    assert torch.equal(descend(*given[:2], given[2], *given[2:]), compiled)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
