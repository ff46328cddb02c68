"""Where a slot looks: the place and spread of its attention, and coordinates seen from there (Biza et al. 2023, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ocl.nn.positions import coordinates
from ocl.ops.dtypes import at_least_float32

SMALLEST = 0.05  # spread of a slot that looks at one point, as a share of the image's side


def frames(attn: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Attention [B, K, N] over a token grid -> centre and spread of each slot, [B, K, 2] each, as (y, x) in image sides.

    centre: attention-weighted mean of the cell centres, in (0, 1). spread: the standard deviation along each axis, at least
    SMALLEST. Gradients flow into the attention: a slot is pulled to where its picture would fit better. In float32 or wider,
    also under autocast: bfloat16 is coarser than SMALLEST.
    """
    attn = at_least_float32(attn)
    places = coordinates(grid, device=attn.device, dtype=attn.dtype)[:, :2]
    weights = (attn / (attn.sum(dim=-1, keepdim=True) + 1e-6))[..., None]
    centre = (weights * places).sum(dim=2)  # not a matrix product, which autocast would round
    variance = (weights * (places - centre[:, :, None]).square()).sum(dim=2)
    return centre, variance.clamp_min(SMALLEST**2).sqrt()


def seen_from(centre: Tensor, spread: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cells of a grid in each slot's frame: [B, K, h * w, 6].

    Per cell: its offset from the slot in spreads (clamped to 3), its offset in half image sides, and its place in [-1, 1].
    """
    places = coordinates(grid, device=centre.device, dtype=centre.dtype)[:, :2]
    offset = places - centre[:, :, None]
    scaled = (offset / spread[:, :, None] / 2).clamp(-3, 3)
    return torch.cat([scaled, 2 * offset, (2 * places - 1).expand_as(offset)], dim=-1)
