"""Models: one composition and its builders."""

from ocl.models.autoencoder import SlotAutoencoder
from ocl.models.card import ModelCard
from ocl.models.coda import coda
from ocl.models.dinosaur import dinosaur
from ocl.models.slot_attention import slot_attention
from ocl.models.slotadapt import slotadapt
from ocl.models.stable_lsd import stable_lsd

__all__ = ["ModelCard", "SlotAutoencoder", "coda", "dinosaur", "slot_attention", "slotadapt", "stable_lsd"]
