"""Writing a plan as an ONNX file with Q/DQ nodes: what ONNX Runtime runs with integer kernels.

The file is made from the kit's own operations, so that every tap is a named tensor in it, and it carries the plan and the way
from taps to tensors in its metadata: `qkit.engines.onnx.lane` reads both back.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from qkit import files
from qkit.engines.onnx.file_program import Program, flattened, marked_model, require
from qkit.engines.onnx.file_program import example_inputs as zeros
from qkit.engines.onnx.qdq import Rewriter, Stored, simplify, strip
from qkit.errors import PlanError, QkitError
from qkit.graph import Graph, run_float
from qkit.graph.running import place_inputs
from qkit.quant.plan import Plan

if TYPE_CHECKING:
    from qkit.study import Study

#: Models with markers, and a note, by what is in them.
Programs = dict[Hashable, tuple[Any, "str | None"]]

#: Version of the metadata, and the prefix of its keys.
FORMAT, PREFIX = 1, "qkit."
#: Opsets before these are not what torch exports, and have no 16-bit integers in Q/DQ.
EARLIEST, SIXTEEN_BITS_FROM = 18, 21


@dataclass(frozen=True, eq=False)
class Exported:
    """What was written.

    Attributes
    ----------
    path
        Of the file.
    plan
        That it holds.
    taps
        By tap name, where it is in the file.
    notes
        What stayed float or differs from the plan.
    opset
        Of the standard operators.
    size
        Bytes.
    """

    path: Path
    plan: Plan
    taps: Mapping[str, Stored]
    notes: tuple[str, ...]
    opset: int
    size: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        taps = {name: stored.to_dict() for name, stored in self.taps.items()}
        return {"path": str(self.path), "plan": self.plan.name, "opset": self.opset, "size": self.size, "taps": taps,
                "notes": list(self.notes)}  # fmt: skip

    def __repr__(self) -> str:
        integers = sum(stored.integer for stored in self.taps.values())
        text = f"Exported({self.path.name}: plan {self.plan.name!r}, {integers} of {len(self.taps)} taps in integers, "
        return text + f"opset {self.opset}, {self.size / 1024:.0f} KiB{''.join(f'; {note}' for note in self.notes)})"


def export(
    study: Study | Graph,
    plan: Plan | None,
    path: str | Path,
    *,
    opset: int = 21,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    guard_biases: bool = True,
    programs: Programs | None = None,
) -> Exported:
    """Write the network under a plan as ONNX with Q/DQ nodes, checked by ONNX's own checker.

    Activations are uint8 or uint16 whose codes start at 0 (the same real values as the plan's grids), weights int8 or int16 with
    one scale per channel or per tensor, biases int32 where they fit. Tensors without a grid stay float. The batch size is
    left open.

    Parameters
    ----------
    study
        What to export; or its graph.
    plan
        Grids; the study's current plan if None. `qkit.FLOAT` writes the folded float network.
    path
        The file, ``.onnx``. It is there as a whole or not at all; nothing else is written.
    opset
        Of the standard operators, from 18 on; 16-bit grids need 21.
    example_inputs
        One batch, where the model takes more than float tensors.
    guard_biases
        Write biases of 16-bit layers that do not fit 32 bits in a form that ONNX Runtime's optimizer does not spoil. False
        leaves them float, as other exporters do.
    programs
        For exports of several plans: torch's part of them, which takes most of the time. Pass the same empty dict to each; a
        plan that clamps and corrects as one before it takes its part over.

    Raises
    ------
    MissingExtra
        Without the extra ``onnx``.
    PlanError
        If the plan is not of this network, or has grids that ONNX cannot carry (activations per channel, weights' grids narrower
        than the opset allows).
    GraphError
        If torch cannot export an operation.
    QkitError
        If the path is no file that can be written, or the model is over the 2 GiB that an ONNX file holds.
    """
    require("onnx", "onnxscript")
    graph, plan = _subject(study, plan)
    target = _check_path(path)
    if opset < EARLIEST:
        raise QkitError(f"opset={opset}: files are written from opset {EARLIEST} on, 16-bit grids from {SIXTEEN_BITS_FROM} on.")
    _check_plan(graph, plan, opset)
    given = zeros(graph) if example_inputs is None else example_inputs
    inputs = given if isinstance(given, tuple) else (given,)
    inputs = place_inputs(graph, inputs)
    program = Program(graph, plan)
    model, note = _marked(program, inputs, opset, programs)
    version = next((entry.version for entry in model.opset_import if not entry.domain), None)
    if version != opset:
        raise QkitError(f"torch wrote opset {version} where {opset} was asked for: take that one.")
    simplify(model)
    rewriter = Rewriter(graph, plan, guard_biases)
    rewriter.rewrite(model)
    strip(model)
    notes = tuple(filter(None, (*rewriter.notes, *_not_carried(graph, plan), note)))
    _finish(model, graph, plan, rewriter.taps, notes, flattened(run_float(graph, inputs), []), opset)
    data = _checked(model, graph)
    files.write_bytes(target, data)
    return Exported(target, plan, rewriter.taps, notes, opset, len(data))


def _marked(program: Program, inputs: tuple[Any, ...], opset: int, programs: Programs | None) -> tuple[Any, str | None]:
    """A model with markers to write into."""
    if programs is None:
        return marked_model(program, inputs, opset)
    key = program.key, opset
    if key not in programs:
        programs[key] = marked_model(program, inputs, opset)
    model, note = programs[key]
    return copy.deepcopy(model), note


def _subject(study: Study | Graph, plan: Plan | None) -> tuple[Graph, Plan]:
    if isinstance(study, Graph):
        if plan is None:
            raise PlanError("a graph has no plan of its own: pass one, or qkit.FLOAT for the float network.")
        return study, plan
    return study.graph, study.plan if plan is None else plan


def _check_path(path: str | Path) -> Path:
    target = Path(path)
    if target.suffix.lower() != ".onnx":
        raise QkitError(f"{target.name!r} has to end in .onnx.")
    return files.prepare(target, parents=False)


def _check_plan(graph: Graph, plan: Plan, opset: int) -> None:
    plan.refuse_factors()
    known = {*graph.taps, *graph.weights}
    for name, grid in plan.grids.items():
        if name not in known:
            raise PlanError(f"the plan has a grid for {name!r}, which {graph.model_name} does not have: it is of another model.")
        if grid.params.bits > 8 and opset < SIXTEEN_BITS_FROM:
            raise PlanError(f"{name} has {grid.params.bits} bits, which ONNX has from opset {SIXTEEN_BITS_FROM} on, not {opset}.")


def _not_carried(graph: Graph, plan: Plan) -> list[str]:
    notes = []
    if plan.accumulator_bits is not None:
        notes.append(
            f"the plan's accumulators of {plan.accumulator_bits} bits are not carried: an engine's width is its own "
            "(32 bits in ONNX Runtime's integer kernels)"
        )
    if not plan.arithmetic.in_float:
        notes.append(
            "the integer forms of what has no weights are not carried: ONNX Runtime's kernels have their own, and compute in "
            "float between QuantizeLinear and DequantizeLinear where they have none"
        )
    floats = [op.name for op in graph.operations if op.kind == "float"]
    if floats and plan.grids:
        notes.append(
            f"{len(floats)} operations have no integer form and are float, as in the simulation: {', '.join(floats[:4])}"
        )
    return notes


def _finish(
    model: Any, graph: Graph, plan: Plan, taps: Mapping[str, Stored], notes: tuple[str, ...], structure: Any, opset: int
) -> None:
    from onnx import helper

    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", opset)])
    model.ir_version = 10 if opset >= SIXTEEN_BITS_FROM else 8
    model.producer_name, model.producer_version, model.graph.name = "qkit", "", graph.model_name
    contents = {
        "format": FORMAT,
        "plan": plan.to_dict(),
        "taps": {name: stored.to_dict() for name, stored in taps.items()},
        "outputs": structure,
        "notes": list(notes),
    }
    helper.set_model_props(model, {PREFIX + key: json.dumps(value) for key, value in contents.items()})


def _checked(model: Any, graph: Graph) -> bytes:
    import onnx

    try:
        data: bytes = model.SerializeToString()
    except ValueError as error:
        raise QkitError(f"{graph.model_name} is over the 2 GiB that one ONNX file holds: {error}") from error
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise QkitError(f"the ONNX file of {graph.model_name} does not pass ONNX's checker: {error}") from error
    return data
