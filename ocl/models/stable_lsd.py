"""Stable-LSD (Jiang et al. 2023): slots stand in for the prompt of a frozen latent-diffusion model."""

from __future__ import annotations

from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion import SlotTokens, latent_denoiser
from ocl.decoders.diffusion.cross_attention import Projection
from ocl.encoders import DINOv2
from ocl.interfaces import Decoder, Encoder, SlotInit, SlotModule
from ocl.models.autoencoder import SlotAutoencoder, refuse_beside_decoder
from ocl.slots import GaussianInit, SlotAttention


def stable_lsd(
    *,
    weights: str = "stabilityai/stable-diffusion-2-1",
    num_slots: int = 7,
    slot_dim: int = 768,
    trained: tuple[Projection, ...] | None = None,
    encoder: Encoder | None = None,
    init: SlotInit | None = None,
    slot_module: SlotModule | None = None,
    decoder: Decoder | None = None,
) -> SlotAutoencoder:
    """The model of the paper's section on pretrained diffusion models, each part of which can be replaced.

    Args:
        weights: latent-diffusion pipeline, a folder or hub id.
        num_slots: how many slots K.
        slot_dim: width of a slot inside the slot module.
        trained: projections of the denoiser's cross-attentions that are trained; None is none, as in the paper.
        encoder: None is a frozen DINOv2 base on images resized to 448.
        init: None is a shared Gaussian.
        slot_module: None is the published Slot Attention: five iterations, place code, input MLP, output projection.
        decoder: None is the pipeline as described. ConfigError where `trained` is given beside another one.
    """
    refuse_beside_decoder("stable_lsd", decoder, trained=trained)
    encoder = encoder or DINOv2("base", image_size=448)
    decoder = decoder or LatentDiffusion(
        weights, denoiser=latent_denoiser(weights, trained=trained or ()), conditioner=SlotTokens()
    )
    return SlotAutoencoder(
        encoder=encoder,
        init=init or GaussianInit(num_slots, slot_dim),
        slot_module=slot_module
        or SlotAttention(encoder.width, slot_dim, out_dim=decoder.slot_dim, num_iterations=5, position=True, input_mlp=True),
        decoder=decoder,
    )
