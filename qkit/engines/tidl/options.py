"""TIDL's compile options for a plan, and the plan's widths from options.

Names and values are those of TI's public documentation of edgeai-tidl-tools (model compilation, quantization, quantization
proto); no TIDL tool was at hand to take them. TIDL has 8 or 16 bits, one style of scales for a whole network, and finds ranges
itself by calibration: options carry widths and style, not ranges. There are two ways to carry those: `with_ranges` puts them
into the prototxt that TIDL writes and reads (symmetric grids only), and an ONNX file with Q/DQ, such as the kit exports, is
imported as it is with ``prequantized="onnx"``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from qkit.engines.tidl.prototxt import Layer, edited, layers
from qkit.errors import PlanError
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.listing import few
from qkit.quant.grids import QuantParams
from qkit.quant.plan import Grid, Plan

logger = logging.getLogger(__name__)

ADVANCED = "advanced_options:"
OUTPUTS_16 = f"{ADVANCED}output_feature_16bit_names_list"
PARAMETERS_16 = f"{ADVANCED}params_16bit_names_list"
STYLE = f"{ADVANCED}quantization_scale_type"
#: Values of `STYLE`.
FREE, POWER_OF_TWO, PREQUANTIZED_TFLITE, ASYMMETRIC = 0, 1, 3, 4
ACCURACY_LEVELS = (0, 1, 2, 9)
#: Steps whose width can differ from their neighbours'; the others take that of their inputs and outputs.
_OWN_WIDTH = frozenset({"conv", "batchnorm", "pool", "add", "mul"})
#: Steps whose output TIDL has an asymmetric grid for.
_ASYMMETRIC = frozenset({"conv", "linear", "add", "concat", "norm"})

Options = dict[str, str | int]


def compile_options(
    plan: Plan,
    graph: Graph,
    *,
    names: Mapping[str, str] | None = None,
    accuracy_level: int | None = None,
    calibration_frames: int | None = None,
    calibration_iterations: int | None = None,
    prequantized: Literal["onnx", "tflite"] | None = None,
    quant_params: str | None = None,
) -> Options:
    """What TIDL's providers take as options for this plan: add ``tidl_tools_path`` and ``artifacts_folder``.

    What TIDL will do otherwise than the plan is logged as a warning; `not_carried` has it as a list.

    Parameters
    ----------
    names
        Names of outputs in the model file by tap; taps without one keep the kit's name, which fits files of the kit's own.
    accuracy_level
        0 for simple calibration, 1 with bias calibration, 9 for single switches. By default 1, and 9 where the plan needs the
        switch for a scale per channel.
    calibration_frames, calibration_iterations
        TIDL's defaults if None.
    prequantized
        The model file holds its grids: Q/DQ in ONNX, or a TFLite model of integers. TIDL does not calibrate then.
    quant_params
        Path of the prototxt with ranges, see `with_ranges`.

    Raises
    ------
    PlanError
        If TIDL has no such grids: other widths than 8 and 16 bits, weights with zero points, activations per channel; or if a
        name cannot stand in a list.
    """
    _check(plan, graph)
    style = PREQUANTIZED_TFLITE if prequantized == "tflite" else _style(plan)
    per_channel = style != ASYMMETRIC and prequantized is None and any(g.params.axis is not None for g in plan.grids.values())
    if accuracy_level is None:
        accuracy_level = 9 if per_channel else 1
    if accuracy_level not in ACCURACY_LEVELS:
        raise PlanError(f"accuracy_level={accuracy_level!r}: TIDL has {', '.join(map(str, ACCURACY_LEVELS))}.")
    options: Options = {"tensor_bits": _tensor_bits(plan), "accuracy_level": accuracy_level, STYLE: style}
    if accuracy_level == 9:
        clipped = any(not g.weight and g.method != "minmax" for g in plan.grids.values())
        weights = any(g.weight and g.method != "minmax" for g in plan.grids.values())
        switches = {"activation_clipping": clipped, "weight_clipping": weights, "bias_calibration": bool(plan.corrections)}
        options |= {f"{ADVANCED}{key}": int(on) for key, on in {**switches, "channel_wise_quantization": per_channel}.items()}
    for key, count in (("calibration_frames", calibration_frames), ("calibration_iterations", calibration_iterations)):
        if count is not None:
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise PlanError(f"{key}={count!r}: give a whole number from 1 on.")
            options[f"{ADVANCED}{key}"] = count
    if options["tensor_bits"] == 8:
        outputs, parameters = _sixteen(plan, graph)
        options[OUTPUTS_16] = _listed(outputs, names)
        options[PARAMETERS_16] = _listed(parameters, names)
    if prequantized == "onnx":
        options[f"{ADVANCED}prequantized_model"] = 1
    elif prequantized not in {None, "tflite"}:
        raise PlanError(f"prequantized={prequantized!r}: there are 'onnx' and 'tflite'.")
    if quant_params is not None:
        options[f"{ADVANCED}quant_params_proto_path"] = str(quant_params)
    for note in not_carried(plan, graph, accuracy_level=accuracy_level, prequantized=prequantized, quant_params=quant_params):
        logger.warning("%s", note)
    return options


def not_carried(
    plan: Plan, graph: Graph, *, accuracy_level: int = 1, prequantized: str | None = None, quant_params: str | None = None
) -> tuple[str, ...]:
    """What TIDL does otherwise than the plan says, one sentence each."""
    taps = {op.name: plan.grids[op.name] for op in graph.operations if op.quantized and op.name in plan.grids}
    found: dict[str, list[str]] = {}

    def note(text: str, tensor: str) -> None:
        found.setdefault(text, []).append(tensor)

    style = _style(plan)
    for op in graph.operations:
        if op.quantized and plan.grids and op.name not in plan.grids:
            note("TIDL quantizes what it takes; these are float in the plan and need deny_list:layer_name", op.name)
        weight = plan.params(op.weight)
        output = plan.params(op.name) if op.quantized else None
        if output is not None and output.bits > 8 and weight is not None and weight.bits <= 8:
            note("TIDL gives a layer whose output has 16 bits 16 bits of weights too", op.name)
        if (
            output is not None
            and op.kind not in _OWN_WIDTH | {"input", "constant"}
            and output.bits != _input_bits(op, graph, plan, output)
        ):
            note("TIDL gives these the width of their neighbours", op.name)
        affine = output is not None and not _symmetric(output)
        if affine and (style != ASYMMETRIC or op.kind not in _ASYMMETRIC):
            note("TIDL has symmetric grids alone for these, which are affine in the plan", op.name)
        if style == ASYMMETRIC and weight is not None and weight.axis is None and op.weight_axis is not None:
            note("TIDL's asymmetric style gives weights a scale per channel, the plan has one", op.name)
        if style != POWER_OF_TWO and output is not None and plan.grids[op.name].spec.power_of_two:
            note("scales are powers of two here and free elsewhere; TIDL has one style for all", op.name)
    notes = [f"{text}: {few(names)}" for text, names in found.items()]
    if accuracy_level == 0 and style == FREE and taps and not all(g.spec.power_of_two for g in taps.values()):
        notes.append("at accuracy_level 0 TIDL has power-of-two scales for activations whatever the style")
    if plan.grids and prequantized is None and quant_params is None:
        notes.append("options carry no ranges: TIDL finds its own by calibration (see with_ranges, or prequantized)")
    if prequantized is None and any(grid.codes is not None for grid in plan.grids.values()):
        notes.append("TIDL rounds weights itself: codes that were chosen are not carried")
    if prequantized is None and plan.corrections:
        notes.append("corrected biases are not carried: write them into the model's own, or let TIDL calibrate biases")
    return tuple(notes)


def bits_from_options(options: Mapping[str, object], graph: Graph, *, names: Mapping[str, str] | None = None) -> dict[str, int]:
    """Width of every tap and weight that TIDL gives under these options; 32 is float.

    A layer in the list of outputs has 16 bits of output and weights, one in the list of parameters 16 bits of weights. That
    layers which cannot change their width take their neighbours' is not followed.

    Raises
    ------
    PlanError
        If a value is none that TIDL has, or a name is none of the network's.
    """
    base = _number(options.get("tensor_bits", 8), "tensor_bits")
    if base not in {8, 16, 32}:
        raise PlanError(f"tensor_bits is {base}; TIDL has 8, 16 and 32.")
    kit = {file: tap for tap, file in (names or {}).items()}
    operations = {op.name: op for op in graph.operations if op.quantized}
    bits = {name: base for op in operations.values() for name in (op.weight, op.name) if name is not None}
    for key, with_output in ((OUTPUTS_16, True), (PARAMETERS_16, False)):
        listed = options.get(key) or ""
        if not isinstance(listed, str):
            raise PlanError(f"{key} is {listed!r}, not a text of names with commas between them.")
        for name in filter(None, (part.strip() for part in listed.split(","))):
            op = operations.get(kit.get(name, name))
            if op is None:
                raise PlanError(
                    f"{key} names {name!r}, which {graph.model_name} does not have; names= says what names stand for."
                )
            if base == 8:
                bits |= {tensor: 16 for tensor in (op.weight, op.name if with_output else None) if tensor is not None}
    return bits


def with_ranges(prototxt: str, plan: Plan, graph: Graph, *, names: Mapping[str, str] | None = None) -> str:
    """The text of TIDL's quantization prototxt with the plan's ranges in place of TIDL's own.

    TIDL writes the file (option ``advanced_options:quant_params_proto_path``, to a path where there is none yet) and, given it
    again, takes scales from its ranges and skips calibration. It has layers after its own fusion: those whose name is a tap's get
    that tap's range and its weight's, all other text stays as it is.

    Raises
    ------
    PlanError
        If the text is not such a file, no layer of it is a tap, or the plan has affine grids, which the file cannot hold.
    """
    kit = {file: tap for tap, file in (names or {}).items()}
    operations = {op.name: op for op in graph.operations if op.quantized}
    changes: dict[int, dict[str, tuple[float, float]]] = {}
    for i, layer in enumerate(layers(prototxt)):
        op = operations.get(kit.get(layer.name, layer.name))
        if op is None:
            continue
        for part, tensor in (("outputs", op.name), ("weights", op.weight)):
            grid = plan.grids.get(tensor) if tensor is not None else None
            if grid is not None:
                changes.setdefault(i, {})[part] = _reach(tensor or "", grid)
    if not changes:
        raise PlanError(f"no layer of the prototxt is a tap of {graph.model_name}: names= says what its names stand for.")
    return edited(prototxt, changes)


def ranges_from_prototxt(
    prototxt: str, graph: Graph, *, names: Mapping[str, str] | None = None
) -> dict[str, tuple[float, float]]:
    """Least and greatest value of every tap and weight that TIDL's quantization prototxt has."""
    kit = {file: tap for tap, file in (names or {}).items()}
    operations = {op.name: op for op in graph.operations if op.quantized}
    found: dict[str, tuple[float, float]] = {}
    for layer in layers(prototxt):
        op = operations.get(kit.get(layer.name, layer.name))
        if op is not None:
            found |= {tensor: layer.ranges[part] for part, tensor in _parts(layer, op)}
    return found


def _parts(layer: Layer, op: Operation) -> Iterable[tuple[str, str]]:
    pairs = (("outputs", op.name), ("weights", op.weight))
    return [(part, tensor) for part, tensor in pairs if tensor is not None and part in layer.ranges]


def _reach(tensor: str, grid: Grid) -> tuple[float, float]:
    params = grid.params
    if not _symmetric(params):
        raise PlanError(
            f"{tensor} has zero point {int(params.zero_point.reshape(-1)[0])}: TIDL's prototxt is for symmetric grids. Use a "
            "symmetric scheme, or import an ONNX file with Q/DQ (prequantized='onnx')."
        )
    return float(params.lo.min()), float(params.hi.max())


def _check(plan: Plan, graph: Graph) -> None:
    """Raise for grids that TIDL has none of."""
    plan.refuse_factors()
    for tensor, grid in plan.grids.items():
        if tensor not in graph.weights and tensor not in graph.taps:
            raise PlanError(
                f"the plan has a grid for {tensor!r}, which {graph.model_name} does not have: it is of another model."
            )
        if grid.spec.bits not in {8, 16} or grid.params.bits > grid.spec.bits:
            raise PlanError(f"{tensor} has {grid.spec.bits} bits; TIDL has 8 and 16.")
        if grid.weight and bool(grid.params.zero_point.any()):
            raise PlanError(f"{tensor} has a zero point; TIDL's weights are symmetric.")
        if not grid.weight and grid.params.axis is not None:
            raise PlanError(f"{tensor} has a scale per channel; TIDL has one per activation.")


def _symmetric(params: QuantParams) -> bool:
    """Whether a grid is symmetric in TIDL's sense: zero at its middle, or at its end where the tensor is one-sided."""
    zero = params.zero_point
    middle = params.qmin + (params.qmax - params.qmin + 1) // 2
    return bool(((zero == params.qmin) | (zero == middle) | ((zero == 0) & (params.qmin in {-params.qmax, 0}))).all())


def _style(plan: Plan) -> int:
    if plan.grids and all(grid.spec.power_of_two for grid in plan.grids.values()):
        return POWER_OF_TWO
    affine = any(not grid.weight and not grid.spec.symmetric for grid in plan.grids.values())
    return ASYMMETRIC if affine and any(not grid.weight and not _symmetric(grid.params) for grid in plan.grids.values()) else FREE


def _tensor_bits(plan: Plan) -> int:
    if not plan.grids:
        return 32
    return min(grid.spec.bits for grid in plan.grids.values())


def _sixteen(plan: Plan, graph: Graph) -> tuple[list[str], list[str]]:
    """Taps whose output has 16 bits, and those of the rest whose weights have."""
    outputs = [s.name for s in graph.operations if s.quantized and s.name in plan.grids and plan.grids[s.name].spec.bits == 16]
    weights = [s.name for s in graph.operations if s.weight in plan.grids and plan.grids[s.weight or ""].spec.bits == 16]
    return outputs, [name for name in weights if name not in outputs]


def _listed(taps: Sequence[str], names: Mapping[str, str] | None) -> str:
    found = [(names or {}).get(tap, tap) for tap in taps]
    for tap, name in zip(taps, found, strict=True):
        if not isinstance(name, str) or not name or any(c in ",;\"'\\" or c.isspace() or not c.isprintable() for c in name):
            raise PlanError(
                f"{tap} has the name {name!r}, which cannot stand in a list with commas: rename it in the model file."
            )
    if len(set(found)) != len(found):
        raise PlanError("names= gives two taps one name.")
    return ", ".join(found)


def _input_bits(op: Operation, graph: Graph, plan: Plan, output: QuantParams) -> int:
    """Greatest width among an operation's inputs; its output's where they have none."""
    grids = (plan.params(graph.operations[i].tap) for i in op.inputs)
    return max((params.bits for params in grids if params is not None), default=output.bits)


def _number(value: object, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not str(value).strip().isdigit():
        raise PlanError(f"{key} is {value!r}, which is no whole number.")
    return int(value)
