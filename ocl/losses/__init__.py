"""Judges that training minimises: Step -> scalar."""

from ocl.losses.alignment import ContrastiveAlignment
from ocl.losses.distillation import MaskDistillation
from ocl.losses.guidance import MaskGuidance
from ocl.losses.masks import MaskEntropy
from ocl.losses.reconstruction import Reconstruction

__all__ = ["ContrastiveAlignment", "MaskDistillation", "MaskEntropy", "MaskGuidance", "Reconstruction"]
