"""Markers to Q/DQ nodes: integers, scales and zero points of a plan written into an ONNX graph.

Activations are stored from 0 up: a code is written less the grid's least one, so that a grid of -128..127 with zero point z
becomes uint8 with zero point z + 128. It is the same grid of real values, and the form that ONNX Runtime has integer kernels for:
with zero point 0 a ReLU is the grid's own end. Where a grid has fewer codes than its type, a Clip cuts values to it before they
are rounded. Weights are signed integers, one scale per output channel or one in all; biases are int32 at the scale of the input
times that of the weight, where they fit.

Where they do not (16 bits on both leave no room), a plain float bias would be right, but ONNX Runtime's optimizer makes
int32 of it all the same, and what does not fit becomes the most negative number. So such a bias is guarded: it is written as
int32 at a power of two of its own, which has the very same values, and which the optimizer leaves as it is.

A softmax is guarded too. ONNX Runtime before 1.32 makes an integer kernel of it whose exponentials overflow where the
probabilities are small for its length, and writes code 0 then. An Abs, which changes no probability, keeps such a softmax in
float: what rounds to the same codes, such as a Clip, the optimizer takes away.

So are 8-bit weights of a matrix product whose input is wider or float. ONNX Runtime's optimizer makes MatMulNBits of such a
product, which rounds the input to 8 bits in blocks of 32. Stored in 16 bits, the same codes are left alone.

And so are two grids with nothing in between, such as a norm's and those of the ReLU behind it, which the second grid's end
stands for. The optimizer makes one rounding of the two, on a third grid; a Max with the second grid's least value, which
changes no code, keeps them apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.engines.faults import softmax_overflows
from qkit.engines.onnx.file_program import BIAS, DOMAIN, KEEP, MARKER, TAP, WEIGHT, float_bias, shared_grid
from qkit.errors import PlanError
from qkit.execution.lanes import decide
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.listing import few
from qkit.quant.grids import QuantParams, quantize
from qkit.quant.plan import Plan

#: What ONNX stores biases in.
BIAS_LIMIT = 2.0**31
_WHY_FLOAT = "do not fit 32 bits at the scale of input times weight, or are float in the plan"


@dataclass(frozen=True)
class Stored:
    """Where a tap is in the file: name of the tensor, and what was taken off its codes; no codes where it is float."""

    tensor: str
    offset: int = 0
    integer: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {"tensor": self.tensor, "offset": self.offset, "integer": self.integer}


@dataclass(eq=False)
class Rewriter:
    """Puts nodes in the markers' places; `taps` and `notes` fill as it goes."""

    graph: Graph
    plan: Plan
    guard_biases: bool = True
    taps: dict[str, Stored] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    float_biases: list[str] = field(default_factory=list)
    guarded: list[str] = field(default_factory=list)
    softmaxes: list[str] = field(default_factory=list)
    widened: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    tensors: dict[str, Any] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def rewrite(self, model: Any) -> None:
        """Replace the markers of an ``onnx.ModelProto``, in place."""
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        outputs = {value.name for value in model.graph.output}
        inputs = {value.name for value in model.graph.input}
        makers = {name: node for node in model.graph.node for name in node.output}
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = self.renamed.get(name, name)
            if node.domain != DOMAIN:
                self.nodes.append(node)
                continue
            assert node.op_type == MARKER
            attributes = {a.name: a.s.decode() if a.s else a.i for a in node.attribute}
            op = self.graph.operations[attributes["step"]]
            source, kind = node.input[0], attributes["kind"]
            if kind in {TAP, KEEP} and source in makers:
                makers[source].name = op.name
            result = {TAP: self._tap, KEEP: self._keep, WEIGHT: self._weight, BIAS: self._bias}[kind](op, source)
            if node.output[0] in outputs and self.nodes and self.nodes[-1].output[0] == result != source:
                self.nodes[-1].output[0] = node.output[0]
                result = node.output[0]
            elif node.output[0] in outputs or (result == source and source in inputs):
                self._node("Identity", [result], node.output[0])
                continue
            self.renamed[node.output[0]] = result
        used = {name for node in self.nodes for name in node.input} | outputs
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(tensor for name, tensor in self.tensors.items() if name in used)
        self._remark()

    def _remark(self) -> None:
        floats = [name for name, stored in self.taps.items() if not stored.integer]
        if floats and self.plan.grids:
            self.notes.append(f"{len(floats)} activations stay float, as the plan says: {few(floats)}")
        if self.float_biases:
            self.notes.append(
                f"the biases of {len(self.float_biases)} layers {_WHY_FLOAT} and stay float: {few(self.float_biases)}"
            )
        if self.guarded:
            self.notes.append(
                f"the biases of {len(self.guarded)} layers {_WHY_FLOAT}; they keep their float values as integers at scales of "
                f"their own, so that ONNX Runtime leaves them alone: {few(self.guarded)}"
            )
        if self.softmaxes:
            self.notes.append(
                f"the probabilities of {len(self.softmaxes)} softmaxes are small, which overflows in the integer kernel of ONNX "
                f"Runtime before 1.32; an Abs, which changes no probability, keeps them in float: {few(self.softmaxes)}"
            )
        if self.widened:
            self.notes.append(
                f"the 8-bit weights of {len(self.widened)} matrix products whose input is wider or float are stored in 16 bits, "
                f"since ONNX Runtime would round the input to 8 bits too (MatMulNBits): {few(self.widened)}"
            )
        if self.cut:
            self.notes.append(
                f"{len(self.cut)} grids have fewer codes than the 8 or 16 bits they are stored in and are cut by a Clip, which "
                f"keeps ONNX Runtime from integer kernels there: {few(self.cut)}"
            )

    def _node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=f"{output}:{kind}", **attributes))
        return output

    def _constant(self, name: str, array: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self.tensors:
            self.tensors[name] = numpy_helper.from_array(np.array(array, order="C"), name)
        return name

    def _unused(self, name: str) -> str:
        taken = {output for node in self.nodes for output in node.output}
        return next(n for n in (name, *(f"{name}#{k}" for k in range(2, len(taken) + 3))) if n not in taken)

    def _tap(self, op: Operation, source: str) -> str:
        params = self.plan.params(op.name)
        if params is None:
            self.taps[op.name] = Stored(source, integer=False)
            return source
        if params.axis is not None:
            raise PlanError(
                f"{op.name} has a grid per channel, which ONNX engines have for weights alone: give it one scale "
                "(plan.with_range with a spec of per_channel=False) before the export."
            )
        self.taps[op.name] = Stored(f"{op.name}/codes", params.qmin)
        if self._overflows(op, source, params):
            self.softmaxes.append(op.name)
            source = self._node("Abs", [source], f"{op.name}/probabilities")
        return self._quantized(op.name, source, params)

    def _overflows(self, op: Operation, source: str, params: QuantParams) -> bool:
        """Whether the tap is a softmax whose exponentials overflow in ONNX Runtime's integer kernel."""
        node = next((node for node in reversed(self.nodes) if source in node.output), None)
        if node is None or node.op_type != "Softmax" or params.bits > 8 or not op.shape:
            return False
        axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
        return softmax_overflows(op.shape[axis], float(params.scale))

    def _keep(self, op: Operation, source: str) -> str:
        params = shared_grid(self.plan, op)
        assert params is not None
        return self._quantized(op.name, source, params)

    def _quantized(self, name: str, source: str, params: QuantParams) -> str:
        count = params.qmax - params.qmin
        dtype = np.uint8 if count <= 255 else np.uint16
        scale = self._constant(f"{name}/scale", params.scale.numpy())
        zero = self._constant(f"{name}/zero_point", np.array(int(params.zero_point) - params.qmin, dtype))
        if self._on_another_grid(source, scale, zero):
            source = self._node("Max", [source, self._least(name, params)], f"{name}/apart")
        if count != np.iinfo(dtype).max:
            self.cut.append(name)
            greatest = self._constant(f"{name}/greatest", np.array(float(params.hi), np.float32))
            source = self._node("Clip", [source, self._least(name, params), greatest], f"{name}/cut")
        codes = self._node("QuantizeLinear", [source, scale, zero], f"{name}/codes")
        return self._node("DequantizeLinear", [codes, scale, zero], f"{name}/values")

    def _least(self, name: str, params: QuantParams) -> str:
        return self._constant(f"{name}/least", np.array(float(params.lo), np.float32))

    def _on_another_grid(self, source: str, scale: str, zero: str) -> bool:
        """Whether the tensor comes straight from a grid, and another one."""
        maker = next((node for node in reversed(self.nodes) if source in node.output), None)
        if maker is None or maker.op_type != "DequantizeLinear":
            return False
        pairs = zip(maker.input[1:], (scale, zero), strict=True)
        return any(self.tensors[theirs].raw_data != self.tensors[own].raw_data for theirs, own in pairs)

    def _weight(self, op: Operation, source: str) -> str:
        name = op.weight or ""
        params = self.plan.params(name)
        if params is None:
            return source
        codes = weight_codes(self.graph, self.plan, name, params)
        signed = params.qmin < 0
        widened = params.bits <= 8 and self._would_round_its_input(op)
        if widened:
            self.widened.append(op.name)
        dtype = np.dtype(("int" if signed else "uint") + ("8" if params.bits <= 8 and not widened else "16"))
        scale = self._constant(f"{name}/scale", params.scale.numpy())
        # a weight that two layers share may be stored in both widths
        end = "/wide" if widened else ""
        zero = self._constant(f"{name}/zero_point{end}", params.zero_point.numpy().astype(dtype))
        stored = self._constant(f"{name}/codes{end}", codes.numpy().astype(dtype))
        axis = {} if params.axis is None else {"axis": params.axis}
        return self._node("DequantizeLinear", [stored, scale, zero], self._unused(f"{name}/values"), **axis)

    def _would_round_its_input(self, op: Operation) -> bool:
        """Whether ONNX Runtime would make MatMulNBits of the product: on more than two axes, where it is no Gemm."""
        source = self.graph.operations[op.inputs[0]]
        grid = self.plan.params(source.tap)
        narrow = grid is not None and grid.bits <= 8 and grid.axis is None
        return op.kind == "linear" and len(source.shape) != 2 and not narrow

    def _bias(self, op: Operation, source: str) -> str:
        bias = float_bias(self.graph, self.plan, op)
        rule = decide(op, self.plan, self.graph).bias_scale
        if bias is None or self.plan.params(op.weight) is None:
            return source
        if rule is not None:
            activation, weight, bits = rule
            scale = activation.scale.double() * weight.scale.double()
            limit = 2.0 ** (bits - 1)
            codes = torch.round(bias.double() / scale).clamp(-limit, limit - 1)
            if bool((codes >= -BIAS_LIMIT).all() and (codes < BIAS_LIMIT).all()):
                return self._integer_bias(op, codes, scale)
        source_grid = self.plan.params(self.graph.operations[op.inputs[0]].tap)
        widths = [grid.bits for grid in (source_grid, self.plan.params(op.weight)) if grid is not None]
        # integer kernels, which 8 bits on both have, take a bias for one at the scale of input times weight without a look
        if self.guard_biases and len(widths) == 2 and max(widths) > 8:
            self.guarded.append(op.name)
            # a power of two that leaves a float's 24 bits whole: the values stay what they are
            scale = torch.exp2(torch.floor(torch.log2(bias.double().abs().clamp(min=2.0**-90))) - 29)
            return self._integer_bias(op, torch.round(bias.double() / scale), scale)
        self.float_biases.append(op.name)
        return source

    def _integer_bias(self, op: Operation, codes: Tensor, scale: Tensor) -> str:
        stored = self._constant(f"{op.name}/bias/codes", codes.to(torch.int32).numpy())
        sizes = self._constant(f"{op.name}/bias/scale", scale.float().numpy())
        axis = {"axis": 0} if scale.ndim else {}
        return self._node("DequantizeLinear", [stored, sizes], f"{op.name}/bias/values", **axis)


def weight_codes(graph: Graph, plan: Plan, name: str, params: QuantParams) -> Tensor:
    """The weight's codes in the plan: rounded to nearest, or as they were chosen."""
    chosen = plan.codes(name)
    if chosen is None:
        return quantize(graph.weights[name].cpu().contiguous(), params, name=name).to(torch.int32)
    if chosen.tensor.shape != graph.weights[name].shape:
        raise PlanError(
            f"the plan's codes for {name} have shape {tuple(chosen.tensor.shape)}, the weight has "
            f"{tuple(graph.weights[name].shape)}: the plan is of another model. Calibrate again."
        )
    return chosen.tensor.cpu().to(torch.int32)


def simplify(model: Any) -> None:
    """Means over an image's height and width become GlobalAveragePool, for which engines have integer kernels; in place."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*model.graph.value_info, *model.graph.input)}
    for i, node in enumerate(model.graph.node):
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants or ranks.get(node.input[0]) != 4:
            continue
        axes = {int(axis) % 4 for axis in numpy_helper.to_array(constants[node.input[1]]).ravel()}
        keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if axes == {2, 3} and keeps:
            model.graph.node[i].CopyFrom(
                helper.make_node("GlobalAveragePool", [node.input[0]], list(node.output), name=node.name)
            )


def strip(model: Any) -> None:
    """Take out what the exporter notes about its own run (source lines with their paths among it), in place."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del holder.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
