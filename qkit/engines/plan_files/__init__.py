"""Plans in files of other tools, and back."""
