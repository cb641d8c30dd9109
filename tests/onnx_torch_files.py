"""Files that torch.onnx.export writes, quietly."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import torch
from torch import nn


def exported_file(model: nn.Module, shape: tuple[int, ...], path: Path, *, opset: int = 17, dynamo: bool = False) -> Path:
    """The network as an ONNX file with an open batch, by either of torch's exporters."""
    example = (torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)),)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        if dynamo:
            batch = ({0: torch.export.Dim.DYNAMIC},)
            torch.onnx.export(model.eval(), example, path, dynamo=True, dynamic_shapes=batch, opset_version=opset, verbose=False)
        else:
            how = {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch"}}, "opset_version": opset}
            torch.onnx.export(model.eval(), example, path, dynamo=False, **how)
    return path
