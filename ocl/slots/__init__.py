"""Slot modules and where slots start."""

from ocl.slots.attention import SlotAttention
from ocl.slots.init import GaussianInit, LearnedGaussianInit, LearnedInit

__all__ = ["GaussianInit", "LearnedGaussianInit", "LearnedInit", "SlotAttention"]
