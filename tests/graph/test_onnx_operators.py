"""Every operation that is read gives ONNX Runtime's numbers, over attributes and opsets."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_node_cases import Case, check, const, floats

from qkit.graph.onnx_file.operators import MICROSOFT, OPERATORS, quantized

X4 = floats(2, 4, 9, 11)
X3 = floats(2, 4, 10)
X5 = floats(2, 2, 5, 6, 7)
X2 = floats(3, 6)
W = floats(6, 4, 3, 3, seed=1)
B6 = floats(6, seed=2)
C4 = floats(4, seed=3)
INT = np.random.default_rng(5).integers(-9, 9, (3, 4)).astype(np.int64)


def i64(*values: int) -> tuple[str, np.ndarray]:
    return const(values, np.int64)


def conv_cases() -> list[Case]:
    made = [
        Case("Conv", [X4, const(W), const(B6)], how)
        for how in (
            {},
            {"pads": [1, 1, 1, 1], "strides": [2, 2]},
            {"pads": [0, 1, 2, 1]},
            {"pads": [0, 0, 1, 1], "strides": [2, 1], "dilations": [2, 1]},
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
            {"auto_pad": "VALID", "dilations": [1, 2]},
        )
    ]
    made += [
        Case("Conv", [X4, const(W)], {"kernel_shape": [3, 3]}, 9),
        Case("Conv", [X4, const(floats(8, 2, 3, 3)), const(floats(8))], {"group": 2, "pads": [1, 1, 1, 1]}, 11),
        Case("Conv", [X4, const(floats(4, 1, 3, 3))], {"group": 4}, 22),
        Case("Conv", [X3, const(floats(5, 4, 3))], {"pads": [2, 0]}),
        Case("Conv", [X5, const(floats(3, 2, 2, 3, 2))], {"pads": [1, 1, 1, 1, 1, 1]}),
        Case("Conv", [X4, W], {}, fixed=True, note="-weights at run time"),
    ]
    weight = floats(4, 3, 3, 3, seed=4)
    made += [
        Case("ConvTranspose", [X4, const(weight), const(floats(3))], how)
        for how in (
            {},
            {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
            {"strides": [2, 2], "output_padding": [1, 0]},
            {"strides": [2, 3], "pads": [0, 1, 1, 1]},
            {"strides": [2, 2], "pads": [2, 0, 0, 2]},
            {"strides": [3, 3], "auto_pad": "SAME_UPPER"},
            {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
            {"strides": [2, 2], "auto_pad": "VALID"},
            {"strides": [2, 2], "output_shape": [18, 22]},
            {"strides": [2, 2], "output_shape": [17, 24]},
            {"dilations": [2, 2]},
        )
    ]
    made += [
        Case("ConvTranspose", [X4, const(floats(4, 2, 2, 2))], {"group": 2, "strides": [2, 2]}, 9),
        Case("ConvTranspose", [X3, const(floats(4, 3, 4))], {"strides": [2], "pads": [1, 1]}, 11),
    ]
    return made


def product_cases() -> list[Case]:
    right = floats(6, 5)
    return [
        Case("Gemm", [X2, const(right), const(floats(5))]),
        Case("Gemm", [X2, const(right.T.copy()), const(floats(5))], {"transB": 1}, 9),
        Case("Gemm", [X2, const(right.T.copy()), const(floats(1, 5))], {"transB": 1}),
        Case("Gemm", [X2, const(right), const(np.float32(0.5))], {"alpha": 0.5, "beta": 2.0}),
        Case("Gemm", [X2, const(right), const(np.float32(0.5))]),
        Case("Gemm", [X2, const(right), const(floats(3, 5))], fixed=True),
        Case("Gemm", [X2.T.copy(), const(right), const(floats(5))], {"transA": 1}, fixed=True),
        Case("Gemm", [X2, const(right)], {}, 11),
        Case("Gemm", [X2, right], {"alpha": 2.0}, fixed=True),
        Case("MatMul", [X2, const(right)]),
        Case("MatMul", [X4, const(floats(11, 7))], {}, 9),
        Case("MatMul", [X4, floats(2, 4, 11, 3)]),
        Case("MatMul", [const(floats(5, 9)), X4]),
        Case("MatMul", [X4, const(floats(4, 11, 3))]),
        Case("MatMul", [X4, const(floats(11))]),
        Case("Einsum", [X3, floats(2, 4, 5)], {"equation": "bci,bcj->bij"}),
        Case("Einsum", [X3, const(floats(10, 3))], {"equation": "b c i, i j -> b c j"}, 12),
    ]


def pool_cases() -> list[Case]:
    hows = [
        {"kernel_shape": [3, 3]},
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]},
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [2, 0, 0, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
        {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [0, 0, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [2, 4], "strides": [1, 2], "auto_pad": "SAME_LOWER"},
        {"kernel_shape": [3, 3], "auto_pad": "VALID"},
    ]
    made = [Case("MaxPool", [X4], how) for how in hows]
    made += [
        Case("MaxPool", [X4], {"kernel_shape": [3, 3], "dilations": [2, 2]}, 10),
        Case("MaxPool", [X4], {"kernel_shape": [3, 2], "dilations": [2, 3], "pads": [1, 1, 2, 0]}, 12),
        Case("MaxPool", [X3], {"kernel_shape": [3], "strides": [2]}, 9),
        Case("MaxPool", [X5], {"kernel_shape": [2, 2, 2], "pads": [1, 0, 1, 1, 0, 1]}, 22),
    ]
    made += [Case("AveragePool", [X4], {**how, "count_include_pad": count}, 19) for how in hows for count in (0, 1)]
    made += [
        Case("AveragePool", [X4], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, 9),
        Case("AveragePool", [X4], {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [1, 1, 1, 1]}, 19),
        Case(
            "AveragePool", [X4], {"kernel_shape": [2, 3], "dilations": [3, 2], "pads": [1, 2, 0, 1], "count_include_pad": 1}, 22
        ),
        Case("AveragePool", [X3], {"kernel_shape": [3], "strides": [2]}, 11),
        Case("AveragePool", [X5], {"kernel_shape": [2, 2, 2]}, 10),
    ]
    made += [
        Case(name, [x], opset=opset) for name in ("GlobalAveragePool", "GlobalMaxPool") for x in (X3, X4, X5) for opset in (9, 22)
    ]
    return made


def norm_cases() -> list[Case]:
    variance = np.abs(C4) + 0.1
    norm = [const(C4), const(C4[::-1].copy()), const(floats(4, seed=9)), const(variance)]
    made = [Case("BatchNormalization", [x, *norm], {"epsilon": 1e-3}, opset) for opset in (9, 14, 15) for x in (X3, X4)]
    made += [Case("BatchNormalization", [floats(3, 4), *norm]), Case("BatchNormalization", [floats(2, 4, 3, 4, 5), *norm])]
    made += [
        Case("InstanceNormalization", [x, const(C4), const(C4 + 1)], {"epsilon": 1e-4}, opset) for x, opset in ((X3, 9), (X4, 17))
    ]
    made += [
        Case("LayerNormalization", [X4, const(floats(11)), const(floats(11, seed=1))]),
        Case("LayerNormalization", [X4, const(floats(9, 11))], {"axis": 2, "epsilon": 1e-3}),
        Case("LayerNormalization", [X4, const(floats(9, 11)), const(floats(9, 11, seed=1))], {"axis": -2}),
        Case("GroupNormalization", [X4, const(C4), const(C4 + 1)], {"num_groups": 2}, 21),
        Case("GroupNormalization", [X4, const(C4[:2].copy()), const(C4[1:3].copy())], {"num_groups": 2}, 18),
        Case("MeanVarianceNormalization", [X4], {"axes": [2, 3]}, 13),
        Case("LRN", [X4], {"size": 3, "alpha": 0.2, "beta": 0.6, "bias": 1.5}, 13),
        Case("LRN", [floats(1, 8, 3, 3)], {"size": 5}, 9),
    ]
    made += [Case("LpNormalization", [X4], {"axis": axis, "p": p}, 9) for axis in (1, -1) for p in (1, 2)]
    for name in ("Softmax", "LogSoftmax"):
        made += [
            Case(name, [X4], {} if axis is None else {"axis": axis}, opset) for opset in (9, 11, 13) for axis in (None, 1, 2, 3)
        ]
        made += [Case(name, [X4], {"axis": -2}, 13), Case(name, [X2], {}, 9)]
    return made


def elementwise_cases() -> list[Case]:
    positive, unit = floats(3, 5, low=0.1), floats(3, 5, low=-0.9, high=0.9)
    made = [Case(name, [X4]) for name in "Abs Ceil Cos Erf Exp Floor Neg Round Sign Sin Atan Sinh Cosh Asinh Tan".split()]
    made += [Case(name, [unit]) for name in "Acos Asin Atanh".split()]
    made += [Case(name, [positive]) for name in "Log Sqrt Reciprocal".split()] + [Case("Acosh", [positive + 1])]
    made += [Case("Round", [np.array([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]], np.float32)])]
    made += [Case(name, [INT]) for name in ("Abs", "Neg", "Sign")]
    for name in ("Add", "Sub", "Mul", "Div"):
        made += [
            Case(name, [X4, const(floats(4, 1, 1, low=0.5))], {}, 9),
            Case(name, [const(floats(4, 1, 1)), np.abs(X4) + 0.1], {}, 13),
            Case(name, [X4, floats(2, 4, 9, 11, seed=7, low=0.5)], {}, 14),
            Case(name, [X4, const(0.7)]),
            Case(name, [const(0.7), np.abs(X4) + 0.1]),
            Case(name, [const(floats(1, 1, 1, 1)), np.abs(X4) + 0.1]),
            Case(name, [floats(2, 3), const(floats(1, 1, 1))], fixed=True),
            Case(name, [INT, const(3, np.int64)]),
            Case(name, [const(7, np.int64), np.abs(INT) + 1]),
            Case(name, [INT, np.abs(INT) + 1]),
        ]
    made += [Case("Pow", [positive, const(p)], {}, opset) for p in (2.0, 0.5, 3.0, -1.5) for opset in (9, 15)]
    made += [
        Case("Pow", [positive, floats(3, 5)]),
        Case("Pow", [INT, const(2, np.int64)]),
        Case("Pow", [positive, const(3, np.int64)]),
    ]
    made += [
        Case("Mod", [X4, const(floats(11))], {"fmod": 1}, 10),
        Case("Mod", [INT, const(4, np.int64)]),
        Case("Mod", [INT, const(-4, np.int64)]),
    ]
    for name in ("Min", "Max", "Sum", "Mean"):
        made += [Case(name, [X2]), Case(name, [X2, const(floats(6))]), Case(name, [X2, floats(3, 6, seed=1), const(0.3)], {}, 13)]
    made += [Case(name, [X2, const(X2[:1])]) for name in ("Equal", "Greater", "Less")]
    made += [Case(name, [X2, const(0.25)], {}, 16) for name in ("GreaterOrEqual", "LessOrEqual", "Greater")]
    yes, no = X2 > 0, X2[:1] > 0.5
    made += [Case(name, [yes, const(no, bool)]) for name in ("And", "Or", "Xor")] + [Case("Not", [yes])]
    made += [Case("Where", [yes, X2, const(0.5)]), Case("Where", [const(no, bool), X2, const(floats(6))], {}, 9)]
    with_nan = np.array([[0.0, np.nan, np.inf, -np.inf]], np.float32)
    made += [Case("IsNaN", [with_nan]), Case("IsInf", [with_nan])]
    made += [Case("CastLike", [X2, const(0, np.int64)], {}, 15)]
    made += [Case("Cast", [X2], {"to": to}) for to in (1, 6, 7, 9, 11)] + [Case("Cast", [INT], {"to": 1}, 9)]
    return made


def activation_cases() -> list[Case]:
    names = "Relu Sigmoid Tanh Softplus Softsign Elu Celu Selu ThresholdedRelu LeakyRelu HardSigmoid".split()
    made = [Case(name, [X4 * 3], {}, 12) for name in names]
    made += [
        Case(name, [X4 * 3], {"alpha": 0.3}) for name in ("Elu", "Celu", "Selu", "ThresholdedRelu", "LeakyRelu", "HardSigmoid")
    ]
    made += [
        Case("HardSigmoid", [X4 * 3], {"alpha": 1 / 6, "beta": 0.5}),
        Case("Selu", [X4], {"alpha": 1.5, "gamma": 1.2}, 9),
        Case("HardSwish", [X4 * 3], {}, 14),
        Case("Mish", [X4 * 3], {}, 18),
        Case("Gelu", [X4], {}, 20),
        Case("Gelu", [X4], {"approximate": "tanh"}, 20),
        Case("Shrink", [X4], {"lambd": 0.8, "bias": 0.2}),
        Case("PRelu", [X4, const(floats(4, 1, 1))], {}, 9),
        Case("PRelu", [X4, const(floats(1, 4, 1, 1))], {}, 16),
        Case("PRelu", [X4, const(floats(1))]),
        Case("PRelu", [X4, const(floats(9, 11))]),
        Case("PRelu", [X2, const(floats(6))]),
        Case("Clip", [X4], {"min": 0.0, "max": 1.5}, 9),
        Case("Clip", [X4], {"max": 0.5}, 6 + 3),
        Case("Clip", [X4, const(-0.5), const(0.5)], {}, 11),
        Case("Clip", [X4, None, const(0.5)]),
        Case("Clip", [X4, const(0.0)]),
        Case("Clip", [X4]),
        Case("Clip", [X4, const(-3.4028234663852886e38), const(3.4028234663852886e38)]),
        Case("Dropout", [X4], {}, 9),
        Case("Dropout", [X4, const(0.5), const(False, bool)], {}, 13),
        Case("Identity", [X4]),
    ]
    return made


def reduction_cases() -> list[Case]:
    names = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSumExp ReduceSumSquare".split()
    made = []
    for name in names:
        made += [
            Case(name, [X4], {"axes": [2, 3]}, 11),
            Case(name, [X4], {"axes": [-1], "keepdims": 0}, 9),
            Case(name, [X4, i64(1, -1)], {"keepdims": 0}, 18),
            Case(name, [X4 * 0.1 + 1], {"keepdims": 0}, 18, fixed=True, tolerance=1e-4 if name == "ReduceProd" else 1e-5),
            Case(name, [X4], {"noop_with_empty_axes": 1}, 18),
        ]
    made += [Case("ReduceSum", [X4, i64(1)], {}, 13), Case("ReduceLogSum", [np.abs(X4) + 0.1], {"axes": [1]}, 13)]
    made += [Case(name, [INT], {"axes": [1]}, 13) for name in ("ReduceMax", "ReduceMean")] + [Case("ReduceSum", [INT, i64(1)])]
    for name in ("ArgMax", "ArgMin"):
        ties = np.array([[1, 3, 3, 1], [2, 2, 0, 0]], np.float32)
        made += [Case(name, [X4], {"axis": 1}, 9), Case(name, [X4], {"axis": -1, "keepdims": 0})]
        made += [Case(name, [ties], {"axis": 1, "select_last_index": last}) for last in (0, 1)]
    made += [
        Case("TopK", [X2], {"k": 3}, 9, outputs=2),
        Case("TopK", [X2, i64(2)], {"axis": 1, "largest": 0}, 11, outputs=2),
        Case("CumSum", [X2, const(1, np.int32)], {"exclusive": 1}),
        Case("CumSum", [X2, const(-1, np.int64)], {"reverse": 1}),
        Case("CumSum", [X2, const(1, np.int64)], {"reverse": 1, "exclusive": 1}),
    ]
    return made


def layout_cases() -> list[Case]:
    made = [
        Case("Reshape", [X4, i64(0, -1)]),
        Case("Reshape", [X4, i64(-1, 4, 99)], {}, 9),
        Case("Reshape", [X4, i64(0, 2, 2, 9, 11)]),
        Case("Reshape", [X4, i64(0, 4, 99, 1)], {}, 14),
        Case("Reshape", [X4, i64(2, 4, -1)], {"allowzero": 1}, fixed=True),
        Case("Reshape", [X4, i64(-1)]),
        *[Case("Flatten", [X4], {"axis": axis}) for axis in (0, 1, 2, -1, 4)],
        Case("Transpose", [X4], {"perm": [0, 2, 3, 1]}),
        Case("Transpose", [X4]),
        Case("Squeeze", [floats(2, 1, 4, 1)], {"axes": [1, 3]}, 9),
        Case("Squeeze", [floats(2, 1, 4, 1), i64(-1)], {}, 13),
        Case("Squeeze", [floats(2, 1, 4, 1)]),
        Case("Unsqueeze", [X2], {"axes": [0, 2]}, 9),
        Case("Unsqueeze", [X2, i64(-1, 1)], {}, 13),
        Case("Unsqueeze", [X2, i64(1)]),
        Case("Expand", [floats(2, 1, 4), i64(1, 3, 4)]),
        Case("Expand", [floats(2, 1, 4), i64(5, 1, 3, 1)]),
        Case("Expand", [X2, i64(1)]),
        Case("Tile", [X2, i64(1, 3)]),
        Case("Tile", [X2, i64(2, 1)]),
        Case("Concat", [X2, floats(3, 2)], {"axis": 1}),
        Case("Concat", [X4, const(floats(2, 1, 9, 11)), X4], {"axis": -3}, fixed=True),
        Case("Split", [X4], {"axis": 3, "split": [4, 7]}, 9, outputs=2),
        Case("Split", [X4, i64(4, 2, 3)], {"axis": -2}, 13, outputs=3),
        Case("Split", [X4], {"axis": 1}, 13, outputs=2),
        Case("Split", [X4], {"axis": 2, "num_outputs": 2}, 18, outputs=2),
        Case("DepthToSpace", [floats(2, 12, 3, 4)], {"blocksize": 2}),
        Case("DepthToSpace", [floats(2, 12, 3, 4)], {"blocksize": 2, "mode": "CRD"}),
        Case("SpaceToDepth", [floats(2, 3, 4, 6)], {"blocksize": 2}),
        Case("Shape", [X4], {}, 9),
        Case("Shape", [X4], {"start": 1, "end": -1}, 15),
        Case("Size", [X4]),
        Case("ConstantOfShape", [i64(2, 3)]),
        Case("ConstantOfShape", [i64(2)], {"value": helper.make_tensor("v", TensorProto.INT64, [1], [7])}),
        Case("Constant", [], {"value_floats": [0.5, 2.0]}),
        Case("Constant", [], {"value_int": 3}),
        Case("Constant", [], {"value": helper.make_tensor("v", TensorProto.FLOAT, [2], [1.0, 2.0])}, 9),
        Case("Range", [const(1, np.int64), const(9, np.int64), const(3, np.int64)]),
        Case("Range", [const(0.5), const(2.0), const(0.25)]),
    ]
    for opset in (11, 19):
        for mode in ("constant", "reflect", "edge", "wrap"):
            if mode == "wrap" and opset < 19:
                continue
            made += [
                Case("Pad", [X4, i64(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": mode}, opset),
                Case("Pad", [X4, i64(0, 1, 0, 2, 0, 2, 0, 1)], {"mode": mode}, opset),
                Case("Pad", [X3, i64(0, 0, 2, 0, 0, 3)], {"mode": mode}, opset),
            ]
    made += [
        Case("Pad", [X4], {"pads": [0, 0, 1, 1, 0, 0, 1, 2], "value": 0.5}, 9),
        Case("Pad", [X4], {"pads": [0, 0, 1, 1, 0, 0, 1, 2], "mode": "reflect"}, 9),
        Case("Pad", [X4, i64(0, 0, -1, 2, 0, 0, -2, 1), const(1.5)], {}, 13),
        Case("Pad", [X4, i64(1, 0, 2, 1), const(1.5), i64(-1, 2)], {}, 18),
        Case("Pad", [X4, i64(0, 0, -1, 2, 0, 0, -2, 1)], {"mode": "edge"}, 13),
    ]
    return made


def index_cases() -> list[Case]:
    points = np.array([[0, 1], [2, 3], [1, 5]], np.int64)
    far = 2**63 - 1
    return [
        Case("Slice", [X4], {"starts": [1, -5], "ends": [4, 1000], "axes": [1, 3]}, 9),
        Case("Slice", [X4], {"starts": [0, 1], "ends": [9, 3]}, 9),
        *[
            Case("Slice", [X4, i64(*s), i64(*e), i64(*a), i64(*t)], note=f"-{s}{e}{a}{t}")
            for s, e, a, t in (
                ((1,), (far,), (2,), (2,)),
                ((-1,), (-far,), (3,), (-1,)),
                ((7, 2), (0, far), (-1, 1), (-3, 1)),
                ((-4,), (-1,), (2,), (1,)),
                ((0,), (far,), (0,), (1,)),
            )
        ],
        Case("Slice", [X4, i64(0, 1), i64(far, 3)], {}, 10),
        Case("Slice", [X4, i64(1), i64(2), i64(0)], fixed=True),
        Case("Slice", [X4, i64(3), i64(3), i64(2)]),
        Case("Gather", [X4, const(1, np.int64)], {"axis": 1}),
        Case("Gather", [X4, const(-1, np.int64)], {"axis": 2}),
        Case("Gather", [X4, i64(2, 0, -1)], {"axis": -1}, 11),
        Case("Gather", [X4, const([[0, 1], [3, 2]], np.int32)], {"axis": 1}, 9),
        Case("Gather", [const(floats(10, 4)), np.array([[1, 2, 9], [0, 5, 5]], np.int64)]),
        Case("Gather", [const(floats(3, 4)), np.array([[1, -1], [2, 0]], np.int64)], {"axis": 1}),
        Case("Gather", [X4, np.array([1, -2], np.int64)], {"axis": 2}, fixed=True),
        Case("GatherElements", [X2, np.array([[0, 1], [-1, 2], [3, 4]], np.int64)], {"axis": 1}, fixed=True),
        Case("GatherND", [X2, const(points, np.int64)], fixed=True),
        Case("GatherND", [X4, const([[1], [0]], np.int64)], {}, 11, fixed=True),
        Case("GatherND", [X4, np.array([[[0, 1]], [[3, 8]]], np.int64)], {"batch_dims": 1}, 12),
        Case("ScatterND", [X2, const(points, np.int64), floats(3)], fixed=True),
        Case("ScatterND", [X2, const(points, np.int64), floats(3)], {"reduction": "add"}, 16, fixed=True),
        Case("ScatterND", [X2, const([[1]], np.int64), floats(1, 6)], {}, 11, fixed=True),
        *[
            Case(
                "ScatterElements",
                [X2, const([[0, 1], [-1, 2]], np.int64), floats(2, 2)],
                {"axis": 1, "reduction": how},
                18,
                fixed=True,
            )
            for how in ("none", "add", "mul", "min", "max")
        ],
        Case("Scatter", [X2, const([[0, 1], [-1, 2]], np.int64), floats(2, 2)], {"axis": 1}, 9, fixed=True),
        *[Case("Trilu", [X4, const(k, np.int64)], {"upper": upper}) for k in (0, 2, -1) for upper in (0, 1)],
        Case("Trilu", [X4]),
        Case("OneHot", [np.array([[0, 2], [-1, 9]], np.int64), const(4, np.int64), const([0.5, 3.0])]),
        Case("OneHot", [np.array([[0, 2], [1, 3]], np.int64), const([4], np.int64), const([0.0, 1.0])], {"axis": 1}, 11),
    ]


def resize_cases() -> list[Case]:
    made = []
    modes = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
    scales = [(1.0, 1.0, 2.0, 2.0), (1.0, 1.0, 0.6, 1.7), (1.0, 1.0, 0.5, 0.25)]
    for how, scale in itertools.product(modes, scales):
        opset = 19 if how == "half_pixel_symmetric" else 13
        inputs, placed = [X4, None, const(scale)], {"coordinate_transformation_mode": how}
        made += [Case("Resize", inputs, {"mode": mode, **placed}, opset, note=str(scale)) for mode in ("linear", "cubic")]
        for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
            made += [Case("Resize", inputs, {"mode": "nearest", "nearest_mode": nearest, **placed}, opset, note=str(scale))]
    half = {"coordinate_transformation_mode": "half_pixel"}
    made += [
        Case(
            "Resize",
            [X4, const(np.zeros(0)), const(np.zeros(0)), i64(2, 4, 18, 33)],
            {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
            11,
            fixed=True,
        ),
        Case("Resize", [X4, None, None, i64(2, 4, 7, 20)], {"mode": "linear", **half}, fixed=True),
        Case("Resize", [X4, None, None, i64(7, 20)], {"mode": "linear", "axes": [2, 3]}, 18),
        Case(
            "Resize",
            [X4, None, None, i64(7, 30)],
            {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"},
            18,
        ),
        Case(
            "Resize",
            [X4, None, None, i64(7, 30)],
            {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": "not_smaller"},
            18,
        ),
        Case(
            "Resize", [X4, None, const((1.0, 1.0, 0.6, 1.7))], {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}, 13
        ),
        Case("Resize", [X4, None, const((1.0, 1.0, 2.0, 2.0))], {"mode": "cubic", "cubic_coeff_a": -0.5}, 13),
        Case("Resize", [X4, None, const((1.0, 1.0, 0.4, 0.55))], {"mode": "linear", "antialias": 1}, 18),
        Case("Resize", [X4, None, const((1.0, 1.0, 0.4, 0.55))], {"mode": "cubic", "antialias": 1}, 18),
        Case("Resize", [X4, None, const((1.0, 1.0, 0.4, 0.55))], {"mode": "cubic", "antialias": 1, "exclude_outside": 1}, 18),
        Case(
            "Resize",
            [X4, const((0, 0, 0.2, -0.1, 1, 1, 0.9, 1.1)), None, i64(2, 4, 6, 8)],
            {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 0.3},
            13,
            fixed=True,
        ),
        Case(
            "Resize",
            [X4, const(np.zeros(0)), const((1.0, 1.0, 2.0, 2.0))],
            {"mode": "nearest", "coordinate_transformation_mode": "tf_half_pixel_for_nn"},
            11,
        ),
        Case("Resize", [X3, None, const((1.0, 1.0, 2.5))], {"mode": "linear"}, 13),
        Case("Resize", [X5, None, const((1.0, 1.0, 2.0, 1.5, 0.8))], {"mode": "nearest"}, 13),
        Case("Resize", [X5, None, const((1.0, 1.0, 2.0, 1.5, 0.8))], {"mode": "linear"}, 13),
        Case("Resize", [X4, None, const((1.0, 1.0, 1.0, 1.0))], {"mode": "linear"}, 13),
        Case("Resize", [X4, const((1.0, 1.0, 2.0, 3.0))], {"mode": "nearest"}, 10),
        Case("Resize", [X4, const((1.0, 1.0, 2.0, 1.3))], {"mode": "linear"}, 10),
        *[
            Case(
                "GridSample", [X4, floats(2, 5, 6, 2) * 0.6], {"mode": mode, "padding_mode": how, "align_corners": corners}, opset
            )
            for opset, mode in ((16, "bilinear"), (16, "bicubic"), (20, "linear"), (20, "nearest"))
            for how, corners in (("zeros", 0), ("border", 1), ("reflection", 0))
        ],
        Case("Upsample", [X4, const((1.0, 1.0, 2.0, 3.0))], {"mode": "nearest"}, 9),
        Case("Upsample", [X4, const((1.0, 1.0, 2.0, 2.0))], {"mode": "linear"}, 9),
    ]
    return made


def recurrent_cases() -> list[Case]:
    made = []
    x = floats(5, 2, 3)
    for kind, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
        for direction in ("forward", "reverse", "bidirectional"):
            count = 2 if direction == "bidirectional" else 1
            weights = [const(floats(count, gates * 4, n, seed=n, low=-0.5, high=0.5)) for n in (3, 4)]
            bias, state = const(floats(count, gates * 8, seed=5)), const(floats(count, 2, 4, seed=6))
            states = [state, const(floats(count, 2, 4, seed=8))] if kind == "LSTM" else [state]
            for how in ({}, {"linear_before_reset": 1}) if kind == "GRU" else ({},):
                attributes = {"hidden_size": 4, "direction": direction, **how}
                outputs = 3 if kind == "LSTM" else 2
                made += [
                    Case(kind, [x, *weights, bias], attributes, outputs=outputs, fixed=True),
                    Case(kind, [x, *weights], attributes, 9, outputs=outputs, fixed=True),
                    Case(kind, [x, *weights, bias, None, *states], attributes, outputs=outputs, fixed=True),
                ]
    weights = [const(floats(1, 4, n, seed=n)) for n in (3, 4)]
    made.append(Case("RNN", [x, *weights], {"hidden_size": 4, "activations": ["Relu"]}, outputs=2, fixed=True))
    made.append(
        Case(
            "LSTM",
            [x, *[const(floats(1, 16, n, seed=n)) for n in (3, 4)], None, const([5, 5], np.int32)],
            {"hidden_size": 4},
            outputs=1,
            fixed=True,
        )
    )
    return made


def fused_cases() -> list[Case]:
    domain = {"domain": "com.microsoft"}
    x = floats(2, 5, 8)
    return [
        Case("FusedConv", [X4, const(W), const(B6)], {"activation": "Relu", "pads": [1, 1, 1, 1]}, **domain),
        Case("FusedConv", [X4, const(W), const(B6)], {"activation": "LeakyRelu", "activation_params": [0.2]}, **domain),
        Case("FusedConv", [X4, const(W), const(B6)], {"activation": "Clip", "activation_params": [0.0, 6.0]}, **domain),
        Case("FusedConv", [X4, const(W), const(B6)], {"activation": "HardSigmoid", "activation_params": [0.2, 0.5]}, **domain),
        Case("FusedConv", [X4, const(W), const(B6), floats(2, 6, 7, 9)], {"activation": "Relu"}, **domain),
        Case("FusedGemm", [X2, const(floats(6, 5)), const(floats(5))], {"activation": "Relu"}, **domain),
        Case("FusedMatMul", [x, const(floats(8, 3))], {"alpha": 0.5}, **domain),
        Case("FusedMatMul", [x, floats(2, 4, 8)], {"transB": 1}, **domain),
        Case("FusedMatMul", [floats(2, 8, 5), floats(2, 8, 4)], {"transA": 1, "alpha": 2.0}, **domain),
        Case("Gelu", [x], **domain),
        Case("BiasGelu", [x, const(floats(8))], **domain),
        Case("FastGelu", [x, const(floats(8))], **domain),
        Case("QuickGelu", [x], {"alpha": 1.702}, **domain),
        Case("QuickGelu", [x], {"alpha": 1.0}, **domain),
        Case(
            "SkipLayerNormalization",
            [x, x[::-1].copy(), const(floats(8)), const(floats(8, seed=1)), const(floats(8, seed=2))],
            {"epsilon": 1e-5},
            **domain,
        ),
        Case("SkipSimplifiedLayerNormalization", [x, x[::-1].copy(), const(floats(8))], {"epsilon": 1e-5}, **domain),
        Case("SimplifiedLayerNormalization", [x, const(floats(8))], {"epsilon": 1e-5, "axis": -1}),
    ]


CASES = [
    *conv_cases(),
    *product_cases(),
    *pool_cases(),
    *norm_cases(),
    *elementwise_cases(),
    *activation_cases(),
    *reduction_cases(),
    *layout_cases(),
    *index_cases(),
    *resize_cases(),
    *recurrent_cases(),
    *fused_cases(),
]
FIRST = {case.operator: case for case in reversed(CASES)}


QUANTIZED = {*quantized.TABLE}
"""Operations of test_onnx_quantized.py."""


def test_every_operation_of_the_table_has_a_case() -> None:
    compared = {case.operator for case in CASES if not case.domain}
    assert set(OPERATORS) - QUANTIZED == compared
    assert set(MICROSOFT) - {*quantized.MICROSOFT} - {case.operator for case in CASES} == set()


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_node_gives_the_numbers_of_onnx_runtime(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, export=False)


@pytest.mark.parametrize("case", FIRST.values(), ids=repr)
def test_a_node_goes_through_torch_export(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, export=True)
