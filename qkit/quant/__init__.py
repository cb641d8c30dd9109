"""Integer grids: their rules, the ranges that they get, and plans of them; what rounds, rounds here."""
