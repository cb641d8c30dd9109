"""What hinders tracing is found by trying: every line, exactly, with a cure that cures."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import lint_cases as cases
import pytest
import torch
from lint_cases import REFUSED, UNTRACEABLE
from torch import Tensor, nn
from untraceable import Outer, line_of

import qkit
from qkit.errors import GraphError
from qkit.graph import build
from qkit.graph.fronts.tracing import trace

X = torch.rand(2, 3, 6, 6)


def tracing(result: qkit.Lint) -> list[tuple[str, str, int | None]]:
    """Severity, rule and line of what is not a guideline."""
    rules = {"assert", "data-dependent-control-flow", "untraceable-call", "item-assignment", "frozen-control-flow", "side-effect"}
    return [(f.severity, f.rule, f.line) for f in result if f.rule in rules | {"data-dependent-shape", "different-result"}]


@pytest.mark.parametrize("kind", UNTRACEABLE, ids=lambda kind: kind.__name__)
def test_each_is_found_with_file_and_line(kind: type[nn.Module]) -> None:
    with pytest.raises(GraphError):
        trace(Outer(kind()))
    result = qkit.lint(Outer(kind()), X)
    severity = "error" if kind in REFUSED else "note"
    assert tracing(result) == [(severity, UNTRACEABLE[kind], line_of(kind))]
    found = next(f for f in result if f.rule == UNTRACEABLE[kind])
    assert (found.file, found.layer) == (inspect.getfile(kind), "body.1")
    assert kind.__name__ in found.message
    assert "torch.fx.wrap" in found.cure
    assert 'leaf_modules=["body.1"]' in found.cure
    assert result.ok is result.traced is (kind not in REFUSED)
    assert result.front == (None if kind in REFUSED else "export")


@pytest.mark.parametrize("kind", UNTRACEABLE, ids=lambda kind: kind.__name__)
def test_errors_are_what_a_study_refuses(kind: type[nn.Module]) -> None:
    """And the study's own error names the same line."""
    if kind not in REFUSED:
        assert build(Outer(kind()).eval(), X).deviation < 1e-5
        return
    with pytest.raises(GraphError) as refused:
        build(Outer(kind()).eval(), X)
    assert (refused.value.file, refused.value.line) == (inspect.getfile(kind), line_of(kind))
    assert "leaf_modules" in str(refused.value)


@pytest.mark.parametrize("kind", UNTRACEABLE, ids=lambda kind: kind.__name__)
def test_the_leaf_that_the_cure_names_cures(kind: type[nn.Module]) -> None:
    model = Outer(kind()).eval()
    found = next(f for f in qkit.lint(model, X) if f.rule == UNTRACEABLE[kind])
    trace(model, [found.layer])
    assert build(model, X, leaf_modules=[found.layer]).deviation < 1e-5
    assert qkit.lint(model, X, leaf_modules=[found.layer]).ok


def test_all_lines_are_found_in_one_call() -> None:
    result = qkit.lint(Outer(cases.Many()), X)
    errors = [line_of(cases.Many, "SECOND"), line_of(cases.helper, "FOURTH")]
    assert [(f.line, f.rule) for f in result.errors] == [(line, "data-dependent-control-flow") for line in errors]
    notes = [line_of(cases.Many, mark) for mark in ("FIRST", "THIRD", "FIFTH")]
    rules = ["assert", "untraceable-call", "untraceable-call"]
    assert [(f.line, f.rule) for f in result.notes if f.rule in rules] == list(zip(notes, rules, strict=True))


def test_a_module_that_nothing_helps_is_left_out_and_what_is_behind_is_still_found() -> None:
    result = qkit.lint(cases.Before(), X)
    assert [(f.layer, f.line) for f in result.errors] == [("c", line_of(cases.Branching))]
    notes = {(f.layer, f.line) for f in result.notes}
    assert {("a", line_of(cases.Asserting)), ("b", line_of(cases.Opaque))} <= notes
    assert any("Left out" in remark and "b" in remark for remark in result.remarks)


def test_what_only_torch_fx_refuses_is_no_error() -> None:
    result = qkit.lint(cases.Opaque(), X)
    assert result.ok
    assert result.front == "export"
    assert line_of(cases.Opaque) in [f.line for f in result.notes]


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


def test_lines_that_the_batch_does_not_reach_are_notes() -> None:
    result = qkit.lint(Outer(cases.Unreached()), X)
    assert tracing(result) == [("note", "assert", line_of(cases.Unreached))]
    careful = cases.Unreached()
    careful.careful = True
    assert tracing(qkit.lint(Outer(careful), X)) == [("error", "assert", line_of(cases.Unreached))]


def test_types_that_only_torch_fx_gets_wrong_are_a_note() -> None:
    result = qkit.lint(cases.Checking(), X)
    assert tracing(result) == [("note", "frozen-control-flow", line_of(cases.Checking))]
    assert result.ok


def test_types_fall_otherwise_while_tracing_and_the_result_shows_it() -> None:
    result = qkit.lint(cases.AskingType(), X)
    assert ("warning", "frozen-control-flow", line_of(cases.AskingType)) in tracing(result)
    (error,) = result.errors
    assert error.rule == "different-result"


@pytest.mark.parametrize(
    ("kind", "severity", "rule"),
    [
        (cases.Printing, "note", "side-effect"),
        (cases.Keeping, "note", "side-effect"),
        (cases.Masking, "error", "data-dependent-shape"),
        (cases.TakingOut, "warning", "untraceable-call"),
        (cases.Trying, "note", "frozen-control-flow"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_passes_torch_fx_and_is_still_suspicious(kind: type[nn.Module], severity: str, rule: str) -> None:
    trace(kind())
    assert (severity, rule, line_of(kind)) in tracing(result := qkit.lint(kind(), X))
    assert result.traced is (severity != "error")


def test_decisions_on_buffers_and_on_data_are_both_named_and_the_buffer_too() -> None:
    model = cases.Counting()
    result = qkit.lint(model, X)
    lines = {line_of(cases.Counting, mark) for mark in ("FIRST", "SECOND")}
    assert {(f.rule, f.line) for f in result.errors} == {("data-dependent-control-flow", line) for line in lines}
    (changed,) = result.of("buffer-changed-in-forward")
    assert changed.line == line_of(cases.Counting, "BUFFER")
    assert model.passes == 0


@pytest.mark.parametrize("kind", cases.CONSTRUCTS, ids=lambda kind: kind.__name__)
def test_lint_and_the_study_agree(kind: type[nn.Module]) -> None:
    """Whether it is taken, and the line that is in the way; a line that only torch.fx stops at is a note."""
    result = qkit.lint(kind(), X)
    refused = _raised(build, kind().eval(), X)
    assert result.traced is result.ok is (refused is None), str(result)
    if refused is not None:
        assert refused.line in [f.line for f in result.errors], str(result)
    elif kind is not cases.StarLoop:  # a batch says how many arguments there are
        only_fx = _raised(trace, kind().eval())
        assert only_fx is None or only_fx.line in [f.line for f in result.notes], str(result)


def _raised(call: Callable[..., object], *arguments: object) -> GraphError | None:
    try:
        call(*arguments)
    except GraphError as error:
        return error
    return None


class Flagged(nn.Module):
    """Arguments that a batch leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, image: Tensor, mask: Tensor | None = None, train: bool = False, *rest: Tensor, **more: Tensor) -> Tensor:
        if train:
            return self.conv(image).sum()
        for one in rest:
            image = image + one
        return self.conv(image if mask is None else image * mask)


@pytest.mark.parametrize("inputs", [X, (X,), (X, X), (X, None, False, X, X), {"image": X}, {"image": X, "mask": X}], ids=range(6))
def test_what_a_batch_leaves_out_is_no_cause(inputs: object) -> None:
    result = qkit.lint(Flagged(), inputs)
    assert tracing(result) == []
    assert result.ok
    assert not tracing(qkit.lint(cases.Optional(), X))
    assert not tracing(qkit.lint(cases.StarLoop(), (X, X)))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["parallel", "compiled"])
def test_wrappers_are_taken_off_and_said(wrap) -> None:
    result = qkit.lint(wrap(Outer(cases.Branching())), X)
    assert result.model_name == "Outer"
    assert [(f.layer, f.line) for f in result.errors] == [("body.1", line_of(cases.Branching))]
    assert qkit.lint(wrap(Flagged()), X).ok
    assert any(re.search(r"(nn\.DataParallel|torch\.compile): .*\(Outer\)", remark) for remark in result.remarks)


def test_a_scripted_part_is_refused_by_its_path() -> None:
    with pytest.raises(GraphError, match=r"body\.1"):
        qkit.lint(Outer(torch.jit.script(cases.Writing())), X)


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
    line = rf'torch\.fx\.wrap\("halved"\)` .*{re.escape(str(tmp_path / "lint_model_a.py"))}'
    assert re.search(line, found.cure)
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

    (found,) = qkit.lint(Net(), X).of("untraceable-call")
    assert '`torch.fx.wrap("len")`' in found.cure
    assert not qkit.lint(Cured(), X).of("untraceable-call")


def test_a_class_without_source_is_said() -> None:
    scope = {"nn": nn, "__name__": "nowhere"}
    code = "class Cell(nn.Module):\n    def forward(self, x):\n        if x.sum() > 0:\n            return x\n        return -x\n"
    exec(compile(code, "/tmp/ipykernel_1/cell.py", "exec"), scope)
    result = qkit.lint(scope["Cell"](), X)
    assert [(f.rule, f.line) for f in result.errors] == [("data-dependent-control-flow", 3)]
    assert any("Cell.forward" in remark for remark in result.remarks)
