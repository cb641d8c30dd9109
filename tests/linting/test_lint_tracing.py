"""What hinders tracing is found by trying: every line, exactly, with a cure that cures."""

from __future__ import annotations

import lint_cases as cases
import pytest
import torch
from lint_cases import UNTRACEABLE, line_of
from torch import Tensor, nn

import qkit
from qkit.errors import GraphError
from qkit.tracing import trace

FILE = cases.__file__
X = torch.rand(2, 3, 6, 6)


def tracing(result: qkit.Lint) -> list[tuple[str, str, int | None]]:
    """Severity, rule and line of what is not a guideline."""
    rules = {"assert", "data-dependent-control-flow", "untraceable-call", "item-assignment", "frozen-control-flow", "side-effect"}
    return [(f.severity, f.rule, f.line) for f in result if f.rule in rules | {"data-dependent-shape", "different-result"}]


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.body = nn.Sequential(nn.ReLU(), inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.stem(x))


@pytest.mark.parametrize("kind", UNTRACEABLE, ids=lambda kind: kind.__name__)
def test_each_is_found_with_file_and_line(kind: type[nn.Module]) -> None:
    with pytest.raises(GraphError):
        trace(Outer(kind()))
    result = qkit.lint(Outer(kind()), X)
    assert tracing(result) == [("error", UNTRACEABLE[kind], line_of(kind))]
    (found,) = result.errors
    assert (found.file, found.layer) == (FILE, "body.1")
    assert kind.__name__ in found.message
    assert "torch.fx.wrap" in found.cure
    assert 'leaf_modules=["body.1"]' in found.cure
    assert not result.ok
    assert not result.traced


@pytest.mark.parametrize("kind", UNTRACEABLE, ids=lambda kind: kind.__name__)
def test_the_leaf_that_the_cure_names_cures(kind: type[nn.Module]) -> None:
    model = Outer(kind()).eval()
    (found,) = qkit.lint(model, X).errors
    trace(model, [found.layer])


def test_all_lines_are_found_in_one_call() -> None:
    result = qkit.lint(Outer(cases.Many()), X)
    lines = [line_of(cases.Many, mark) for mark in ("FIRST", "SECOND", "THIRD")]
    expected = [*lines, line_of(cases.helper, "FOURTH"), line_of(cases.Many, "FIFTH")]
    assert [f.line for f in result.errors] == expected
    assert [f.rule for f in result.errors] == [
        "assert", "data-dependent-control-flow", "untraceable-call", "data-dependent-control-flow", "untraceable-call",
    ]  # fmt: skip


def test_a_module_that_nothing_helps_is_left_out_and_what_is_behind_is_still_found() -> None:
    result = qkit.lint(cases.Before(), X)
    found = [(f.layer, f.line) for f in result.errors]
    assert found == [("a", line_of(cases.Asserting)), ("b", line_of(cases.Opaque)), ("c", line_of(cases.Branching))]
    assert "Nothing behind this line" in result.errors[1].message
    assert "raised while tracing and not when the model runs" in result.errors[1].message
    assert any("Left out" in remark and "b" in remark for remark in result.remarks)


def test_a_root_that_nothing_helps_says_so() -> None:
    result = qkit.lint(cases.Opaque(), X)
    assert [f.line for f in result.errors] == [line_of(cases.Opaque)]
    assert any("could not be traced to its end" in remark for remark in result.remarks)


def test_a_line_of_many_modules_is_one_finding() -> None:
    result = qkit.lint(nn.Sequential(cases.Branching(), cases.Branching(), cases.Branching()), X)
    (found,) = result.errors
    assert found.layer == "0"
    assert "3 times" in found.message


def test_what_a_trace_tolerates_is_no_finding() -> None:
    trace(cases.Tolerated())
    result = qkit.lint(cases.Tolerated(), X)
    assert tracing(result) == []
    assert result.traced


def test_lines_that_the_batch_does_not_reach_are_warnings() -> None:
    result = qkit.lint(Outer(cases.Unreached()), X)
    assert tracing(result) == [("warning", "assert", line_of(cases.Unreached))]
    assert "does not reach" in result.warnings[0].message
    careful = cases.Unreached()
    careful.careful = True
    assert tracing(qkit.lint(Outer(careful), X)) == [("error", "assert", line_of(cases.Unreached))]


@pytest.mark.parametrize("kind", [cases.Checking, cases.AskingType], ids=lambda kind: kind.__name__)
def test_types_fall_otherwise_while_tracing_and_the_result_shows_it(kind: type[nn.Module]) -> None:
    result = qkit.lint(kind(), X)
    assert ("warning", "frozen-control-flow", line_of(kind)) in tracing(result)
    (error,) = result.errors
    assert error.rule == "different-result"


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        (cases.Printing, "side-effect"),
        (cases.Keeping, "side-effect"),
        (cases.Masking, "data-dependent-shape"),
        (cases.TakingOut, "untraceable-call"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_passes_and_is_still_suspicious_is_a_warning(kind: type[nn.Module], rule: str) -> None:
    trace(kind())
    assert tracing(qkit.lint(kind(), X)) == [("warning", rule, line_of(kind))]


def test_a_model_that_counts_its_passes_is_no_other_result() -> None:
    model = cases.Counting()
    assert [f.rule for f in qkit.lint(model, X).errors] == ["data-dependent-control-flow"]
    assert model.passes == 0


@pytest.mark.parametrize("kind", cases.CONSTRUCTS, ids=lambda kind: kind.__name__)
def test_lint_and_the_plain_trace_agree(kind: type[nn.Module]) -> None:
    """Whether it traces, and the first line that is in the way."""
    result = qkit.lint(kind(), X)
    line = None
    try:
        trace(kind().eval())
    except GraphError as error:
        line = error.line
    assert result.traced is (line is None)
    assert line in [f.line for f in result.errors] or (line is None and result.ok), str(result)


def test_errors_that_the_model_swallows_are_told() -> None:
    result = qkit.lint(cases.Trying(), X)
    assert ("warning", "frozen-control-flow", line_of(cases.Trying)) in tracing(result)


def test_an_optional_argument_is_taken_for_given() -> None:
    result = qkit.lint(cases.Optional(), X)
    assert [(f.severity, f.line) for f in result if f.rule == "untraceable-call"] == [("error", line_of(cases.Optional))]
    assert qkit.lint(cases.Optional(), (X, X)).ok


def test_a_scripted_part_is_left_out() -> None:
    result = qkit.lint(Outer(torch.jit.script(cases.Writing())), X)
    assert result.ok or any("Left out" in remark for remark in result.remarks)


def test_the_wrap_that_the_cure_names_cures(tmp_path, monkeypatch) -> None:
    """The line goes to the module whose name is looked up: the caller's, if it imported the function."""
    (tmp_path / "lint_helpers.py").write_text("def halved(x):\n    return x / 2 if x.abs().max() > 1 else x\n")
    model = (
        "from torch import nn\nfrom lint_helpers import halved\n\n\nclass Net(nn.Module):\n"
        "    def forward(self, x):\n        return halved(x) + 1\n"
    )
    (tmp_path / "lint_model_a.py").write_text(model)
    monkeypatch.syspath_prepend(tmp_path)
    from lint_model_a import Net  # type: ignore[import-not-found]

    (found,) = qkit.lint(Net(), X).errors
    assert (found.file, found.line) == (str(tmp_path / "lint_helpers.py"), 2)
    line = f'torch.fx.wrap("halved")` at module level of {tmp_path / "lint_model_a.py"}'
    assert line in found.cure
    (tmp_path / "lint_model_b.py").write_text(model.replace("\n\n\n", '\nimport torch\ntorch.fx.wrap("halved")\n\n\n', 1))
    from lint_model_b import Net as Cured  # type: ignore[import-not-found]

    result = qkit.lint(Cured(), X)
    assert result.ok
    assert result.traced


def test_the_wrap_of_len_cures(tmp_path, monkeypatch) -> None:
    text = "import torch\n{}\n\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        return x * len(x)\n"
    (tmp_path / "lint_len_a.py").write_text(text.format(""))
    (tmp_path / "lint_len_b.py").write_text(text.format('torch.fx.wrap("len")'))
    monkeypatch.syspath_prepend(tmp_path)
    from lint_len_a import Net  # type: ignore[import-not-found]
    from lint_len_b import Net as Cured  # type: ignore[import-not-found]

    assert '`torch.fx.wrap("len")` at module level' in qkit.lint(Net(), X).errors[0].cure
    assert qkit.lint(Cured(), X).ok


def test_a_class_without_source_is_said() -> None:
    scope = {"nn": nn, "__name__": "nowhere"}
    code = "class Cell(nn.Module):\n    def forward(self, x):\n        if x.sum() > 0:\n            return x\n        return -x\n"
    exec(compile(code, "/tmp/ipykernel_1/cell.py", "exec"), scope)
    result = qkit.lint(scope["Cell"](), X)
    assert [(f.rule, f.line) for f in result.errors] == [("data-dependent-control-flow", 3)]
    assert any("No source is available of Cell.forward" in remark for remark in result.remarks)
