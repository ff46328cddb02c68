"""Judges that training minimises: Step -> scalar."""

from ocl.losses.reconstruction import Reconstruction

__all__ = ["Reconstruction"]
