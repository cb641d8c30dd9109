"""Real engines as lanes: what they computed for the same inputs, beside what the kit simulates."""
