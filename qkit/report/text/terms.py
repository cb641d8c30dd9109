"""What the report says in words: verdicts, columns, units, terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

#: Layers that the sensitivity chart shows.
MOST_BARS = 20


class Meaning(NamedTuple):
    """A verdict in plain words: what it means, and what to do next."""

    headline: str
    meaning: str
    then: str


VERDICTS: Mapping[str, Meaning] = {
    "no-degradation": Meaning(
        "No degradation",
        "Both integer lanes score as float does, within the tolerance: quantization costs this network nothing that these "
        "data can show.",
        "There is nothing to fix here. If a real engine scores lower than the int8 lane does, its cause lies in that engine "
        "or in the data it is fed: compare its tensors with this lane's, layer by layer, from the input on.",
    ),
    "quantization": Meaning(
        "It is quantization",
        "At 16 bits the same graph, data and way of choosing ranges keep the score, so these are sound. The loss comes from "
        "the coarse steps of 8 bits.",
        "Go through the worst layers below, worst first. The cheap cures come before any training: a scale per channel for "
        "the weights, evened-out channel ranges, another range for a single tensor, 16 bits for a single layer. Only what "
        "they leave is a case for quantization-aware training.",
    ),
    "not-quantization": Meaning(
        "It is not quantization",
        "The score is already lost where rounding is negligible: in float, or at 16 bits, whose steps are 256 times finer than "
        "those of 8 bits. More bits or quantization-aware training will not bring it back.",
        "Check in this order: the float score itself (checkpoint, class order, image size, channel order, mean and standard "
        "deviation of the inputs), that calibration and evaluation data come from one distribution, the clipped shares of "
        "the int16 lane in the table of layers, and the remarks on the graph.",
    ),
    "both": Meaning(
        "Quantization, and something else",
        "Something is wrong that rounding does not explain, and 8 bits lose a further part on top of it.",
        "Settle the part that is not quantization first (checkpoint and preprocessing, calibration data, ranges that clip at "
        "16 bits), then measure again: what 8 bits lose may look different after that.",
    ),
    "inconclusive": Meaning(
        "The sample is too small to tell",
        "The intervals are too wide: these samples fit a loss that matters as well as none at all.",
        "Evaluate on more samples; the sentence above says about how many. Until then, treat the order of the layers below as "
        "a hint and not as a finding.",
    ),
}

#: Units of the tables' columns, by the name within a lane's group. A tensor's own units are those of its float values.
UNITS: Mapping[str, str] = {
    "kind": "kind of operation",
    "shape": "of one sample, channels first",
    "weight": "name of its weight, empty where there is none",
    "macs": "multiply-accumulates per sample",
    "min": "tensor's units",
    "max": "tensor's units",
    "rms": "tensor's units",
    "channel spread": "ratio: greatest max |w| of a channel over the least (channels of zeros left out)",
    "scale": "tensor's units per step; the greatest where there is one per channel",
    "zero point": "integer code of 0; empty where there is one per channel",
    "sqnr": "dB, accumulated from the input to here; inf: no error at all",
    "local sqnr": "dB, this layer's quantization alone on float inputs; inf: no error at all",
    "cosine": "cosine of the angle to the float tensor, -1 to 1",
    "mean error": "mean absolute error, tensor's units",
    "max error": "greatest absolute error, tensor's units",
    "clipped": "share of elements beyond the grid's ends, 0 to 1",
    "used": "share of the grid's range between the lane's extremes, 0 to 1",
    "rounding": "mean squared error of the tensor's own grid inside its ends, tensor's units squared",
    "clipping": "mean squared error of the tensor's own grid beyond its ends, tensor's units squared",
    "alone loss": "units of the score: loss with this layer alone in the 8-bit lane's grids, with its 95 % interval",
}

GLOSSARY: Mapping[str, str] = {
    "Lane": "One way of executing the network: in float, with every tensor on a 16-bit grid, on an 8-bit grid. All lanes see "
    "the same samples, so their differences are judged on pairs.",
    "Tap": "A tensor that an integer engine holds, named by the module that produces it; batch norm and clamping activations "
    "are folded into their convolution.",
    "SQNR": "Signal to quantization noise ratio in decibels: power of the float tensor over power of the error. Higher is "
    "better; 6 dB are one bit, 20 dB are an error of a tenth, 0 dB an error as large as the tensor. ∞ means that the lane's "
    "tensor equals float's exactly.",
    "Accumulated and local": "Accumulated: the lane's tensor against float's, with all errors from the input on. Local: only "
    "this layer (its weight, bias and output) is quantized and its inputs are float, which shows the layer that makes an "
    "error, not those that inherit it.",
    "Clipped": "Share of elements that lie beyond the ends of the grid and are cut to them. A little is often right: finer "
    "steps for all the others pay for it.",
    "Used": "Share of the grid's range that the values reach. Far below 100 % the range is too wide and its steps are coarser "
    "than need be.",
    "Scale and zero point": "The grid: a value is (code − zero point) · scale. The scale is the step between neighbours, the "
    "zero point the integer code that stands for 0.",
    "Rounding and clipping": "The two parts of a grid's own squared error: of elements inside its ends, and of elements beyond.",
    "95 % interval": "Of the same measurement on other samples of this kind, 95 of 100 such intervals would hold the true "
    "value. Losses are compared sample by sample, which makes their intervals narrower than those of two scores suggest.",
}

#: What a cause means, for somebody who meets it for the first time.
CAUSES: Mapping[str, str] = {
    "weight-channel-imbalance": (
        "The channels of this weight differ widely in their ranges and share one step, which the widest of them sets. The "
        "narrow channels are left with a few codes, or round to 0 as a whole."
    ),
    "weight-outlier": (
        "Single weights lie far from all others and stretch the range, so that the many in the middle share few codes."
    ),
    "activation-outlier": (
        "Rare values lie far from all others and stretch this tensor's range; the usual values share few codes."
    ),
    "activation-channel-imbalance": (
        "The channels of this tensor differ widely in their ranges and share one step, which the widest sets. A factor "
        "moved from one layer's weights to the next evens them out without changing the network."
    ),
    "range-too-narrow": "The range ends before the values do: what lies beyond is cut to its ends.",
    "range-too-wide": "The range reaches far beyond the values, and every step of the grid is coarser than it need be.",
    "bias-shift": (
        "The rounding errors of this weight do not cancel: they shift the mean of the layer's output, channel by channel. "
        "A correction of the biases takes the shift back at no cost."
    ),
    "signed-grid-on-one-sided-tensor": (
        "The tensor has one sign only and its grid has two: half of the codes are never used, which is one bit lost."
    ),
    "power-of-two-scale": (
        "The scale has to be a power of two and is rounded up to it, so that up to half of the codes are not used."
    ),
    "mismatched-join": (
        "Tensors of very different ranges meet in one addition or concatenation and share one grid, which is too coarse "
        "for the smaller of them."
    ),
    "bias-width": "The biases have too few bits for the scale of the accumulator: they saturate or are rounded coarsely.",
    "insufficient-bits": (
        "Nothing is wrong with the range: the steps of so few bits are too coarse for what this tensor carries."
    ),
    "calibration-mismatch": (
        "The calibration data and the evaluation data do not come from one distribution, so that the ranges fit other "
        "values than those that are met."
    ),
    "train-mode": "Layers that behave otherwise in training, batch norm or dropout, run as in training.",
    "batchnorm-statistics": "The running statistics of batch norms are not those of the data.",
    "preprocessing": "The images are not prepared as in training: another scale, mean, order of the colours, or size.",
    "non-finite": "Numbers are NaN or infinite: what follows is no arithmetic any more.",
    "nondeterminism": "Two passes over the same inputs differ, so no comparison of lanes means anything.",
    "graph-transform": "The traced and folded graph does not compute what the model does.",
    "engine-mismatch": "The engine computes something else than the simulation of the same grids.",
    "trace-alignment": "Tensors that were compared do not belong together: names, layout or order differ.",
    "accumulator-overflow": (
        "Sums exceed the width of the accumulator and wrap around, which ruins them however fine the grids are."
    ),
    "unquantized-layer": "This layer runs in float in every lane: what quantizing it would cost is not measured.",
}

#: What a remedy does, in half a sentence.
REMEDIES: Mapping[str, str] = {
    "per-channel-weights": "one scale per output channel for the weights",
    "cross-layer-equalization": "channel ranges evened out between neighbouring layers, which leaves the float network as it is",
    "clip-weights": "a narrower range for the weights",
    "clip-activation": "a narrower range for the activations",
    "widen-range": "a wider range",
    "affine-activation": "a grid that fits one-sided values",
    "free-scale": "a scale that need not be a power of two",
    "bias-correction": "biases corrected for the shift that rounding makes",
    "wider-bias": "wider biases",
    "coarser-weight-scale": "weight scales so coarse that the biases fit",
    "wider-accumulator": "wider accumulators",
    "split-join": "a grid for each of the tensors that meet",
    "sixteen-bit-layer": "16 bits for the layer",
    "recalibrate": "ranges chosen anew",
    "qat": "quantization-aware training",
}
