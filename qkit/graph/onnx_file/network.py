"""What reading an ONNX file gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


@dataclass(frozen=True, eq=False)
class OnnxGrid:
    """The integer grid of one tensor, as the file has it: ``(code - zero_point) * scale``.

    `scale` (float32) and `zero_point` (int64) are 0-d arrays, or 1-d ones along `axis`, which counts as in the file.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    bits: int
    signed: bool
    axis: int | None = None

    @property
    def least(self) -> float:
        """The least number of a grid with one scale."""
        return -(2.0 ** (self.bits - 1) * self.signed + float(self.zero_point)) * float(self.scale)

    @property
    def greatest(self) -> float:
        """The greatest number of a grid with one scale."""
        return self.least + (2.0**self.bits - 1) * float(self.scale)

    def same(self, other: OnnxGrid) -> bool:
        """Whether both have the same codes for the same numbers."""
        return (self.bits, self.signed, self.axis) == (other.bits, other.signed, other.axis) and (
            np.array_equal(self.scale, other.scale) and np.array_equal(self.zero_point, other.zero_point)
        )


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """An ONNX file as a module in float32, and what its parts are called in the file.

    A file with Q/DQ nodes or quantized operators gives the float network, with the grids beside it.
    """

    module: nn.Module
    """Takes the inputs in the file's order (initializers are not inputs); returns a tensor, or a dict of several by name."""
    inputs: Mapping[str, tuple[int | None, ...]]
    """Shape by name; None where the batch is open."""
    dtypes: Mapping[str, torch.dtype]
    """What the module takes: float32 where the file has another floating-point type."""
    outputs: tuple[str, ...]
    names: Mapping[str, str]
    """Path of a submodule: name of its node's first output tensor in the file."""
    tensors: Mapping[str, str]
    """Path of a parameter or buffer: name of its initializer, or of the tensor that was computed beforehand."""
    grids: Mapping[str, OnnxGrid]
    """Name of a tensor in the file: its grid. An activation has the name of the float tensor, not of its codes."""
    opset: int
    permutations: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Path of a parameter whose axes have another order: axis i is axis ``permutations[path][i]`` in the file."""
    cast: Mapping[str, str] = field(default_factory=dict)
    """Initializers and inputs of another floating-point type (float16, say) that are float32 here: name, ONNX's type."""

    rectified: Mapping[str, str] = field(default_factory=dict)
    """Tensors behind a ReLU that the file does not have, since a grid from 0 on does its work: name, which ReLU it is read as."""
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Name of a tensor in the file: the node that makes it, such as "Conv node 'conv1'"."""

    def grid_of(self, path: str) -> OnnxGrid | None:
        """The grid of a parameter or buffer, its axis as in the module; None if the file has none."""
        grid = self.grids.get(self.tensors.get(path, ""))
        order = self.permutations.get(path)
        if grid is None or grid.axis is None or order is None:
            return grid
        return OnnxGrid(grid.scale, grid.zero_point, grid.bits, grid.signed, order.index(grid.axis))
