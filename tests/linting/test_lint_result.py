"""The result object, bad input, and that nothing of the user's is touched."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import lint_cases as cases
import pytest
import torch
from torch import Tensor, nn
from untraceable import line_of

import qkit
from qkit.errors import DataError, GraphError, QkitError
from qkit.linting import RULES

X = torch.rand(2, 3, 16, 16)


def test_text_reads_like_a_compilers() -> None:
    result = qkit.lint(nn.Sequential(cases.Branching()), X)
    first, *_, last = str(result).splitlines()
    place = Path(inspect.getfile(cases.Branching))
    place = place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place
    assert first.startswith(f"{place}:{line_of(cases.Branching)}: error: 0: `if y.sum() > 0:  # BLAME`: ")
    assert first.endswith("[data-dependent-control-flow]")
    assert last.startswith("Sequential: 1 error, 0 warnings, 0 notes; qkit.Study ")
    assert not result.ok
    assert repr(result) == f"Lint({last})"


def test_long_lists_are_counted_in_text_and_whole_in_the_table() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.SiLU()) for _ in range(9)), nn.Flatten(), nn.Linear(768, 2))
    result = qkit.lint(model, X)
    assert re.search(r"warning: … 4 .*\breplaceable-activation\b", str(result))
    assert re.search(r"\b4 [^<]*\breplaceable-activation\b", result._repr_html_())
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
        (nn.Conv2d, X, GraphError, r"torch\.nn\.Module .*\btype\b"),
        ("resnet18", X, GraphError, r"torch\.nn\.Module .*\bstr\b.*'resnet18'"),
        (nn.Conv2d(3, 3, 1), (), DataError, r"\bempty tuple\b"),
        (nn.Conv2d(3, 3, 1), [], DataError, r"\blist\b"),
        (nn.Conv2d(3, 3, 1), None, DataError, r"\bNoneType\b"),
        (nn.Conv2d(3, 3, 1), [X], DataError, r"^Conv2d .*\(list\)"),
        (nn.Conv2d(3, 3, 1, device="meta"), (), DataError, r"\bempty tuple\b"),
        ("net.bin", X, GraphError, r"\.onnx and \.pt2"),
        (nn.LazyConv2d(3, 1), X, GraphError, "lazy"),
        (nn.Conv2d(4, 3, 1), X, DataError, r"^Conv2d .*\(2, 3, 16, 16\).*expected input"),
        (nn.Conv2d(3, 3, 1), (X, X), DataError, r"^Conv2d .*\(2, 3, 16, 16\).*\(2, 3, 16, 16\)"),
        (nn.Conv2d(3, 3, 1).half(), X.half(), DataError, r"^weight .*torch\.float16\b.*\bfloat32\b"),
        (nn.Conv2d(3, 3, 1, device="meta"), X, DataError, r"^weight .*\bmeta\b"),
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


def test_keyword_arguments_with_defaults_are_what_they_are() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, *, scale: float = 2.0) -> Tensor:
            return x * scale

    assert qkit.lint(Scaled(), X).ok


def test_what_a_study_refuses_is_an_error() -> None:
    class Chosen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (x,))

    result = qkit.lint(Chosen(), X)
    assert "data-dependent-control-flow" in [f.rule for f in result.errors]
    assert any("torch.cond" in f.message for f in result.errors)
    assert all(f.line is not None for f in result.errors)
    assert not result.traced
    assert result.front is None


class Small(nn.Module):
    """A norm that folds, one that does not, an activation to replace, and a Python branch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.late = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.act, self.head = nn.SiLU(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three channels")
        return self.head(self.late(self.act(self.norm(self.conv(x)))))


def test_programs_and_their_files_have_no_source(tmp_path: Path) -> None:
    program = torch.export.export(Small().eval(), (X,))
    torch.export.save(program, tmp_path / "net.pt2")
    for model in (program, tmp_path / "net.pt2", str(tmp_path / "net.pt2")):
        result = qkit.lint(model, X)
        assert (result.front, result.ok) == ("pt2", True)
        assert {(f.rule, f.layer) for f in result if f.rule != "convolution-without-batchnorm"} == {
            ("replaceable-activation", "act"),
            ("norm-not-folded", "late"),
        }
        assert all(f.file is None and f.line is None for f in result)
        assert any("no source" in remark for remark in result.remarks)
    assert result.model_name == "net.pt2"


@pytest.mark.slow
def test_onnx_files_go_by_the_names_of_their_tensors(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    torch.onnx.export(Small().eval(), (X,), str(tmp_path / "net.onnx"), dynamo=True, verbose=False)
    import onnx

    result = qkit.lint(tmp_path / "net.onnx", X)
    assert (result.front, result.model_name) == ("onnx", "net.onnx")
    assert not result.of("convolution-without-batchnorm")
    tensors = {name for node in onnx.load(tmp_path / "net.onnx").graph.node for name in node.output}
    (act,) = result.of("replaceable-activation")
    assert act.layer in tensors
    assert all(f.file is None for f in result)


def test_the_function_stays_a_function_beside_its_package() -> None:
    import qkit.linting

    assert callable(qkit.lint)
    assert qkit.lint is qkit.linting.lint


class ByTheBatch(nn.Module):
    """A convolution of every image with kernels of its own: a group an image."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Linear(3, 27)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.kernels(x.mean((2, 3))).reshape(-1, 3, 3, 3)
        return nn.functional.conv2d(x.reshape(1, -1, 16, 16), kernels, groups=x.shape[0]).reshape(x.shape[0], -1)


def test_groups_by_the_size_of_the_batch() -> None:
    assert qkit.lint(ByTheBatch().eval(), X).of("float-layer")


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class LastFrame(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.last is None else x + self.last
        self.last = x
        return y


class Lowered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.conv(x)
        return y.float()


def test_autocast_inside_is_called_by_its_name() -> None:
    result = qkit.lint(Lowered().eval(), X)
    (found,) = result.of("different-result")
    assert "autocast" in found.message
    assert any("autocast" in remark for remark in result.remarks)


def test_noise_and_memory_are_told_apart() -> None:
    (noise,) = qkit.lint(Noisy().eval(), X).of("different-result")
    assert "random numbers" in noise.message
    (memory,) = qkit.lint(LastFrame().eval(), X).of("buffer-changed-in-forward")
    assert memory.severity == "warning"
    assert "last" in memory.message


class Registers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.register_buffer("mean", x.mean((0, 2, 3)), persistent=False)
        return x - self.mean.view(1, -1, 1, 1)


def test_only_the_models_own_lines_are_blamed() -> None:
    result = qkit.lint(Registers().eval(), X)
    _, first = inspect.getsourcelines(Registers)
    assert {finding.line for finding in result if finding.line is not None} <= set(range(first, first + 4))
