"""Judges that training minimises: Step -> scalar."""

from ocl.losses.masks import MaskEntropy
from ocl.losses.reconstruction import Reconstruction

__all__ = ["MaskEntropy", "Reconstruction"]
