"""SlotAdapt (Akan & Yemez 2025): a frozen latent-diffusion model with cross-attention layers of their own for slots.

The paper leaves much open; what is ours is said in `ocl.decoders.diffusion.adapters` and `ocl.losses.guidance`. Ours as well:
the slot module is CODA's, and slots are dropped in training for one image in ten.
"""

from __future__ import annotations

from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion import AdaptedUNet, PooledSlots
from ocl.encoders import DINOv2
from ocl.interfaces import Decoder, Encoder, SlotInit, SlotModule
from ocl.models.autoencoder import SlotAutoencoder, refuse_beside_decoder
from ocl.slots import GaussianInit, SlotAttention


def slotadapt(
    *,
    weights: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    num_slots: int = 7,
    slot_dim: int = 768,
    drop_rate: float | None = None,
    encoder: Encoder | None = None,
    init: SlotInit | None = None,
    slot_module: SlotModule | None = None,
    decoder: Decoder | None = None,
) -> SlotAutoencoder:
    """The model of the paper, each part of which can be replaced. Train it with Reconstruction and, later on, MaskGuidance.

    Args:
        weights: Stable Diffusion pipeline, a folder or hub id.
        num_slots: how many slots K.
        slot_dim: width of a slot inside the slot module.
        drop_rate: how likely an image's slots are dropped in training, for classifier-free guidance; None is 0.1.
        encoder: None is a frozen DINOv2 base on images resized to 448.
        init: None is a shared Gaussian.
        slot_module: None is that of `coda`: three iterations, place code, input MLP, output projection.
        decoder: None is the pipeline as described. ConfigError where `drop_rate` is given beside another one.
    """
    refuse_beside_decoder("slotadapt", decoder, drop_rate=drop_rate)
    encoder = encoder or DINOv2("base", image_size=448)
    decoder = decoder or LatentDiffusion(
        weights, denoiser=AdaptedUNet(weights), conditioner=PooledSlots(), drop_rate=0.1 if drop_rate is None else drop_rate
    )
    return SlotAutoencoder(
        encoder=encoder,
        init=init or GaussianInit(num_slots, slot_dim),
        slot_module=slot_module
        or SlotAttention(encoder.width, slot_dim, out_dim=decoder.slot_dim, eps=1e-6, position=True, input_mlp=True),
        decoder=decoder,
    )
