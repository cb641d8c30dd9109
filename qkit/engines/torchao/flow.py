"""torchao's PT2E flow on a plan's grids, and networks that it (or `torch.fx` quantization) converted as lanes.

``quantizer(plan, study)`` goes into torchao's own functions, on a program that you exported; nothing has to be calibrated, since
the grids are fixed, and the prepared program computes on them from the start::

    program = torch.export.export(model, inputs).module()
    converted = convert_pt2e(prepare_pt2e(program, qkit.engines.torchao.quantizer(study.plan, study)))

`converted` does all of it, from a study. What a plan holds beyond grids, codes from adaptive rounding and corrected biases,
cannot be told to an observer: `model` is the model with these written into its weights. It has the paths of yours, and `prepared`
and `converted` start from it.
"""

from __future__ import annotations

import copy
import logging
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from qkit.engines.torchao.program_lane import ProgramLane, program_lane
from qkit.engines.torchao.program_model import exported, written
from qkit.errors import DataError, MissingExtra, PlanError, installing
from qkit.execution.loading import batches
from qkit.graph import Graph
from qkit.quant.plan import Plan

if TYPE_CHECKING:
    from qkit.engines.torchao.plan_quantizer import PlanQuantizer
    from qkit.study import Study

logger = logging.getLogger(__name__)

__all__ = ["converted", "lane", "model", "prepared", "quantizer"]


def quantizer(plan: Plan, study: Study | Graph) -> PlanQuantizer:
    """A torchao quantizer that annotates an exported program with the plan's grids.

    Activations get their grid where they are made, of 8 bits or 16, and what only moves numbers (max pooling, reshapes) shares
    its input's; weights get theirs per channel or per tensor; biases are int32 at the scale of input times weight where they fit,
    and stay float where the plan says so. After the annotation its `notes` say what is not as in the plan.

    Parameters
    ----------
    plan
        The grids.
    study
        The study of the model that the program was exported from, or its graph.

    Raises
    ------
    MissingExtra
        Without the extra ``torchao``.
    PlanError
        If the plan is of another network. While annotating: if it has codes or corrections that the program's weights lack.
    GraphError
        While annotating: if a tap is not in the program.
    """
    _require()
    from qkit.engines.torchao.plan_quantizer import PlanQuantizer

    graph = study if isinstance(study, Graph) else study.graph
    _check_plan(plan, graph)
    return PlanQuantizer(plan, graph)


def model(study: Study, plan: Plan | None = None) -> nn.Module:
    """A copy of the study's model whose weights are those that the plan's lane computes with.

    Batch norms are folded, weights are on their grids with the codes that the plan chose, biases are corrected and rounded. The
    modules' paths are the model's; a batch norm that is gone is an identity. Quantizing it on the plan's grids changes no weight.

    Parameters
    ----------
    plan
        The study's current one if None.

    Raises
    ------
    PlanError
        If the plan is of another network, or needs several biases for one module.
    """
    plan = study.plan if plan is None else plan
    _check_plan(plan, study.graph)
    return written(study.model, _example(study), study.graph, plan)


def prepared(study: Study, plan: Plan | None = None, *, qat: bool = False) -> Any:
    """The network exported and prepared by torchao: a graph module that computes on the plan's grids.

    Parameters
    ----------
    plan
        The study's current one if None.
    qat
        Prepare the model itself for training instead of `model`: in training mode, batch norms not folded, weights as they are;
        codes and corrections of the plan are left behind, since training changes what they were made for.

    Raises
    ------
    MissingExtra
        Without the extra ``torchao``.
    GraphError
        If torch cannot export the model.
    """
    _require()
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e

    plan = study.plan if plan is None else plan
    if qat:
        source = copy.deepcopy(study.model).to(study.graph.device).train()
        plan = _trainable(plan)
    else:
        source = model(study, plan)
    program = exported(source, _example(study))
    annotator = quantizer(plan, study)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = (prepare_qat_pt2e if qat else prepare_pt2e)(program, annotator)
    for note in annotator.notes:
        logger.warning("%s: %s.", study.graph.model_name, note)
    return result


def converted(study: Study, plan: Plan | None = None) -> Any:
    """The network as torchao converts it: integers between explicit quantize and dequantize operations.

    Its output codes are those of the plan's lane but for sums that fall on the other side of a tie. Runs as it is, through
    ``torch.compile``, and through ``torch.onnx.export``.

    Raises
    ------
    MissingExtra, GraphError, PlanError
        See `prepared` and `quantizer`.
    """
    program = prepared(study, plan)
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return convert_pt2e(program)


def lane(program: nn.Module, study: Study | Graph, *, name: str = "torchao") -> ProgramLane:
    """A converted program as a lane, to be compared with the kit's.

    Any that PT2E converted, by whatever quantizer, and those of `torch.fx` quantization (``convert_fx``,
    ``convert_to_reference_fx``); torchao itself is not needed. Taps that the program fuses away are missing, those that it leaves
    in float have no codes; `notes` lists both.

    Parameters
    ----------
    program
        What ``convert_pt2e`` or ``convert_fx`` returned; it is not changed.
    study
        Of the network that it was made from, or its graph.
    name
        Shown in tables.

    Raises
    ------
    GraphError
        If it is no such program, or of another network.
    """
    return program_lane(program, study if isinstance(study, Graph) else study.graph, name)  # type: ignore[arg-type]


def _trainable(plan: Plan) -> Plan:
    """The plan's grids alone."""
    grids = {name: replace(grid, codes=None) for name, grid in plan.grids.items()}
    return replace(plan, grids=grids, corrections={})


def _check_plan(plan: Plan, graph: Graph) -> None:
    plan.refuse_factors()
    known = {*graph.taps, *graph.weights}
    for name in plan.grids:
        if name not in known:
            raise PlanError(f"the plan has a grid for {name!r}, which {graph.model_name} does not have: it is of another model.")


def _example(study: Study) -> tuple[Any, ...]:
    first = next(iter(batches(study.calibration, 1)), None)
    if first is None:
        raise DataError("the calibration loader gave no batch: pass at least one.")
    return tuple(x.to(study.graph.device) if isinstance(x, Tensor) else x for x in first.inputs)


def _require() -> None:
    try:
        import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"torchao is needed for this and cannot be imported ({error}): {installing('torchao')}.") from error
