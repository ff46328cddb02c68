"""MLP decoder to pixels: the mixing of Locatello et al. 2020 with the MLP of Seitzer et al. 2023, a patch of pixels per place.

Without convolutions over K pictures of full size it is matrix products only, which makes it the decoder for a CPU.
"""

from __future__ import annotations

from typing import final

from torch import Tensor

from ocl.decoders.broadcast import check_image_size, check_slots
from ocl.errors import ConfigError
from ocl.interfaces import Decoder
from ocl.nn.mlp import mlp
from ocl.nn.positions import LearnedCode
from ocl.types import Batch, Decoding, Features, Slots


@final
class PatchMLP(Decoder):
    """Each slot plus a learned place code is decoded at every place to patch x patch colours and opacities.

    Opacities are softmaxed over slots at every pixel. The target is the image itself, in [0, 1].

    Args:
        slot_dim: width of a slot.
        image_size: side of the square image to draw; a multiple of `patch`.
        patch: side of the square of pixels drawn at each place.
        hidden_dim: width of the hidden layers.
        depth: number of hidden layers.
    """

    def __init__(
        self, slot_dim: int, *, image_size: int = 64, patch: int = 4, hidden_dim: int = 256, depth: int = 3
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ConfigError(f"PatchMLP needs image_size divisible by patch, got {image_size} and {patch}.")
        self.slot_dim, self.image_size, self.patch = slot_dim, image_size, patch
        self.grid = (image_size // patch, image_size // patch)
        self.position = LearnedCode(slot_dim, self.grid, std=1.0)
        self.layers = mlp(slot_dim, hidden_dim, 4 * patch**2, depth=depth)

    def forward(self, slots: Slots, batch: Batch, features: Features) -> Decoding:
        """Slots of width slot_dim and images of side image_size -> prediction [B, 3, H, W], masks [B, K, H, W]."""
        check_image_size("PatchMLP", batch, self.image_size)
        check_slots("PatchMLP", slots, self.slot_dim)
        cells = slots.vectors[:, :, None] + self.position(self.grid)[:, None]
        channels = self.layers(cells).unflatten(-1, (4, self.patch**2))
        colours, opacity = channels.split([3, 1], dim=-2)
        masks = opacity.softmax(dim=1)
        return Decoding(
            prediction=self._picture((colours * masks).sum(dim=1)), target=batch.image, masks=self._picture(masks).squeeze(-3)
        )

    def _picture(self, cells: Tensor) -> Tensor:
        """[..., places, C, patch * patch] -> [..., C, H, W]."""
        rows = cells.unflatten(-3, self.grid).unflatten(-1, (self.patch, self.patch))
        return rows.movedim(-3, -5).transpose(-3, -2).flatten(-4, -3).flatten(-2, -1)
