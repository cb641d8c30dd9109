"""Scale and zero point of a tensor, against the kit's: a constant factor, an offset, or codes that nobody gave a scale."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from qkit.engines.traces.aligned import Mend, Problem
from qkit.engines.traces.dumped_tensors import TraceTensor
from qkit.engines.traces.matching import correlation

#: A factor or an offset is looked for where the values are this much alike otherwise.
_ALIKE = 0.95
#: Quantization, clipping included, does not change a tensor by more than this factor.
_FACTOR = 0.4
_OFFSET = 0.25
#: A factor is a power of two where its logarithm is this near to a whole number.
_EXACT = 0.002


def check_grid(
    x: np.ndarray, y: np.ndarray, tensor: TraceTensor, tap: str, mend: Mend
) -> tuple[Mend, Problem | None]:  # fmt: skip
    """What has to be undone beyond `mend` so that `x`, the trace's real numbers, have the scale and offset of the kit's `y`.

    A factor or an offset is told from what quantization does by being the same for all elements. It is undone where the number is
    exact: a reciprocal, a power of two, a whole number of codes; otherwise it is an error.
    """
    if tensor.is_integer and tensor.step is None:
        return _fit(x, y, tensor, tap, mend)
    if not correlation(x, y) >= _ALIKE:
        return mend, None
    x, y = x.reshape(-1).astype(np.float64), y.reshape(-1).astype(np.float64)
    large = np.abs(y) > 0.5 * np.sqrt(np.mean(y * y))
    ratio = x[large] / y[large]
    low, factor, high = np.quantile(ratio, (0.25, 0.5, 0.75))
    if factor > 0 and high - low < 0.25 * factor and abs(math.log2(factor)) > _FACTOR:
        return _factor(float(factor), tensor, tap, mend)
    distance = x - y
    low, offset, high = np.quantile(distance, (0.25, 0.5, 0.75))
    if abs(offset) > _OFFSET * y.std() and high - low < 0.5 * abs(offset):
        return _offset(float(offset), tensor, tap, mend)
    return mend, None


def _factor(factor: float, tensor: TraceTensor, tap: str, mend: Mend) -> tuple[Mend, Problem]:
    step = tensor.step if tensor.is_integer else None
    if step is not None and len(step) == 1 and abs(factor / step[0] ** 2 - 1.0) < 0.1:
        found = (
            f"its scale is the reciprocal of what is meant: values are {factor:.4g} times the kit's, and {step[0]:.6g}² is that."
        )
        remedy = 'Its scale was inverted. Say "convention": "divide" (q / scale, TIDL\'s) or "multiply" (q × scale, torch\'s).'
        grid = tuple(1.0 / s for s in step)
        return replace(mend, step=grid), Problem(tensor.name, tap, "scale", found, remedy, 0.95, "mended")
    power = round(math.log2(factor))
    # 256 is told from 255, by which images are often divided
    if abs(math.log2(factor) - power) < _EXACT:
        found = f"its values are 2^{power} times the kit's, all alike."
        remedy = "They were divided by that. Correct the scale in the manifest."
        if step is not None:
            return (
                replace(mend, step=tuple(s / 2.0**power for s in step)),
                Problem(tensor.name, tap, "scale", found, remedy, 0.9, "mended"),
            )
        return replace(mend, factor=2.0**power), Problem(tensor.name, tap, "scale", found, remedy, 0.9, "mended")
    found = f"its values are {factor:.4g} times the kit's, all alike: quantization does not do that."
    return mend, Problem(tensor.name, tap, "scale", found, "Give its true scale in the manifest.", 0.9)


def _offset(offset: float, tensor: TraceTensor, tap: str, mend: Mend) -> tuple[Mend, Problem]:
    if tensor.is_integer and tensor.step is not None and len(tensor.step) == len(tensor.zero_point) == 1:
        codes = offset / tensor.step[0]
        info = np.iinfo(tensor.dtype.name)
        zero = tensor.zero_point[0] + round(codes)
        if abs(codes - round(codes)) < 0.2 and info.min <= zero <= info.max:
            found = f"its values lie {offset:.4g} from the kit's, all alike: {round(codes)} codes, a zero point of {zero}."
            remedy = f"Zero point {zero} was taken in place of {tensor.zero_point[0]}. Correct it in the manifest."
            return replace(mend, zero_point=(zero,)), Problem(tensor.name, tap, "zero-point", found, remedy, 0.9, "mended")
    found = f"its values lie {offset:.4g} from the kit's, all alike: quantization does not do that."
    return mend, Problem(tensor.name, tap, "zero-point", found, "Subtract it in the dump, or give the zero point.", 0.9)


def _fit(codes: np.ndarray, y: np.ndarray, tensor: TraceTensor, tap: str, mend: Mend) -> tuple[Mend, Problem]:
    """A step and zero point for codes that came without: by least squares, from codes that are not at the grid's ends."""
    q, y = codes.reshape(-1).astype(np.float64), y.reshape(-1).astype(np.float64)
    q = q + tensor.zero_point[0]
    inner = (q > q.min()) & (q < q.max())
    r = correlation(q, y)
    if inner.sum() < 8 or not r >= _ALIKE or np.ptp(q[inner]) == 0:
        found = f"its codes came without a scale, and follow the kit's values too little to fit one (correlation {r:.3f})."
        return mend, Problem(tensor.name, tap, "no-scale", found, "Give its scale in the manifest.", 1.0)
    a, b = q[inner], y[inner]
    step = float(np.cov(a, b, bias=True)[0, 1] / a.var())
    zero = round(a.mean() - b.mean() / step) if step > 0 else 0
    info = np.iinfo(tensor.dtype.name)
    if step <= 0 or not info.min <= zero <= info.max:
        found = f"its codes came without a scale, and the best fit ({step:.4g}, zero point {zero}) is no grid."
        return mend, Problem(tensor.name, tap, "no-scale", found, "Give its scale in the manifest.", 1.0)
    found = f"its codes came without a scale; {step:.6g} with zero point {zero} fits the kit's values (correlation {r:.4f})."
    remedy = "A wrong scale cannot be seen in this tensor. Give it in the manifest."
    return replace(mend, step=(step,), zero_point=(zero,)), Problem(tensor.name, tap, "no-scale", found, remedy, r, "mended")
