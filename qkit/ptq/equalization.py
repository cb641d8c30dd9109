"""Cross-layer equalization: a float-equivalent model whose layers' channels have even ranges.

With one scale for a whole weight, a channel whose weights are small beside the widest channel's gets few codes. Dividing
channel c of a layer by s_c and multiplying what the next layer makes of that channel by s_c changes no float result as long as
what lies between commutes with positive factors, and with ::

    s_c = sqrt(r1_c * r2_c) / r2_c

both layers' ranges of that channel, r1_c and r2_c, become the same (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1). Done over all pairs again and again it settles where every layer's output
ranges equal its reader's input ranges; with a depthwise layer between two others, that is where all three agree at the cube
root of their product.

Which tensors have to be scaled alike is found by `qkit.ptq.channels`; where a join ties several layers together, r1 is the
greatest range of those that write a channel, r2 of those that read it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from qkit.errors import DataError, GraphError
from qkit.execution.lanes import Lane, run_lanes
from qkit.graph import Graph, build, deviation, run_float
from qkit.graph.operation import Operation
from qkit.ptq.balance import Pair, Solver, grouped, ungrouped
from qkit.ptq.channels import Channels

#: Sweeps over all pairs, at most, and the relative change of a factor below which they end.
ITERATIONS = 500
TOLERANCE = 1e-4
#: Factors are kept within 1/LIMIT and LIMIT. Training leaves channels that are as good as dead; evening out their weights
#: would blow up their biases, and with them the range of the tensor.
LIMIT = 1e4
#: The new model's float output may differ by this much, relative to its greatest magnitude.
DEVIATION = 1e-5


@dataclass(frozen=True, eq=False)
class Equalized:
    """The answer of :func:`equalize`.

    Attributes
    ----------
    model
        A copy of the model with rescaled weights.
    factors
        By tap, what its channels were divided by, float64 (C,).
    skipped
        By tap, why a layer's output channels (or some of them) were left as they are.
    pairs
        What was evened out against what.
    notes
        Other changes of the model.
    converged
        Whether the factors had settled when the sweeps ended.
    deviation
        Greatest difference of the float output from the model's, relative to its greatest magnitude.
    """

    model: nn.Module
    factors: Mapping[str, np.ndarray]
    skipped: Mapping[str, str]
    pairs: tuple[Pair, ...] = ()
    notes: tuple[str, ...] = ()
    converged: bool = True
    deviation: float = 0.0

    def table(self) -> pd.DataFrame:
        """A row per pair: its layers, how many channels, the factors' extremes, the spread of channel ranges before and after."""
        rows = [
            {
                "pair": pair.name,
                "writers": ", ".join(pair.writers),
                "readers": ", ".join(pair.readers),
                "channels": len(pair.factors),
                "least factor": pair.factors.min(),
                "greatest factor": pair.factors.max(),
                **{
                    f"{side} {when}": getattr(pair, when)[i]
                    for i, side in enumerate(("rows", "columns"))
                    for when in ("before", "after")
                },
            }
            for pair in self.pairs
        ]
        columns = ["pair", "writers", "readers", "channels", "least factor", "greatest factor"]
        columns += [f"{side} {when}" for side in ("rows", "columns") for when in ("before", "after")]
        return pd.DataFrame(rows, columns=columns).set_index("pair")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers; without the model."""
        return {
            "model": type(self.model).__name__,
            "pairs": [pair.to_dict() for pair in self.pairs],
            "factors": {name: values.tolist() for name, values in self.factors.items()},
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
            "converged": self.converged,
            "deviation": self.deviation,
        }

    def __repr__(self) -> str:
        settled = "" if self.converged else ", not converged"
        lines = [
            f"Equalized({type(self.model).__name__}: {len(self.factors)} layers in {len(self.pairs)} pairs, "
            f"{len(self.skipped)} skipped, deviation {self.deviation:.1e}{settled})"
        ]
        return "\n".join([*lines, *(f"  {name}: {why}" for name, why in self.skipped.items()), *(f"  {n}" for n in self.notes)])

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(repr(self))}</pre>{self.table().to_html()}"


def equalize(
    model: nn.Module,
    graph: Graph,
    *,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
    limit: float = LIMIT,
    joins: bool = True,
    example: Tensor | tuple[Any, ...] | None = None,
) -> Equalized:
    """A copy of the model in which the channel ranges of neighbouring layers are evened out.

    The float output stays; it is verified. Batch norms stay unfolded: their weight and bias take the factors, their statistics
    remain right, so that training can go on from the result.

    Parameters
    ----------
    model, graph
        The model, and its own graph (`study.model`, `study.graph`).
    iterations, tolerance
        Sweeps over all pairs end when no factor changes by more than this share, or after so many.
    limit
        Factors stay within 1/limit and limit.
    joins
        Scale everything that an add or a concatenation ties together alike; without it such layers are skipped.
    example
        A batch to verify with; random numbers of the shapes that the graph was built with by default.

    Raises
    ------
    GraphError
        If the new model's output differs (names the pair), or the graph is of another model.
    DataError
        If the model takes inputs that are no floating tensors and there is no `example`.
    """
    inputs = example_inputs(graph, example)
    channels = Channels(model, graph, joins=joins)
    solver = Solver(graph, channels, limit)
    converged = solver.solve(iterations, tolerance)
    copied, notes = copy.deepcopy(model), []
    by_path = dict(copied.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for layer in solver.layers:
            notes += rescale(by_path, layer.op, solver.factors(layer.reads), solver.factors(layer.writes))
    deviated = _verify(copied, graph, inputs, channels, solver)
    factors = {layer.op.name: solver.factors(layer.writes) for layer in solver.layers if solver.takes_part(layer)}
    return Equalized(copied, factors, solver.skipped(), solver.pairs(), tuple(notes), converged, deviated)


def rescale(modules: Mapping[str, nn.Module], op: Operation, reads: np.ndarray, writes: np.ndarray) -> list[str]:
    """Multiply a layer's columns by `reads`, divide its rows (or its batch norm) by `writes`; returns what else was changed."""
    module: Any = modules[op.layer]
    notes: list[str] = []
    columns, rows = (torch.from_numpy(f).to(module.weight.device) for f in (reads, writes))
    weight = grouped(module.weight.double(), module)
    if (reads != 1.0).any():
        weight = weight * columns.view(weight.shape[0], 1, -1, 1)
    if op.norm is None:
        weight = weight / rows.view(weight.shape[0], -1, 1, 1)
    module.weight.copy_(ungrouped(weight, module))
    if (writes == 1.0).all():
        return notes
    if op.norm is None:
        if module.bias is not None:
            module.bias.div_(rows)
        return notes
    norm: Any = modules[op.norm]
    if make_affine(norm):
        notes.append(f"{op.norm} was given a weight and a bias, to hold the factors")
    norm.weight.div_(rows)
    norm.bias.div_(rows)
    return notes


def make_affine(norm: Any) -> bool:
    """Give a batch norm a weight of one and a bias of zero if it has none; whether it had none."""
    if norm.weight is not None:
        return False
    norm.weight = nn.Parameter(torch.ones_like(norm.running_mean))
    norm.bias = nn.Parameter(torch.zeros_like(norm.running_mean))
    norm.affine = True
    return True


def example_inputs(graph: Graph, example: Tensor | tuple[Any, ...] | None) -> tuple[Any, ...]:
    if example is not None:
        return example if isinstance(example, tuple) else (example,)
    draw = torch.Generator().manual_seed(0)
    given = sorted((op for op in graph.operations if op.argument is not None), key=lambda op: op.argument or 0)
    if any(op.kind != "input" for op in given) or [op.argument for op in given] != list(range(len(given))):
        raise DataError(f"{graph.model_name} takes inputs that are no floating tensors: pass a batch as example=.")
    return tuple(torch.randn(op.shape, generator=draw).to(graph.device) for op in given)


def _verify(
    copied: nn.Module, graph: Graph, inputs: tuple[Any, ...], channels: Channels, solver: Solver,
) -> float:  # fmt: skip
    new = build(copied, inputs, device=graph.device, leaf_modules=graph.leaf_modules)
    if [op.name for op in new.operations] != [op.name for op in graph.operations]:
        raise GraphError(f"the graph is not of this {graph.model_name}: build it from the model, with the same leaf_modules.")
    found = deviation(run_float(new, inputs), run_float(graph, inputs))
    if found <= DEVIATION:
        return found
    where = _first_deviation(new, graph, inputs, channels, solver)
    raise GraphError(
        f"equalizing {where} changes the output of {graph.model_name} by {found:.1e} relative, more than {DEVIATION:g}: the "
        "graph is not of this model as it is now, or something between these layers depends on values that no trace shows. "
        "Build the graph anew; if that does not help, freeze the layers (requires_grad_(False)) to have them skipped."
    )


def _first_deviation(new: Graph, graph: Graph, inputs: tuple[Any, ...], channels: Channels, solver: Solver) -> str:
    """The pair around the first tap whose values are not those of the other graph by its factors; the worst place to stop."""
    values: dict[str, Tensor] = {}
    run_lanes(graph, [Lane("float")], inputs, observe=lambda op, seen: values.update({op.name: seen["float"].clone()}))
    found: list[str] = []

    def compare(op: Operation, seen: Mapping[str, Tensor]) -> None:
        labels = channels.taps[op.index]
        shape = [1] * len(op.shape)
        shape[labels.axis] = -1
        factors = torch.from_numpy(solver.factors(labels.ids)).view(shape).to(graph.device)
        if deviation(seen["float"] * factors, values[op.name]) > DEVIATION:
            found.append(solver.pair_of(labels.ids) or f"what is read by {op.name}")

    run_lanes(new, [Lane("float")], inputs, observe=compare)
    return found[0] if found else "the network"
