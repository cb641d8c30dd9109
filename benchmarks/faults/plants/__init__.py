"""The plants: a file a family, each a table of what can be planted, where, and how strong."""

from __future__ import annotations

from benchmarks.faults.plants import activations, attention, data, engine, grids, modes, ranges, statistics, weights
from benchmarks.faults.plants.plant import Bench, Plant
from benchmarks.faults.plants.sound import CONTROLS

ALL: tuple[Plant, ...] = tuple(
    plant
    for family in (weights, activations, ranges, grids, data, statistics, modes, engine, attention)
    for plant in family.PLANTS
)
#: By ``kind/form``.
BY_NAME = {plant.name: plant for plant in ALL}

__all__ = ["ALL", "BY_NAME", "CONTROLS", "Bench", "Plant"]
