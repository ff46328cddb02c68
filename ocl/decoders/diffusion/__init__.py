"""Latent-diffusion models as slot decoders."""

from ocl.decoders.diffusion.adapters import AdaptedUNet
from ocl.decoders.diffusion.conditioners import PooledSlots, SlotTokens
from ocl.decoders.diffusion.decoder import LatentDiffusion
from ocl.decoders.diffusion.denoisers import LatentTransformer, LatentUNet, latent_denoiser
from ocl.decoders.diffusion.registers import LearnedRegisters, NoRegisters, NullPrompt

__all__ = [
    "AdaptedUNet", "LatentDiffusion", "LatentTransformer", "LatentUNet", "LearnedRegisters", "NoRegisters", "NullPrompt",
    "PooledSlots", "SlotTokens", "latent_denoiser",
]  # fmt: skip
