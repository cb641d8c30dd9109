"""What runs a network: lanes in lockstep, what they score, and what is captured of them."""
