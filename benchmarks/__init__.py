"""Benchmarks: each checks its results before it reports a speed. They live beside the package, not in it."""
