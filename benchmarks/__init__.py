"""Speed and memory as ratios of a plain float pass measured in the same run; never a deadline."""
