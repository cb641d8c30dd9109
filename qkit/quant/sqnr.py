"""Signal to quantization noise ratio: the one formula."""

from __future__ import annotations

import numpy as np


def sqnr(signal: float | np.ndarray, noise: float | np.ndarray) -> np.ndarray:
    """10 log10(signal / noise) of two energies, in dB: infinite without noise, minus infinity for noise without signal."""
    signal, noise = np.asarray(signal, float), np.asarray(noise, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 10.0 * (np.log10(signal) - np.log10(noise))
    return np.where(noise == 0.0, np.inf, ratio)
