"""The normal form, and what is rewritten in it: writes in place, the open batch, constants, patterns, norms."""
