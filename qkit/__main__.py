"""``python -m qkit``."""

from qkit.cli import main

main()
