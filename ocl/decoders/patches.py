"""MLP decoder to pixels in each slot's own frame: the mixing of Locatello et al. 2020, the reference frames of Biza et al. 2023.

A slot says what it is; where it is follows from its attention. So one picture serves everywhere in the image, which takes far
fewer steps to learn than a picture for every place, and matrix products over patches suit a CPU better than convolutions.
"""

from __future__ import annotations

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from ocl.decoders.broadcast import check_image_size, check_slots
from ocl.errors import ConfigError
from ocl.interfaces import Decoder
from ocl.nn.frames import frames, seen_from
from ocl.nn.mlp import he_, mlp
from ocl.types import Batch, Decoding, Features, Randomness, Slots


@final
class PatchMLP(Decoder):
    """Each slot, seen from the centre of its attention, is decoded at every place to patch x patch colours and opacities.

    Opacities are softmaxed over slots at every pixel. The target is the image itself, in [0, 1].

    Args:
        slot_dim: width of a slot.
        image_size: side of the square image to draw; a multiple of `patch`.
        patch: side of the square of pixels drawn at each place.
        hidden_dim: width of the hidden layers.
        depth: number of hidden layers.
    """

    def __init__(self, slot_dim: int, *, image_size: int = 64, patch: int = 4, hidden_dim: int = 128, depth: int = 3) -> None:
        super().__init__()
        if image_size % patch:
            raise ConfigError(f"PatchMLP needs image_size divisible by patch, got {image_size} and {patch}.")
        if depth < 2:
            raise ConfigError(f"PatchMLP needs depth >= 2 to join what a slot is with where it is, got {depth}.")
        self.slot_dim, self.image_size, self.patch = slot_dim, image_size, patch
        self.grid = (image_size // patch, image_size // patch)
        self.what = he_(nn.Linear(slot_dim, hidden_dim, bias=False))
        self.where = he_(nn.Linear(6, hidden_dim))  # He, not torch's default: coordinates are small numbers
        self.layers = nn.Sequential(nn.ReLU(), mlp(hidden_dim, hidden_dim, 4 * patch**2, depth=depth - 1))

    def forward(self, slots: Slots, batch: Batch, features: Features, *, generator: Randomness = None) -> Decoding:
        """Slots of width slot_dim and images of side image_size -> prediction [B, 3, H, W], masks [B, K, H, W]."""
        check_image_size("PatchMLP", batch, self.image_size)
        check_slots("PatchMLP", slots, self.slot_dim)
        places = seen_from(*frames(slots.attn, slots.grid), self.grid).to(slots.vectors.dtype)
        cells = self.layers(self.what(slots.vectors)[:, :, None] + self.where(places))
        colours, opacity = cells.unflatten(-1, (4, self.patch**2)).split([3, 1], dim=-2)
        masks = opacity.softmax(dim=1)
        return Decoding(
            prediction=self._picture((colours * masks).sum(dim=1)), target=batch.image, masks=self._picture(masks).squeeze(-3)
        )

    def _picture(self, cells: Tensor) -> Tensor:
        """[..., places, C, patch * patch] -> [..., C, H, W]."""
        channels = cells.flatten(-2).transpose(-2, -1).unflatten(-1, self.grid)
        return F.pixel_shuffle(channels, self.patch)
