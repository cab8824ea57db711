"""Timing of every kernel beside its rivals: `python -m kernels.bench` on a machine with a GPU."""
