"""Attention guidance: what the decoder attends to for a slot should be what the slot holds (SlotAdapt: Akan & Yemez 2025)."""

from __future__ import annotations

from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from ocl.interfaces import Loss
from ocl.losses.rules import drawn_masks, first_update, positive_weight
from ocl.types import Step


@final
class MaskGuidance(Loss):
    """weight * difference between the decoder's masks and the slot module's, from update `start_step` on; a float32 scalar.

    Published: the two guide each other, nothing is detached, and it is switched on later. Formula, weight and start are not
    known. Ours: binary cross-entropy per slot and cell, the slot masks resized (area) to the decoder's grid and taken as target,
    and a mean over the images whose slots were decoded: where they were dropped, masks are all zero and say nothing; 0 if all were.

    Args:
        weight: factor of this term in the sum of losses; positive and finite.
        start_step: updates before it sets in.
        distance: "bce" is binary cross-entropy, "mse" the mean squared difference.
    """

    def __init__(self, *, weight: float = 0.1, start_step: int = 40_000, distance: Literal["bce", "mse"] = "bce") -> None:
        super().__init__()
        self.weight, self.start_step = positive_weight(self, weight), first_update(self, "start_step", start_step)
        self.distance = distance

    def forward(self, step: Step) -> Tensor:
        found, slots = drawn_masks(self, step), step.output.slots
        if step.index < self.start_step:
            return 0.0 * found.detach().float().mean()
        found = found.float()
        wanted = F.adaptive_avg_pool2d(slots.maps().float(), (found.shape[-2], found.shape[-1]))
        each = self._difference(found, wanted).flatten(1).mean(1)
        decoded = found.detach().flatten(1).any(1)
        return self.weight * torch.where(decoded, each, 0).sum() / decoded.sum().clamp_min(1)

    def _difference(self, found: Tensor, wanted: Tensor) -> Tensor:
        """Both [B, K, h, w] -> the same."""
        if self.distance == "mse":
            return (found - wanted).square()
        found, wanted = found.clamp(1e-6, 1 - 1e-6), wanted.clamp(0, 1)
        return -(wanted * found.log() + (1 - wanted) * (1 - found).log())
