"""Decoders: slots back to pixels, to features, or to the noise in latents."""

from ocl.decoders.broadcast import SpatialBroadcast
from ocl.decoders.diffusion import LatentDiffusion
from ocl.decoders.features import FeatureMLP
from ocl.decoders.patches import PatchMLP

__all__ = ["FeatureMLP", "LatentDiffusion", "PatchMLP", "SpatialBroadcast"]
