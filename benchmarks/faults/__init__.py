"""A blind benchmark of the diagnosis: known faults, planted into sound networks, that it has to name.

Planting shares neither code nor constants with `qkit.diagnosis`; see ``benchmarks/faults/README.md``.
"""
