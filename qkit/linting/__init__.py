"""Lint: what hinders symbolic tracing, and what predicts trouble in fixed point."""

from qkit.linting.check import lint
from qkit.linting.finding import RULES, Finding, Lint

__all__ = ["RULES", "Finding", "Lint", "lint"]
