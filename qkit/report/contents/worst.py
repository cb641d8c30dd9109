"""Which layers are the worst, by which rule, and what a person needs to see of them; all as plain data."""

from __future__ import annotations

import numpy as np
import pandas as pd

BINS = 160
BY_LOSS = "alone loss"
BY_SQNR = "local sqnr"


def choose(layers: pd.DataFrame, lane: str, sensitivity: pd.DataFrame | None, count: int) -> dict[str, list[str]]:
    """The `count` worst taps and the rules that each meets, in order: alternately the greatest loss alone, as far as its
    interval excludes none, and the least local SQNR, as far as it is finite.
    """
    by_loss: list[str] = []
    if sensitivity is not None:
        by_loss = [str(name) for name in sensitivity.index[sensitivity["loss low"] > 0]]
    figures = layers[lane, "local sqnr"] if (lane, "local sqnr") in layers else pd.Series(dtype=float)
    finite = figures[figures < np.inf].sort_values(kind="stable")
    by_sqnr = [str(name) for name in finite.index]
    chosen: list[str] = []
    for i in range(max(len(by_loss), len(by_sqnr))):
        for names in (by_loss, by_sqnr):
            if i < len(names) and names[i] not in chosen and len(chosen) < count:
                chosen.append(names[i])
    rules: dict[str, list[str]] = {}
    for name in chosen:
        rules[name] = [BY_LOSS] if name in by_loss else []
        # a layer is named by the rule only where it is among as many of that rule as are shown
        rules[name] += [BY_SQNR] if name in by_sqnr[:count] else []
    return rules
