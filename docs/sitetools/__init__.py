"""What the site's build makes by itself: pages from docstrings and from the commands, copies of the notebooks, formulas."""
