"""The torchao side: fixed grids as fake-quantize modules, and the quantizer that puts a plan's grids on an exported program.

An annotation is made where the kit has a tap: on the node whose value is the tap's, so that whatever reads it reads the grid.
Convolutions and linear layers name their operands too (input, weight, bias), in the order that torchao's handling of batch norm
relies on. The scale of a bias is derived from the two others' by torchao itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torchao.quantization.pt2e.fake_quantize import FakeQuantize, FakeQuantizeBase
from torchao.quantization.pt2e.quantizer import (
    DerivedQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from qkit.engines.torchao.attention import open_attention
from qkit.engines.torchao.nodes import TAP, Place, operation, place_all
from qkit.errors import GraphError, PlanError
from qkit.execution.lanes import decide
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.weighted import ungrouped
from qkit.quant.grids import MIN_SCALE, QuantParams, quantize
from qkit.quant.plan import Plan

#: Where annotations lie in a node's metadata.
KEY = "quantization_annotation"
#: Greatest float32 below 2**31: torch clamps a bias in float32 before it becomes int32.
_BIAS_END = 2**31 - 128


class FixedGrid(FakeQuantize):  # type: ignore[misc]
    """Fake quantization on a grid that nothing observed changes; gradients pass straight through inside of it.

    Parameters
    ----------
    scale, zero_point
        Of the grid, () or (C,).
    axis
        Channel axis, or None.
    """

    def __init__(
        self, scale: Tensor, zero_point: Tensor, axis: int | None, dtype: torch.dtype, quant_min: int, quant_max: int,
        qscheme: torch.qscheme, is_dynamic: bool = False,
    ) -> None:  # fmt: skip
        FakeQuantizeBase.__init__(self)
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", zero_point.clone())
        self.dtype, self.qscheme, self.is_dynamic = dtype, qscheme, is_dynamic
        self.quant_min, self.quant_max = quant_min, quant_max
        self.ch_axis = -1 if axis is None else axis
        self.is_per_channel = axis is not None

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid."""
        if not int(self.fake_quant_enabled[0]):
            return x
        if self.is_per_channel:
            return torch.fake_quantize_per_channel_affine(
                x, self.scale, self.zero_point, self.ch_axis, self.quant_min, self.quant_max
            )
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, self.quant_min, self.quant_max)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The grid."""
        return self.scale, self.zero_point

    def extra_repr(self) -> str:
        """Shown in the module's repr."""
        what = f"{self.scale.numel()} channels" if self.is_per_channel else f"scale {float(self.scale):.6g}"
        return f"{what}, codes {self.quant_min}..{self.quant_max}, {self.dtype}"


def grid_spec(params: QuantParams) -> QuantizationSpec:
    """A grid as torchao's specification of a tensor."""
    symmetric = not bool(params.zero_point.any())
    if params.axis is None:
        scheme = torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine
    else:
        scheme = torch.per_channel_symmetric if symmetric else torch.per_channel_affine
    grid = FixedGrid.with_args(scale=params.scale, zero_point=params.zero_point, axis=params.axis)
    return QuantizationSpec(
        dtype=params.dtype, observer_or_fake_quant_ctr=grid, quant_min=params.qmin, quant_max=params.qmax, qscheme=scheme,
        ch_axis=params.axis,
    )  # fmt: skip


def product_of_scales(grids: list[Any]) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a bias from the modules of input and weight."""
    (first, _), (second, _) = (grid.calculate_qparams() for grid in grids)
    scale = (first.double() * second.double()).float()
    return scale, torch.zeros(scale.shape, dtype=torch.int32, device=scale.device)


class PlanQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates an exported program with a plan's grids.

    Attributes
    ----------
    plan, graph
        What it was made from.
    notes
        After the annotation: what the program holds in float or otherwise than the plan says.
    """

    def __init__(self, plan: Plan, graph: Graph) -> None:
        super().__init__()
        self.plan, self.graph = plan, graph
        self.notes: tuple[str, ...] = ()
        self._remarks: dict[str, list[str]] = {}
        self._roots: dict[fx.Node, fx.Node] = {}
        self._taps: set[fx.Node] = set()

    def transform_for_annotation(self, model: fx.GraphModule) -> fx.GraphModule:
        """Open attention, whose products and softmax have grids of their own; torchao asks for it before it annotates."""
        return open_attention(model)

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Put the grids on the program's nodes.

        Raises
        ------
        GraphError
            If a tap is not in the program, or another operation overwrites it while something else still reads it.
        PlanError
            If the plan has chosen codes or corrected biases that are not in the program's weights.
        """
        found = place_all(self.graph, model)
        self._remarks, self._roots = {}, {}
        self._taps = {found[op.index].final for op in self.graph.operations if op.quantized and op.index in found}
        for op in self.graph.operations:
            place = found.get(op.index)
            if place is None:
                continue
            place.final.meta[TAP] = op.name
            if op.weight is not None and self.plan.params(op.weight) is not None:
                self._weighted(model, op, place)
            params = self.plan.params(op.name) if op.quantized else None
            if params is not None:
                _check_overwriting(op, place.final)
                _annotation(place.final).output_qspec = grid_spec(params)
                self._roots[place.final] = place.final
            elif op.kind == "keep" and self.plan.params(op.tap) is not None:
                self._keep(op, place)
        self._finish()
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing is left to check."""

    def _keep(self, op: Operation, place: Place) -> None:
        """The nodes of an operation that shares its input's grid."""
        for node in place.nodes:
            if node in self._taps:  # of another operation that the same call became
                continue
            sources = [self._root(source) for source in node.all_input_nodes]
            root = next((source for source in sources if source is not None), None)
            if root is not None and isinstance(node.meta.get("val"), Tensor) and node.meta["val"].is_floating_point():
                _annotation(node).output_qspec = SharedQuantizationSpec(root)
                self._roots[node] = root

    def _root(self, node: fx.Node) -> fx.Node | None:
        """The tap whose grid the node's value is on."""
        while node not in self._roots:
            if node.op != "call_function" or operation(node).strip("_") not in {
                "dropout",
                "clone",
                "alias",
                "detach",
                "contiguous",
            }:
                return None
            node = node.all_input_nodes[0]
        return self._roots[node]

    def _weighted(self, model: fx.GraphModule, op: Operation, place: Place) -> None:
        params = self.plan.params(op.weight)
        core = place.core
        operand = core.args[1] if len(core.args) > 1 else None
        if params is None or not isinstance(operand, fx.Node) or op.kind == "batchnorm":
            self._remark("a batch norm of its own: its scales are not rounded by torchao", op)
            return
        source, weight = core.args[0], operand
        assert isinstance(source, fx.Node)
        bias = core.args[2] if len(core.args) > 2 else core.kwargs.get("bias")
        self._check_weight(model, op, weight, place)
        operands: dict[fx.Node, Any] = _annotation(core).input_qspec_map
        root = self._root(source)
        operands[source] = None if root is None else SharedQuantizationSpec(root)
        operands[weight] = grid_spec(params)
        if isinstance(bias, fx.Node):
            if not place.norm:
                self._check_bias(model, op, bias)
            derived = self._bias(op, place, params, source, weight)
            if derived is not None and root is not None:
                operands[bias] = derived
        elif not place.norm and op.name in self.plan.corrections:
            raise PlanError(_absent(op.name, "a corrected bias"))

    def _bias(self, op: Operation, place: Place, weight: QuantParams, source: fx.Node, node: fx.Node) -> Any:
        rule = decide(op, self.plan, self.graph).bias_scale
        if rule is None:
            return None
        if place.norm:
            self._remark("bias before a batch norm that is not folded yet: it stays float in training", op)
            return None
        activation, _, bits = rule
        scale = activation.scale.double() * weight.scale.double()
        bias = 0.0 if op.bias is None else self.graph.biases[op.bias].detach().cpu().double()
        bias = bias + torch.tensor(self.plan.corrections.get(op.name, 0.0), dtype=torch.float64)
        if bool((scale < MIN_SCALE).any()) or (bits > 32 and bool(((bias / scale).abs() > _BIAS_END).any())):
            self._remark("bias left in float: torchao's widest integers, 32 bits, do not hold it at the scale of its sums", op)
            return None
        bits = min(bits, 32)
        return DerivedQuantizationSpec(
            derived_from=[(source, place.core), (node, place.core)], derive_qparams_fn=product_of_scales, dtype=torch.int32,
            quant_min=-(2 ** (bits - 1)), quant_max=min(2 ** (bits - 1) - 1, _BIAS_END),
            qscheme=torch.per_tensor_symmetric if weight.axis is None else torch.per_channel_symmetric,
            ch_axis=None if weight.axis is None else 0,
        )  # fmt: skip

    def _check_weight(self, model: fx.GraphModule, op: Operation, node: fx.Node, place: Place) -> None:
        name = op.weight or ""
        value, chosen = _constant(model, node), self.plan.codes(name)
        if value is None:
            return
        wanted = self.graph.weights[name]
        if op.groups > 1:
            if self.plan.params(name) is not None and self.plan.params(name).axis is not None:  # type: ignore[union-attr]
                raise PlanError(
                    f"{name} has a scale for each output channel of a transposed convolution in groups, which lie along no "
                    "axis of torchao's: give it one scale (a scheme per tensor, or an override)."
                )
            wanted = ungrouped(wanted, op.groups)
        if value.shape != wanted.shape:
            raise PlanError(
                f"{name} has shape {tuple(value.shape)} in the program and {tuple(wanted.shape)} in the study: "
                "export the study's model."
            )
        params = self.plan.params(name)
        if chosen is None or params is None:
            return
        if place.norm:
            self._remark("chosen codes are those of folded weights: training starts from rounding to nearest", op)
        elif not torch.equal(quantize(value.cpu().contiguous(), params, name=name).int(), chosen.tensor.cpu().int()):
            raise PlanError(_absent(name, "codes that adaptive rounding or training chose"))

    def _check_bias(self, model: fx.GraphModule, op: Operation, node: fx.Node) -> None:
        correction = self.plan.corrections.get(op.name)
        value = _constant(model, node)
        if correction is None or value is None:
            return
        added = torch.tensor(correction, dtype=torch.float64)
        bias = 0.0 if op.bias is None else self.graph.biases[op.bias].detach().cpu().double()
        rule = decide(op, self.plan, self.graph).bias_scale
        step_size = torch.zeros(()) if rule is None else rule[0].scale.double() * rule[1].scale.double()
        off = (value.detach().cpu().double() - bias - added).abs() - 0.51 * step_size
        if float(off.max()) > 1e-3 * float(added.abs().max()) + 1e-6 * float(value.abs().max()):
            raise PlanError(_absent(op.name, "a corrected bias"))

    def _remark(self, text: str, op: Operation) -> None:
        self._remarks.setdefault(text, []).append(op.name)

    def _finish(self) -> None:
        notes = [
            f"{text}: {', '.join(names[:4])}{f' and {len(names) - 4} more' * (len(names) > 4)}"
            for text, names in self._remarks.items()
        ]
        if self.plan.accumulator_bits is not None:
            notes.append(f"accumulators of {self.plan.accumulator_bits} bits are the engine's own affair and are not carried")
        if not self.plan.arithmetic.in_float:
            notes.append("the integer forms of what has no weights are the engine's own affair and are not carried")
        self.notes = tuple(notes)


def _annotation(node: fx.Node) -> QuantizationAnnotation:
    found = node.meta.get(KEY)
    if found is None:
        # torchao would give one module to all readers of a tensor whose types agree: a bias read at two scales among them
        found = node.meta[KEY] = QuantizationAnnotation(allow_implicit_sharing=False, _annotated=True)
    return found


def _constant(model: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The parameter or buffer that the node stands for, or None where it is computed."""
    if node.op != "get_attr":
        return None
    value: Any = model
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else None


def _check_overwriting(op: Operation, node: fx.Node) -> None:
    """Quantization makes a copy per reader, so that a value may not be changed in place for another reader to see."""
    writers = [
        user
        for user in node.users
        if user.op == "call_function" and operation(user).endswith("_") and user.args and user.args[0] is node
    ]
    if writers and len(node.users) > 1:
        raise GraphError(
            f"{op.name} is overwritten in place by {writers[0].name} and read by {len(node.users) - 1} other operations: use "
            "the operation that returns a new tensor there (inplace=False, y = y + x)."
        )


def _absent(name: str, what: str) -> str:
    return (
        f"the plan has {what} for {name}, which observers cannot carry and the program's weights do not hold: export "
        "qkit.engines.torchao.model(study) in the model's place."
    )
