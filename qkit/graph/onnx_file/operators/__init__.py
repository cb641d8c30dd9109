"""The operations that can be read: one table from a name to the function that plans a node of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from qkit.graph.onnx_file.call import Call
from qkit.graph.onnx_file.operators import (
    activations,
    convolution,
    elementwise,
    fused,
    indexing,
    layout,
    norms,
    pooling,
    quantized,
    recurrent,
    reductions,
    resizing,
)
from qkit.graph.onnx_file.values import Planned

Planner = Callable[[Call], Planned]

OPERATORS: Mapping[str, Planner] = {
    **activations.TABLE,
    **convolution.TABLE,
    **elementwise.TABLE,
    **indexing.TABLE,
    **layout.TABLE,
    **norms.TABLE,
    **pooling.TABLE,
    **quantized.TABLE,
    **recurrent.TABLE,
    **reductions.TABLE,
    **resizing.TABLE,
    # ONNX Runtime's optimizer writes it without a domain
    "SimplifiedLayerNormalization": fused.rms_norm,
}
"""Operations of the ai.onnx domain."""

MICROSOFT: Mapping[str, Planner] = {**fused.TABLE, **quantized.MICROSOFT}
"""Operations of the com.microsoft domain."""

CUT = "Cut the file in front of it (onnx.utils.extract_model with the names of the tensors there as outputs)."

CURES: Mapping[str, str] = {
    "NonMaxSuppression": f"the number of its results depends on the data. {CUT}",
    "NonZero": f"the number of its results depends on the data. {CUT}",
    "Unique": f"the number of its results depends on the data. {CUT}",
    "Compress": f"the number of its results depends on the data. {CUT}",
    "RoiAlign": f"its boxes are post-processing. {CUT}",
    "Loop": "it repeats a part of the network. Export the network with a fixed number of steps, so that the loop is unrolled.",
    "Scan": "it repeats a part of the network. Export the network with a fixed number of steps, so that the loop is unrolled.",
    **dict.fromkeys(
        ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
        "its results are random. Export the network in eval mode, without sampling.",
    ),
}
"""What to do about operations that cannot be read."""


def planner(domain: str, call: Call) -> Planner:
    """The function that plans a node.

    Raises
    ------
    GraphError
        Naming the node, its domain, and what to do, if the operation cannot be read.
    """
    table = {"": OPERATORS, "com.microsoft": MICROSOFT}.get(domain, {})
    found = table.get(call.operator)
    if found is not None:
        return found
    if call.operator.startswith(("Sequence", "SplitToSequence", "ConcatFromSequence")) or call.operator.startswith("Optional"):
        raise call.refuse(
            f"sequences and optional values are not supported. Export with torch.onnx.export(dynamo=True), or: {CUT}"
        )
    if call.operator.startswith(("String", "Regex", "TfIdf")):
        raise call.refuse(f"strings are not supported. {CUT}")
    if domain == "" and call.operator in CURES:
        raise call.refuse(f"it is not supported: {CURES[call.operator]}")
    if domain in {"com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"}:
        raise call.refuse(
            f"this operation of the domain {domain!r} is not supported. Read the file from before ONNX Runtime optimized it, or "
            "optimize it at the basic level only."
        )
    shown = "ai.onnx" if domain == "" else domain
    raise call.refuse(f"this operation of the domain {shown!r} is not supported. Write it with other operations, or: {CUT}")
