"""TIDL: compile options for a plan, its quantization files, its names of a network's tensors, and what its layers take."""

from qkit.engines.tidl.layer_names import layer_names
from qkit.engines.tidl.layer_times import layer_times
from qkit.engines.tidl.options import bits_from_options, compile_options, not_carried, ranges_from_prototxt, with_ranges

__all__ = [
    "bits_from_options", "compile_options", "layer_names", "layer_times", "not_carried", "ranges_from_prototxt", "with_ranges",
]  # fmt: skip
