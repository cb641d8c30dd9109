"""From a study or a model to a network that can be trained on its grids."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qkit.diagnosis.answer import Diagnosis
from qkit.epochs import check_epochs
from qkit.errors import DataError, PlanError, QkitError
from qkit.execution.loading import batches
from qkit.graph import Graph, assemble
from qkit.graph.door.arrival import arrive
from qkit.graph.operation import Operation
from qkit.qat.qat_module import Build, Origin, QatModule, Schedule
from qkit.qat.qat_program import compile_program
from qkit.qat.quantizers import Quantizer, TapQuantizer, WeightQuantizer
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.plan import Grid, Plan
from qkit.quant.schemes import Scheme, scheme_of
from qkit.study import Study

logger = logging.getLogger(__name__)


def wrap(
    study_or_model: Study | nn.Module,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    *,
    total_epochs: int,
    scheme: str | Scheme | None = None,
    plan: Plan | None = None,
    learn_steps: bool = False,
    freeze_norms_at: int | None = None,
    freeze_ranges_at: int | None = None,
    diagnosis: Diagnosis | None = None,
    anyway: bool = False,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
) -> QatModule:
    """A copy of the model that computes as its int8 lane does and can be trained: put it into your own training loop.

    What the diagnosis says about the need of it is said first, as a warning, and kept as ``module.need``.

    Parameters
    ----------
    study_or_model
        A calibrated `qkit.Study`, whose plan is where the grids start and whose data the trained network is judged on
        afterwards; or a model alone, in float32: then nothing is diagnosed, and activations' grids start with the first training
        batch.
    example_inputs
        With a model alone: one batch, from which shapes are taken.
    total_epochs
        Epochs that the training will have; the schedule goes by it.
    scheme
        With a model alone: a preset's name or a `Scheme`, "int8" by default.
    plan
        Grids to start from, other than the study's. Corrections of biases and codes chosen by adaptive rounding are not used.
    learn_steps
        Learn the steps of all grids by gradient (LSQ); zero points stay. Otherwise they follow the tensors' extremes.
    freeze_norms_at, freeze_ranges_at
        Epochs, from 0, from which on batch norms' statistics and grids stay as they are; by default one before half of the
        epochs and one after (TI's rule; learned steps are learned to the end).
    diagnosis
        Of the study, where it was made already; otherwise it is made now.
    anyway
        Train even if the diagnosis says that quantization is not what is wrong.
    leaf_modules
        With a model alone: module classes or paths to keep out of the trace, as of `qkit.Study`.

    Raises
    ------
    QkitError
        If the diagnosis finds that it is not quantization, or an argument makes no sense.
    GraphError, DataError, PlanError
        If the model cannot be traced or is not float32, or the plan is another network's.
    """
    schedule = _schedule(total_epochs, freeze_norms_at, freeze_ranges_at, learn_steps)
    if isinstance(study_or_model, Study):
        if scheme is not None or example_inputs is not None or leaf_modules:
            raise QkitError(
                "a study has its own scheme, data and leaf modules: use study.with_scheme(...), and leave example_inputs and "
                "leaf_modules out."
            )
        study = study_or_model
        need = _need(study, diagnosis, anyway)
        model, plan, leaf_modules = study.model, study.plan if plan is None else plan, study.graph.leaf_modules
        example_inputs = next(iter(batches(study.calibration))).inputs
        origin = Origin(study.calibration, study.evaluation, study.metric, study.scheme, study.expected)
    else:
        if example_inputs is None:
            raise DataError("a model alone needs example_inputs=, one batch from which shapes are taken; or pass a qkit.Study.")
        if diagnosis is not None:
            raise QkitError("a diagnosis belongs to a study: pass that study in place of the model.")
        model = study_or_model
        need = (
            "Nothing was diagnosed: whether quantization-aware training is needed is not known. Make a qkit.Study of the model "
            "with its data, read study.diagnose(), and wrap the study."
        )
        origin = Origin(scheme=scheme_of("int8" if scheme is None else scheme))
    logger.warning("%s", need)
    assembly = assemble(model, example_inputs, leaf_modules=leaf_modules)
    origin = replace(origin, leaf_modules=assembly.graph.leaf_modules)
    template = _template(assembly.graph, scheme_of(origin.scheme)) if plan is None else _checked(plan, assembly.graph)
    trained = copy.deepcopy(arrive(model).model)
    quantizers = _quantizers(assembly.graph, template, known=plan is not None, learned=learn_steps)
    axes = {name: quantizer.axis for name, quantizer in quantizers.items()}
    program = compile_program(assembly, axes, template)
    module = QatModule(Build(trained, program, quantizers, template, schedule, origin, need, assembly.graph.entry))
    module.quantizers.to(assembly.graph.device)
    return module


def _schedule(total_epochs: int, norms: int | None, ranges: int | None, learned: bool) -> Schedule:
    named = {"total_epochs": total_epochs, "freeze_norms_at": norms, "freeze_ranges_at": ranges}
    for name, value in named.items():
        if value is not None:
            check_epochs(name, value, 1 if name == "total_epochs" else 0)
    half = total_epochs // 2
    return Schedule(
        total_epochs,
        max(half - 1, 0) if norms is None else norms,
        (total_epochs if learned else half + 1) if ranges is None else ranges,
    )


def _need(study: Study, diagnosis: Diagnosis | None, anyway: bool) -> str:
    """What the diagnosis says about the need, or its refusal."""
    if diagnosis is None:
        diagnosis = study.diagnose()
    if not isinstance(diagnosis, Diagnosis):
        raise QkitError(f"diagnosis= is what study.diagnose() returned, not a {type(diagnosis).__name__}.")
    need = f"The diagnosis says {diagnosis.verdict} {diagnosis.qat}"
    if diagnosis.verdict.name == "not-quantization" and not anyway:
        causes = ", ".join(f"{c.kind} at {c.layer}" if c.layer else c.kind for c in diagnosis.causes[:3])
        found = f" It found {causes}." if causes else ""
        raise QkitError(
            f"{need}{found} Training on the grids cannot mend what is not quantization: mend that first, or pass anyway=True."
        )
    return need


def _checked(plan: Plan, graph: Graph) -> Plan:
    """The plan, if its tensors are the graph's; says what of it is not used."""
    known = {name for op in graph.operations for name in (op.weight, op.name if op.quantized else None) if name is not None}
    foreign = [name for name in plan.grids if name not in known]
    if foreign:
        raise PlanError(
            f"the plan has a grid for {foreign[0]!r}, which {graph.model_name} does not have: it is another network's."
        )
    chosen = [name for name, grid in plan.grids.items() if grid.codes is not None]
    if plan.corrections or chosen:
        what = [f"corrections of {len(plan.corrections)} layers' biases"] if plan.corrections else []
        what += [f"codes of {len(chosen)} weights that were chosen otherwise than by rounding to nearest"] if chosen else []
        logger.warning("The plan has %s, which training does not start from: it finds its own.", " and ".join(what))
    return plan


def _template(graph: Graph, scheme: Scheme) -> Plan:
    """The scheme's rules for every tensor, in the plan's order, with grids that are still to be observed."""
    unknown = QuantParams(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), 0, 1)
    grids: dict[str, Grid] = {}
    for op in graph.operations:
        if op.weight is not None and (spec := scheme.spec(op.weight, weight=True)) is not None:
            grids[op.weight] = Grid(spec, unknown, "qat", weight=True)
        if op.quantized and (spec := scheme.spec(op.name, weight=False)) is not None:
            grids[op.name] = Grid(spec, unknown, "qat")
    return Plan(grids, scheme.bias_bits, scheme.name, accumulator_bits=scheme.accumulator_bits, arithmetic=scheme.arithmetic)


def _quantizers(graph: Graph, template: Plan, *, known: bool, learned: bool) -> Mapping[str, Quantizer]:
    weights: dict[str, Operation] = {op.weight: op for op in graph.operations if op.weight is not None}
    taps = {op.name: op for op in graph.operations if op.quantized}
    found: dict[str, Quantizer] = {}
    for name, grid in template.grids.items():
        params = grid.params if known else None
        if grid.weight:
            tensor = graph.weights[name].cpu().clone()
            axis = weights[name].weight_axis
            found[name] = WeightQuantizer(name, grid.spec, params, tensor, axis, learned=learned)
        else:
            found[name] = TapQuantizer(name, grid.spec, params, _channels(taps[name], grid.spec, params), learned=learned)
    return found


def _channels(op: Operation, spec: QuantSpec, params: QuantParams | None) -> tuple[int, int] | None:
    """Number and axis of the channels of a tap with a scale for each of them, else None."""
    axis = params.axis if params is not None else op.channel_axis if spec.per_channel else None
    return None if axis is None else (op.shape[axis], axis)
