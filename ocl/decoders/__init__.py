"""Decoders: slots back to pixels or to features."""

from ocl.decoders.broadcast import SpatialBroadcast
from ocl.decoders.features import FeatureMLP
from ocl.decoders.patches import PatchMLP

__all__ = ["FeatureMLP", "PatchMLP", "SpatialBroadcast"]
