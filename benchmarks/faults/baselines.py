"""What simpler rules say on the same cases: their raw answers, from which scoring is done later.

They get what the diagnosis gets: the calibrated study on the same images.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from benchmarks.faults.setup import Batches, lanes_of
from qkit.execution.lanes import Lane, run_lanes
from qkit.study import Study

#: PyTorch's model report calls a tensor one with outliers where its greatest magnitude over this percentile exceeds this ratio.
PERCENTILE, RATIO = 0.975, 3.5
#: "Close" for the rule of 16 and 8 bits.
CLOSE = 0.01
#: How many layers of a ranking are kept.
KEPT = 5


def answers(study: Study, calibration: Batches) -> dict[str, Any]:
    """Raw answers of all baselines."""
    scores = study.evaluate(lanes_of(study), progress=False)
    loss = {lane: scores.loss(lane).value for lane in ("int16", "int8")}
    table = study.capture({"now": study.plan}, batches=None, progress=False).table()
    return {
        "fork": {"verdict": fork(loss["int16"], loss["int8"]), **loss},
        "sqnr": _lowest(study, table["now"]["sqnr"]),
        "local sqnr": _lowest(study, table["now"]["local sqnr"]),
        "isolated": _isolated(study),
        "outliers": _outliers(study, calibration),
    }


def fork(int16: float, int8: float) -> str:
    """Verdict from the two losses alone."""
    if int16 > CLOSE:
        return "not-quantization"
    return "quantization" if int8 > CLOSE else "no-degradation"


def _names(study: Study, tap: str) -> list[str]:
    return [tap, study.graph.operation(tap).layer]


def _lowest(study: Study, column: Any) -> list[list[str]]:
    finite = column[column.map(math.isfinite)].sort_values()
    return [_names(study, tap) for tap in finite.index[:KEPT]]


def _isolated(study: Study) -> dict[str, Any]:
    table = study.sensitivity("only", lane=study.plan, progress=False).table()
    return {"layers": [_names(study, tap) for tap in table.index[:KEPT]], "losses": table["loss"][:KEPT].tolist()}


def _outliers(study: Study, calibration: Batches) -> dict[str, Any]:
    """Ratios of every tap's float values over the first two calibration batches, greatest first, above `RATIO`."""
    ratios: dict[str, float] = {}

    def look(op: Any, values: Any) -> None:
        magnitude = values["float"].abs().flatten()
        rank = max(1, math.ceil(PERCENTILE * magnitude.numel()))
        usual = float(magnitude.kthvalue(rank).values)
        # a tensor of zeros but for a few is all outliers
        ratio = float(magnitude.max()) / usual if usual > 0 else (math.inf if float(magnitude.max()) > 0 else 1.0)
        ratios[op.name] = max(ratio, ratios.get(op.name, 0.0))

    with torch.no_grad():
        for x, _ in calibration[:2]:
            run_lanes(study.graph, [Lane("float")], (x,), observe=look)
    ranked = sorted((r for r in ratios.items() if r[1] > RATIO), key=lambda item: -item[1])
    return {
        "layers": [_names(study, tap) for tap, _ in ranked[:KEPT]],
        "ratios": [min(ratio, 1e9) for _, ratio in ranked[:KEPT]],
        "fired": len(ranked),
    }
