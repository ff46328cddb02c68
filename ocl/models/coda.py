"""CODA (Nguyen et al. 2026): slots and null-prompt registers condition a latent-diffusion model whose cross-attention is tuned."""

from __future__ import annotations

from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion import NullPrompt, SlotTokens, latent_denoiser
from ocl.decoders.diffusion.cross_attention import Projection
from ocl.decoders.diffusion.denoisers import KEY_VALUE_OUTPUT
from ocl.encoders import DINOv2
from ocl.interfaces import Decoder, Encoder, RegisterBank, SlotInit, SlotModule
from ocl.models.autoencoder import SlotAutoencoder, refuse_beside_decoder
from ocl.slots import GaussianInit, SlotAttention


def coda(
    *,
    weights: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    num_slots: int = 7,
    slot_dim: int = 768,
    drop_rate: float | None = None,
    trained: tuple[Projection, ...] | None = None,
    encoder: Encoder | None = None,
    registers: RegisterBank | None = None,
    init: SlotInit | None = None,
    slot_module: SlotModule | None = None,
    decoder: Decoder | None = None,
) -> SlotAutoencoder:
    """The model of the paper, each part of which can be replaced. Train it with Reconstruction and ContrastiveAlignment.

    Args:
        weights: latent-diffusion pipeline, a folder or hub id.
        num_slots: how many slots K.
        slot_dim: width of a slot inside the slot module.
        drop_rate: how likely an image's slots are dropped in training, for classifier-free guidance; None is 0.1.
        trained: projections of the denoiser's cross-attentions that are trained; [] freezes it, None is to_k, to_v and to_out.
        encoder: None is a frozen DINOv2 base on images resized to 448.
        registers: None is the pipeline's null prompt.
        init: None is a shared Gaussian.
        slot_module: None is the paper's Slot Attention: three iterations, place code, input MLP, output projection.
        decoder: None is the pipeline as described. Another one has registers, projections and a rate of its own: ConfigError
            where `registers`, `trained` or `drop_rate` is given as well.
    """
    refuse_beside_decoder("coda", decoder, registers=registers, trained=trained, drop_rate=drop_rate)
    encoder = encoder or DINOv2("base", image_size=448)
    decoder = decoder or LatentDiffusion(
        weights,
        denoiser=latent_denoiser(weights, trained=KEY_VALUE_OUTPUT if trained is None else trained),
        conditioner=SlotTokens(registers or NullPrompt(weights)),
        drop_rate=0.1 if drop_rate is None else drop_rate,
    )
    return SlotAutoencoder(
        encoder=encoder,
        init=init or GaussianInit(num_slots, slot_dim),
        slot_module=slot_module
        or SlotAttention(encoder.width, slot_dim, out_dim=decoder.slot_dim, eps=1e-6, position=True, input_mlp=True),
        decoder=decoder,
    )
