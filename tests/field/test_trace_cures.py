"""Ways in which a forward of detection and segmentation code bases is written or wrapped, and what people are told of it.

A forward with arguments that the batch leaves out runs as it stands; wrappers are taken off; what no float analysis can take is
refused with its cure. Nothing is blamed that is not the cause.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import qkit
from qkit.errors import GraphError, QkitError

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = [(X, torch.zeros(4, dtype=torch.long))]
TRACING = {"assert", "data-dependent-control-flow", "untraceable-call", "item-assignment", "data-dependent-shape"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


class Flag(Net):
    def forward(self, img: Tensor, return_loss: bool = False, **kwargs: Tensor) -> Tensor:
        return super().forward(img).sum() if return_loss else super().forward(img)


class Optional(Net):
    def forward(self, img: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(img if mask is None else img * mask)


class Star(Net):
    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(inputs[0])


class Keyword(Net):
    def forward(self, pixel_values: Tensor, *, labels: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        logits = super().forward(pixel_values * scale)
        return {"logits": logits} if labels is None else {"logits": logits, "loss": logits.sum()}


class Guard(Net):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError("three channels")
        assert x.ndim == 4, "images"
        return super().forward(x)


class Padded(Net):
    """Pads to a multiple, as segmentation code does."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = int(x.shape[-2]), int(x.shape[-1])
        rest = (-height) % 32, (-width) % 32
        return super().forward(nn.functional.pad(x, (0, rest[1], 0, rest[0])) if any(rest) else x)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


TAKEN: dict[str, Callable[[], nn.Module]] = {
    "flag": Flag, "optional": Optional, "star": Star, "keyword": Keyword, "guard": Guard, "padded": Padded,
    "parallel": lambda: nn.DataParallel(Net()), "compiled": lambda: compiled(Net()),
    "both": lambda: compiled(nn.DataParallel(Guard())), "averaged": lambda: torch.optim.swa_utils.AveragedModel(Net()),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_what_runs_is_taken_as_it_stands(name: str) -> None:
    model = TAKEN[name]().eval()
    found = qkit.lint(model, X)
    assert found.ok, str(found)
    assert found.front == "export"
    assert not [f for f in found.warnings if f.rule in TRACING], str(found)
    graph = qkit.Study(model, DATA, metric="agreement").graph
    assert graph.deviation < 1e-5
    assert {"conv.weight", "fc.weight"} <= set(graph.weights)


@pytest.mark.parametrize("name", ["parallel", "compiled", "averaged"])
def test_wrappers_are_said(name: str) -> None:
    assert any("Net" in remark for remark in qkit.lint(TAKEN[name]().eval(), X).remarks)


def prepared() -> nn.Module:
    return prepare_fx(Net().eval(), get_default_qconfig_mapping("x86"), (X,))


def converted() -> nn.Module:
    ready = prepared()
    ready(X)
    return convert_fx(ready)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "prepared": (prepared, "float model"),
    "converted": (converted, "float model"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "run one batch"),
    "traced": (lambda: torch.jit.trace(Net().eval(), X), "made from"),
    "scripted": (lambda: torch.jit.script(Net().eval()), "made from"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_analysed_is_refused_with_its_cure_by_both(name: str) -> None:
    make, cure = REFUSED[name]
    model = make().eval()
    for call in (lambda: qkit.lint(model, X), lambda: qkit.Study(model, DATA, metric="agreement")):
        with pytest.raises(GraphError) as refused:
            call()
        assert cure in str(refused.value)


class Confident(Net):
    """Decides by its own numbers; everything in front of that is harmless."""

    def forward(self, x: Tensor, threshold: float = 0.5) -> Tensor:
        assert x.shape[1] == 3
        scores = super().forward(x).softmax(1)
        if scores.max() < threshold:
            return torch.zeros_like(scores)
        return scores


class Kept(Net):
    """Post-processing: boxes above a threshold."""

    def forward(self, x: Tensor) -> Tensor:
        scores = super().forward(x)
        return scores[scores > 0]


@pytest.mark.parametrize(("kind", "rule", "mark"), [
    (Confident, "data-dependent-control-flow", "if scores.max()"), (Kept, "data-dependent-shape", "scores > 0"),
])  # fmt: skip
def test_the_only_error_is_the_true_cause(kind: type[nn.Module], rule: str, mark: str) -> None:
    found = qkit.lint(kind(), X)
    (error,) = found.errors
    assert error.rule == rule
    assert error.file == __file__
    assert error.line is not None
    assert mark in linecache.getline(__file__, error.line)
    with pytest.raises(QkitError):
        qkit.Study(kind(), DATA, metric="agreement")
