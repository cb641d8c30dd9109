"""Lint: what keeps a study from taking a model, what will be folded, and what predicts trouble in fixed point."""

from qkit.linting.check import lint
from qkit.linting.finding import RULES, Finding, Lint

__all__ = ["RULES", "Finding", "Lint", "lint"]
