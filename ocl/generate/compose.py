"""Scenes composed of the slots of several images. Columns: SlotDiffusion (Wu et al. 2023), the rule that CODA cites."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ocl.nn.draws import integers
from ocl.types import Slots

Recipe = Literal["columns", "random"]


def compose(slots: Slots, recipe: Recipe = "columns", *, generator: torch.Generator | None = None) -> Slots:
    """One mixture per image of the batch; slot k stays slot k. A batch of one image can only give that image again.

    recipe: "columns" takes slot k from the image k positions further on (published), so that every slot is used once;
    "random" takes each slot from an image drawn at random.
    """
    batch, num_slots = slots.vectors.shape[:2]
    device = slots.vectors.device
    column = torch.arange(num_slots, device=device)
    if recipe == "columns":
        source = (torch.arange(batch, device=device)[:, None] + column) % batch
    else:
        source = integers(batch, batch * num_slots, generator, device=device).view(batch, num_slots)
    return _gather(slots, source, column)


def _gather(slots: Slots, source: Tensor, column: Tensor) -> Slots:
    attn = slots.attn[source, column]
    attn = attn / attn.sum(dim=1, keepdim=True).clamp_min(1e-12)
    active = None if slots.active is None else slots.active[source, column]
    return replace(slots, vectors=slots.vectors[source, column], attn=attn, active=active)
