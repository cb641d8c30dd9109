"""What the report says in words: columns, units, terms."""

from __future__ import annotations

from collections.abc import Mapping

#: Layers that the sensitivity chart shows at most, how many of those that may lose nothing it adds to the others, and how few
#: layers are all shown.
MOST_BARS = 20
FURTHER_BARS = 3
FEW_BARS = 10


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
