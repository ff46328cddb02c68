"""Slots as what a latent-diffusion denoiser attends to."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from ocl.decoders.diffusion.registers import NoRegisters
from ocl.errors import ShapeError
from ocl.interfaces import Conditioner, RegisterBank
from ocl.types import Conditioning, Slots


@final
class SlotTokens(Conditioner):
    """Slots stand where prompt tokens stood (Stable-LSD: Jiang et al. 2023), with registers beside them (CODA) or without.

    Args:
        registers: tokens for the whole batch; None or NoRegisters for none.
    """

    def __init__(self, registers: RegisterBank | None = None) -> None:
        super().__init__()
        self.registers = None if isinstance(registers, NoRegisters) else registers

    def forward(self, slots: Slots) -> Conditioning:
        """Slots of the denoiser's width -> the same slots, those that are not active masked, and the registers."""
        registers = None if self.registers is None else self.registers()
        if registers is not None and registers.shape[1] != slots.vectors.shape[-1]:
            raise ShapeError(
                f"SlotTokens needs slots as wide as its registers, {registers.shape[1]}, got {list(slots.vectors.shape)}; "
                f"pass SlotAttention(out_dim={registers.shape[1]})."
            )
        return Conditioning(slots.vectors, None if registers is None else registers.to(slots.vectors.dtype), slots.active)


@final
class PooledSlots(Conditioner):
    """The mean of an image's slots stands where the prompt stood; layers of their own attend to the slots (SlotAdapt)."""

    def __init__(self) -> None:
        super().__init__()

    def forward(self, slots: Slots) -> Conditioning:
        """Slots of the denoiser's width -> slots, and their mean as the one token of text; zero where no slot is active."""
        return Conditioning(slots.vectors, slot_mask=slots.active, text=_mean(slots.vectors, slots.active)[:, None])


def _mean(vectors: Tensor, active: Tensor | None) -> Tensor:
    if active is None:
        return vectors.mean(dim=1)
    weights = active.to(vectors.dtype)[..., None]
    return torch.where(active[..., None], vectors, 0).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
