"""The module that runs a file's nodes: one submodule a node, each a torch function with its settings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qkit.graph.onnx_file.sizes import at_batch, depends_on_batch


class Node(nn.Module):
    """One node of the file: a torch function, and the settings that it is called with."""

    def __init__(self, operator: str, function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.operator = operator
        self.function = function
        self.settings = dict(settings)
        self.open = any(depends_on_batch(setting) for setting in self.settings.values())

    def forward(self, *tensors: Tensor | None, batch: int = 1) -> Any:
        """Call the function; sizes that depend on the batch are those at `batch`."""
        settings = {name: at_batch(value, batch) for name, value in self.settings.items()} if self.open else self.settings
        return self.function(*tensors, **settings)

    def extra_repr(self) -> str:
        """Operator and settings."""
        return ", ".join((self.operator, *(f"{name}={value}" for name, value in self.settings.items())))


@dataclass(frozen=True)
class Line:
    """One call of the program: `reads` are slots, paths of parameters and buffers, or None for what is left out."""

    node: str
    reads: tuple[int | str | None, ...]
    writes: tuple[int, ...]
    frees: tuple[int, ...]


class OnnxModule(nn.Module):
    """Runs the nodes in the file's order. Made by `onnx_module`, which gives `forward` the names of the file's inputs.

    `sources` names the outputs: slots, or paths where an output is a constant. `batch_of` is the slot of the input whose
    first dimension is the batch; None where no shape depends on it.
    """

    nodes: nn.ModuleDict

    def __init__(self, arguments: tuple[str, ...]) -> None:
        super().__init__()
        self.arguments = arguments
        self.nodes = nn.ModuleDict()
        self.program: tuple[Line, ...] = ()
        self.sources: tuple[tuple[str, int | str], ...] = ()
        self.batch_of: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """The class depends on the inputs' names, so a copy or a pickle is made from these and the state."""
        return onnx_module, (self.arguments,), dict(self.__dict__)

    def run(self, inputs: Sequence[Tensor]) -> Tensor | dict[str, Tensor]:
        """The outputs for inputs in the file's order."""
        values: dict[int, Tensor] = dict(enumerate(inputs))
        batch = 1 if self.batch_of is None else inputs[self.batch_of].shape[0]
        for line in self.program:
            operands = [self._read(values, source) for source in line.reads]
            made = self.nodes[line.node](*operands, batch=batch)
            values.update(zip(line.writes, made if isinstance(made, (tuple, list)) else (made,), strict=False))
            for slot in line.frees:
                del values[slot]
        outputs = {name: self._read(values, source) for name, source in self.sources}
        return next(iter(outputs.values())) if len(outputs) == 1 else outputs  # type: ignore[return-value]

    def _read(self, values: Mapping[int, Tensor], source: int | str | None) -> Tensor | None:
        if isinstance(source, str):
            return getattr(self, source)  # type: ignore[no-any-return]
        return None if source is None else values[source]


def onnx_module(arguments: tuple[str, ...]) -> OnnxModule:
    """An empty `OnnxModule` whose `forward` takes these arguments.

    `torch.export` and users' dicts of inputs go by the names in the signature, so every tuple of names has its own.
    """

    def forward(self: OnnxModule, *inputs: Tensor, **named: Tensor) -> Tensor | dict[str, Tensor]:
        bound = signature.bind(self, *inputs, **named).arguments
        return self.run([bound[name] for name in arguments])

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *arguments)])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    return type("OnnxModule", (OnnxModule,), {"forward": forward, "__doc__": OnnxModule.__doc__})(arguments)  # type: ignore[no-any-return]
