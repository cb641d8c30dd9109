"""Seeds pooled: the mean difference over all of them, with an interval that knows that they share images.

Each seed evaluates 741 of the same 997 images, so the paired differences of one image under several seeds are no independent
samples. Image *i* is evaluated under n_i seeds with the sum D_i of its differences; the mean is D / N with D = Σ D_i, N = Σ n_i,
and images are its clusters: the variance of a ratio of sums, Σ (D_i − n_i c)² / N², around c (Cochran, Sampling Techniques,
1977, section 6.4). Two images are added that count n̄ = N / (number of images) each, one gained and one lost, so that the
interval does not collapse where no image differs; then N includes them, and c = D / (N + 2 n̄). For a single seed this is the
adjusted Wald interval of Bonett and Price (2012), `qkit.execution.metrics.paired_interval`. It says how sure the mean is for
other images of that kind, with these seeds and this network.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from qkit.execution.statistics import CONFIDENCE, Interval

#: One seed: ids of the images, and a difference for each.
Differences = tuple[Sequence[Hashable], np.ndarray]


def pooled(seeds: Sequence[Differences], confidence: float = CONFIDENCE) -> Interval:
    """Mean of the paired differences over all seeds; `n` is the number of distinct images.

    Raises
    ------
    ValueError
        If there are no seeds, or ids and differences do not match.
    """
    if not seeds:
        raise ValueError("there are no seeds to pool")
    index: dict[Hashable, int] = {}
    sums: list[float] = []
    counts: list[int] = []
    for ids, differences in seeds:
        for image, difference in zip(ids, differences.tolist(), strict=True):
            at = index.setdefault(image, len(index))
            if at == len(sums):
                sums.append(0.0)
                counts.append(0)
            sums[at] += difference
            counts[at] += 1
    total, count, images = sum(sums), sum(counts), len(sums)
    weight = count / images
    d = np.array([*sums, weight, -weight])
    n = np.array([*counts, weight, weight])
    centre = total / n.sum()
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * math.sqrt(float(np.square(d - n * centre).sum())) / n.sum()
    return Interval(total / count, max(centre - half, -1.0), min(centre + half, 1.0), images)
