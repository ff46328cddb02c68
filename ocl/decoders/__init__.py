"""Decoders: slots back to pixels or to features."""

from ocl.decoders.broadcast import SpatialBroadcast
from ocl.decoders.features import FeatureMLP

__all__ = ["FeatureMLP", "SpatialBroadcast"]
