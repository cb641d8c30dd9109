"""Figures that others have published for ImageNet. None of them was measured here; they stand beside the table, never in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Top-1 in percent, as published.

    Attributes
    ----------
    network, what
        Of whom, and under which quantization.
    score, exact
        In fixed point and in float.
    source
        Where it was published.
    """

    network: str
    what: str
    exact: float
    score: float
    source: str

    @property
    def loss(self) -> float:
        """Points lost against float."""
        return self.exact - self.score


_TI = "Texas Instruments, edgeai-modelopt, its quantization pages"
_WHITEPAPER = "Krishnamoorthi 2018, arXiv:1806.08342"
_DFQ = "Nagel et al. 2019 (Data-Free Quantization), arXiv:1906.04721"

FIGURES = (
    Published("MobileNetV2-lite", "8 bits", 72.938, 72.476, _TI),
    Published("ResNet50", "8 bits", 76.13, 75.052, _TI),
    Published("MobileNetV2", "per tensor, asymmetric, after training", 71.9, 0.1, _WHITEPAPER),
    Published("MobileNetV2", "per channel, symmetric, after training", 71.9, 69.8, _WHITEPAPER),
    Published("ResNet50", "per tensor, asymmetric, after training", 75.2, 75.0, _WHITEPAPER),
    Published("ResNet50", "per channel, symmetric, after training", 75.2, 75.1, _WHITEPAPER),
)
#: Without a float figure of their own in what was read.
SCORES = (
    ("MobileNetV2", "per tensor, as it is", 0.1, _DFQ),
    ("MobileNetV2", "per tensor, with equalization", 69.91, _DFQ),
    ("MobileNetV2", "per tensor, with equalization and bias absorption", 70.92, _DFQ),
)


def table() -> str:
    """The figures in Markdown."""
    lines = ["| network | what | float | fixed point | loss | source |", "|---|---|---|---|---|---|"]
    lines += [f"| {f.network} | {f.what} | {f.exact:g} | {f.score:g} | {f.loss:.2f} | {f.source} |" for f in FIGURES]
    lines += [f"| {network} | {what} | – | {score:g} | – | {source} |" for network, what, score, source in SCORES]
    return "\n".join(lines)
