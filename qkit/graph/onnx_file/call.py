"""A node of the file as the operations' functions see it: attributes, inputs, shapes; every refusal names the node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.errors import GraphError
from qkit.graph.onnx_file.sizes import Dimension, fit
from qkit.graph.onnx_file.values import TorchCall, Value, constant


class Call:
    """One node. `outputs` are its outputs' names, "" for those that nothing reads; `written` is how many the file gives it."""

    def __init__(
        self,
        operator: str,
        label: str,
        attributes: Mapping[str, Any],
        inputs: Sequence[Value | None],
        outputs: Sequence[str],
        *,
        opset: int,
        batches: Sequence[int],
        written: int = 1,
    ) -> None:
        self.operator = operator
        self.label = label
        self.attributes = attributes
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.opset = opset
        self.batches = tuple(batches)
        self.written = written

    def refuse(self, reason: str) -> GraphError:
        """The error to raise, with the node's name in front of the reason."""
        return GraphError(f"{self.label}: {reason}")

    # attributes

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute: int, float, str, a list of these, or a torch tensor."""
        return self.attributes.get(name, default)

    def needed(self, name: str) -> Any:
        """An attribute without which the node means nothing."""
        if name not in self.attributes:
            raise self.refuse(f"the attribute {name!r} is missing. The file is damaged.")
        return self.attributes[name]

    def only(self, **allowed: Any) -> None:
        """Refuse the node if one of these attributes has another value than the given one."""
        for name, value in allowed.items():
            if name in self.attributes and self.attributes[name] != value:
                raise self.refuse(f"{name}={self.attributes[name]!r} is not supported, only {value!r}.")

    def only_first_output(self, *, allowed: int = 1) -> None:
        """Refuse the node if outputs beyond the first `allowed` are read."""
        extra = [name for name in self.outputs[allowed:] if name]
        if extra:
            raise self.refuse(f"its output {extra[0]!r} is read, and only the first {allowed} can be computed.")

    # inputs

    def has(self, index: int) -> bool:
        """Whether the node has that input."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def get(self, index: int) -> Value | None:
        """That input; None if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def value(self, index: int) -> Value:
        """That input, which must be there."""
        value = self.get(index)
        if value is None:
            raise self.refuse(f"input {index} is missing. The file is damaged.")
        return value

    def weight(self, index: int) -> Value | None:
        """That input as a weight: a parameter of the module if it is a constant."""
        value = self.get(index)
        return None if value is None else as_weight(value)

    def shape(self, index: int) -> tuple[Dimension, ...]:
        """Shape of that input."""
        return self.shape_of(self.value(index))

    def shape_of(self, value: Value) -> tuple[Dimension, ...]:
        """Shape of a value; sizes that grow with the batch are `Size`."""
        shapes = [tuple(value.at(i).shape) for i in range(len(self.batches))]
        if len({len(shape) for shape in shapes}) != 1:
            raise self.refuse(f"the rank of {value.name!r} depends on the batch.")
        return self.dimensions(shapes, f"the shape of {value.name!r}")

    def static(self, index: int, axis: int) -> int:
        """Size of that input along an axis, which must not depend on the batch."""
        size = self.shape(index)[axis]
        if not isinstance(size, int):
            raise self.refuse(f"axis {axis} is the batch there, which this operation would mix.")
        return size

    def rank(self, index: int) -> int:
        """Number of dimensions of that input."""
        return self.value(index).at(0).ndim

    def axis(self, index: int, axis: int) -> int:
        """A possibly negative axis of that input as a position from the left."""
        rank = self.rank(index)
        if not -rank <= axis < max(rank, 1):
            raise self.refuse(f"axis {axis} does not exist in a tensor of {rank} dimensions.")
        return axis % rank if rank else 0

    def dtype(self, index: int) -> torch.dtype:
        """Type that the module computes that input in."""
        value = self.value(index)
        dtype = value.at(0).dtype
        return torch.float32 if dtype.is_floating_point and not value.known else dtype

    def dimensions(self, shapes: Sequence[Sequence[int]], what: str) -> tuple[Dimension, ...]:
        """Lists of numbers, one a batch, as one list of numbers and `Size`."""
        fitted = tuple(fit(numbers, self.batches) for numbers in zip(*shapes, strict=True))
        if any(dimension is None for dimension in fitted):
            raise self.refuse(
                f"{what} depends on the batch in a way that is not a multiple of it plus a constant: {list(shapes)}."
            )
        return fitted  # type: ignore[return-value]

    def tensors(self, index: int, what: str) -> list[Tensor]:
        """Values of an input that must be known beforehand, one a batch."""
        value = self.value(index)
        if not value.known:
            raise self.refuse(
                f"its {what} ({value.name!r}) is computed from the inputs' data, and must be known beforehand. Cut the file in "
                "front of this node (onnx.utils.extract_model)."
            )
        return [value.at(i) for i in range(len(self.batches))]

    def integers(self, index: int, what: str) -> list[Dimension]:
        """Whole numbers of an input that must be known beforehand, but for the batch."""
        rows = [[int(number) for number in tensor.reshape(-1).tolist()] for tensor in self.tensors(index, what)]
        if len({len(row) for row in rows}) != 1:
            raise self.refuse(f"the number of its {what} depends on the batch.")
        return list(self.dimensions(rows, f"its {what}"))

    def numbers(self, index: int, what: str) -> list[int]:
        """Whole numbers that do not depend on the batch."""
        found = self.integers(index, what)
        if any(not isinstance(number, int) for number in found):
            raise self.refuse(f"its {what} depends on the batch.")
        return found  # type: ignore[return-value]

    def array(self, index: int, what: str) -> Tensor:
        """The tensor of an input that must be known beforehand, the same at every batch."""
        tensors = self.tensors(index, what)
        if not self.value(index).constant:
            raise self.refuse(f"its {what} depends on the batch.")
        return tensors[0]

    def scalar(self, index: int, what: str) -> float:
        """The one number of an input that must be known beforehand."""
        tensor = self.array(index, what)
        if tensor.numel() != 1:
            raise self.refuse(f"its {what} has {tensor.numel()} numbers, and one is needed.")
        return tensor.item()

    # results

    def torch(self, function: Callable[..., Any], /, *operands: Value | None, **settings: Any) -> TorchCall:
        """A call of a torch function."""
        return TorchCall(function, operands, settings)

    def made(self, tensor: Tensor, purpose: str) -> Value:
        """A constant that the file does not have itself (an index, an interpolation matrix), named after this node."""
        return constant(f"{next((name for name in self.outputs if name), self.operator)}:{purpose}", tensor)

    def known(self, tensors: Sequence[Tensor]) -> Value:
        """A value that is known at every batch, as the first output."""
        same = all(torch.equal(tensor, tensors[0]) for tensor in tensors)
        return Value(self.outputs[0], tuple(tensors[:1] if same else tensors), known=True)


def as_weight(value: Value) -> Value:
    """The value, noted as a weight."""
    value.weight = True
    return value


def to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The numbers of a tensor as an array of numpy's."""
    return tensor.detach().cpu().numpy()
