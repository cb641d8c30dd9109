"""The result object, bad input, and that nothing of the user's is touched."""

from __future__ import annotations

import json
from pathlib import Path

import lint_cases as cases
import pytest
import torch
from lint_cases import line_of
from torch import Tensor, nn

import qkit
from qkit.errors import DataError, GraphError, QkitError
from qkit.linting import RULES

X = torch.rand(2, 3, 16, 16)


def test_text_reads_like_a_compilers() -> None:
    result = qkit.lint(nn.Sequential(cases.Branching()), X)
    first, *_, last = str(result).splitlines()
    place = Path(cases.__file__)
    place = place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place
    assert first.startswith(f"{place}:{line_of(cases.Branching)}: error: 0: `if y.sum() > 0:  # BLAME`: ")
    assert first.endswith("[data-dependent-control-flow]")
    assert last == "Sequential: 1 error, 0 warnings, 1 note; torch.fx does not trace it as it is"
    assert repr(result) == f"Lint({last})"


def test_long_lists_are_counted_in_text_and_whole_in_the_table() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.SiLU()) for _ in range(9)), nn.Flatten(), nn.Linear(768, 2))
    result = qkit.lint(model, X)
    assert "warning: … 4 more of replaceable-activation" in str(result)
    assert "4 more of replaceable-activation" in result._repr_html_()
    assert (result.table()["rule"] == "replaceable-activation").sum() == 9


def test_table_dict_and_iteration() -> None:
    result = qkit.lint(cases.Convolutions(), X)
    table = result.table()
    assert list(table.columns) == ["severity", "rule", "layer", "file", "line", "message", "cure"]
    assert len(table) == len(result) == len(list(result))
    assert table["line"].dtype == "Int64"
    data = json.loads(json.dumps(result.to_dict()))
    assert data["counts"] == {"error": 0, "warning": 2, "note": len(result.notes)}
    assert {f["rule"] for f in data["findings"]} <= set(RULES)
    assert data["findings"][0] == result.findings[0].to_dict()
    with pytest.raises(KeyError, match="neither"):
        result.of("no-such-rule")
    assert len(qkit.lint(nn.Sequential(nn.ReLU()), X).table()) == 0


def test_html_is_escaped() -> None:
    finding = qkit.Finding("assert", "error", "`x < 1 & <script>`", "<b>", "a<b", "/tmp/<x>.py", 3)
    page = qkit.Lint((finding,), "<Net>", False, ("<remark>",))._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    for raw in ("<b>", "<x>", "<Net>", "<remark>"):
        assert raw not in page


def test_nothing_of_the_users_is_touched() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), cases.Branching())
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    calls: list[int] = []
    handle = model[0].register_forward_hook(lambda *_: calls.append(1))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    names = set(vars(model[3]))
    x, kept, rng = X.clone().requires_grad_(), X.clone(), torch.get_rng_state()
    first = qkit.lint(model, x)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, kept)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert set(vars(model[3])) == names
    assert torch.is_grad_enabled()
    assert qkit.lint(model, x) == first
    handle.remove()
    assert not model[0]._forward_hooks


@pytest.mark.parametrize(
    ("model", "inputs", "error", "match"),
    [
        (nn.Conv2d, X, GraphError, "torch.nn.Module is needed, not type"),
        ("resnet18", X, GraphError, "torch.nn.Module is needed, not str"),
        (nn.Conv2d(3, 3, 1), (), DataError, "an empty tuple"),
        (nn.Conv2d(3, 3, 1), [], DataError, "got list"),
        (nn.Conv2d(3, 3, 1), None, DataError, "got NoneType"),
        (nn.Conv2d(3, 3, 1), [X], DataError, "does not run on the batch"),
        (nn.Conv2d(4, 3, 1), X, DataError, r"Conv2d does not run on the batch .*\(2, 3, 16, 16\).*expected input"),
        (nn.Conv2d(3, 3, 1), (X, X), DataError, "does not run on the batch"),
        (nn.Conv2d(3, 3, 1).half(), X.half(), DataError, "float32"),
        (nn.Conv2d(3, 3, 1, device="meta"), X, DataError, "meta device"),
        (torch.jit.trace(nn.Conv2d(3, 3, 1), X), X, GraphError, "scripted"),
    ],
)
def test_bad_input_is_one_sentence(model, inputs, error: type[QkitError], match: str) -> None:
    with pytest.raises(error, match=match):
        qkit.lint(model, inputs)


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"sum": self.conv(x + y), "difference": x - y}

    result = qkit.lint(Two(), (X, X))
    assert result.ok, str(result)
    assert not result.of("convolution-without-batchnorm")


def test_what_a_study_refuses_is_an_error() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, *, scale: float = 2.0) -> Tensor:
            return x * scale

    result = qkit.lint(Scaled(), X)
    (found,) = result.errors
    assert "scale" in found.message
    assert "qkit.Study refuses" in found.cure
    assert result.traced


def test_the_function_stays_a_function_beside_its_package() -> None:
    import qkit.linting

    assert callable(qkit.lint)
    assert qkit.lint is qkit.linting.lint
