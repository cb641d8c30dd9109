"""A blind benchmark of engines in the diagnosis: a fault in one layer of an engine, or none, that it has to name.

The engine is the kit's own executor with something changed in one step. What is changed, and how, is written down here and
shares no code with `qkit.engines.faults`, the list of faults that the kit tries; see ``benchmarks/faults/README.md``.
"""
