"""Speed of the fused operators beside every other way to compute the same: `ocl bench ops`, or `python -m benchmarks`."""
