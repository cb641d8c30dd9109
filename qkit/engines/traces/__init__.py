"""Traces from a device: a folder of raw tensors as a lane, checked for alignment before the engine is blamed."""

from qkit.engines.traces.aligned import Alignment, Match, MisalignedTraceError, Problem
from qkit.engines.traces.formats import TraceError
from qkit.engines.traces.manifest import Entry, Manifest
from qkit.engines.traces.trace_lane import TraceLane, read
from qkit.engines.traces.trace_writing import write

__all__ = [
    "Alignment",
    "Entry",
    "Manifest",
    "Match",
    "MisalignedTraceError",
    "Problem",
    "TraceError",
    "TraceLane",
    "read",
    "write",
]
