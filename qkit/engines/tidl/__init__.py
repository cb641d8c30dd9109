"""TIDL: compile options for a plan, and its quantization files."""

from qkit.engines.tidl.options import bits_from_options, compile_options, not_carried, ranges_from_prototxt, with_ranges

__all__ = ["bits_from_options", "compile_options", "not_carried", "ranges_from_prototxt", "with_ranges"]
