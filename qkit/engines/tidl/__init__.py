"""TIDL: compile options for a plan, its quantization files, and its names of a network's tensors."""

from qkit.engines.tidl.layer_names import layer_names
from qkit.engines.tidl.options import bits_from_options, compile_options, not_carried, ranges_from_prototxt, with_ranges

__all__ = ["bits_from_options", "compile_options", "layer_names", "not_carried", "ranges_from_prototxt", "with_ranges"]
