"""Slot Attention on pixels (Locatello et al. 2020): CNN -> slots -> spatial broadcast decoder."""

from __future__ import annotations

from ocl.decoders import SpatialBroadcast
from ocl.encoders import CNN
from ocl.interfaces import Decoder, Encoder, SlotInit, SlotModule
from ocl.models.autoencoder import SlotAutoencoder
from ocl.slots import GaussianInit, SlotAttention


def slot_attention(
    *,
    num_slots: int = 7,
    slot_dim: int = 64,
    image_size: int = 64,
    encoder: Encoder | None = None,
    init: SlotInit | None = None,
    slot_module: SlotModule | None = None,
    decoder: Decoder | None = None,
) -> SlotAutoencoder:
    """The published object-discovery model, each part of which can be replaced.

    Args:
        num_slots: how many slots K.
        slot_dim: width of a slot.
        image_size: side of the images, and of the pictures the decoder draws.
        encoder: None is the four-layer CNN of the paper.
        init: None is a shared Gaussian.
        slot_module: None is Slot Attention with three iterations and an input MLP.
        decoder: None is the spatial broadcast decoder of the paper.
    """
    encoder = encoder or CNN(width=slot_dim)
    return SlotAutoencoder(
        encoder=encoder,
        init=init or GaussianInit(num_slots, slot_dim),
        slot_module=slot_module or SlotAttention(encoder.width, slot_dim, input_mlp=True, mlp_dim=2 * slot_dim),
        decoder=decoder or SpatialBroadcast(slot_dim, image_size=image_size),
    )
