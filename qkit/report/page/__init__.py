"""The report as one self-contained page, with its pictures."""
