"""Models: one composition and its builders."""

from ocl.models.autoencoder import SlotAutoencoder
from ocl.models.dinosaur import dinosaur
from ocl.models.slot_attention import slot_attention

__all__ = ["SlotAutoencoder", "dinosaur", "slot_attention"]
