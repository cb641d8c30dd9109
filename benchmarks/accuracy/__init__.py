"""What post-training calibration, mixed precision and training recover, network by network; see `benchmarks/README.md`."""
