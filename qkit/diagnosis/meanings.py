"""What verdicts, causes and remedies mean, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


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
        "Rare values, or masked ones, lie far from all others and stretch this tensor's range; the usual values share few codes."
    ),
    "activation-channel-imbalance": (
        "The channels of this tensor differ widely in their ranges and share one step, which the widest sets. A factor "
        "moved from one layer's weights, or a norm's, to the next evens them out without changing the network."
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
    "integer-form": (
        "What has no weights, such as softmax or a norm, is computed in integers so coarse that the output is off, whatever its "
        "grid."
    ),
    "unquantized-layer": "This layer runs in float in every lane: what quantizing it would cost is not measured.",
}

#: What a remedy does, in half a sentence.
REMEDIES: Mapping[str, str] = {
    "per-channel-weights": "one scale per output channel for the weights",
    "cross-layer-equalization": "channel ranges evened out between neighbouring layers, which leaves the float network as it is",
    "smooth-scales": "scales folded between a norm and the linear layers behind it, which leaves the float network as it is",
    "clip-weights": "a narrower range for the weights",
    "clip-activation": "a narrower range for the activations",
    "widen-range": "a wider range",
    "affine-activation": "a grid that fits the values' signs",
    "free-scale": "a scale that need not be a power of two",
    "bias-correction": "biases corrected for the shift that rounding makes",
    "wider-bias": "wider biases",
    "coarser-weight-scale": "weight scales so coarse that the biases fit",
    "wider-accumulator": "wider accumulators",
    "finer-form": "a finer integer form of what has no weights",
    "split-join": "a grid for each of the tensors that meet",
    "sixteen-bit-layer": "16 bits for the layer",
    "recalibrate": "ranges chosen anew",
    "qat": "quantization-aware training",
}
