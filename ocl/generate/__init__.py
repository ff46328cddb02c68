"""What one draws with a trained latent-diffusion decoder: reconstructions, compositions, edits."""

from ocl.generate.compose import compose
from ocl.generate.edit import drop, insert, keep_only, move, swap
from ocl.generate.sample import named_generators, sample

__all__ = ["compose", "drop", "insert", "keep_only", "move", "named_generators", "sample", "swap"]
