"""DINOSAUR (Seitzer et al. 2023): frozen self-supervised features -> slots -> an MLP that predicts the features back."""

from __future__ import annotations

from ocl.decoders import FeatureMLP
from ocl.encoders import DINOv2
from ocl.interfaces import Decoder, Encoder, SlotInit, SlotModule
from ocl.models.autoencoder import SlotAutoencoder
from ocl.slots import GaussianInit, SlotAttention


def dinosaur(
    *,
    num_slots: int = 7,
    slot_dim: int = 256,
    grid: tuple[int, int] = (16, 16),
    encoder: Encoder | None = None,
    init: SlotInit | None = None,
    slot_module: SlotModule | None = None,
    decoder: Decoder | None = None,
) -> SlotAutoencoder:
    """The MLP-decoder model of the paper, each part of which can be replaced.

    Args:
        num_slots: how many slots K.
        slot_dim: width of a slot.
        grid: token grid of the encoder at the image size you train with; other sizes read the place code by interpolation.
        encoder: None is a frozen DINOv2 base.
        init: None is a shared Gaussian.
        slot_module: None is Slot Attention with three iterations and an input MLP.
        decoder: None is the MLP decoder of the paper.
    """
    encoder = encoder or DINOv2("base")
    return SlotAutoencoder(
        encoder=encoder,
        init=init or GaussianInit(num_slots, slot_dim),
        slot_module=slot_module or SlotAttention(encoder.width, slot_dim, input_mlp=True, mlp_dim=4 * slot_dim),
        decoder=decoder or FeatureMLP(slot_dim, encoder.width, grid=grid),
    )
