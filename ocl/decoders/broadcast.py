"""Spatial broadcast decoder to pixels (Watters et al. 2019), mixed over slots as in Locatello et al. 2020, appendix E.3."""

from __future__ import annotations

from itertools import pairwise
from typing import final

from torch import Tensor, nn

from ocl.errors import ConfigError, ShapeError
from ocl.interfaces import Decoder
from ocl.nn.mlp import he_
from ocl.nn.positions import CoordinateCode
from ocl.types import Batch, Decoding, Features, Randomness, Slots


@final
class SpatialBroadcast(Decoder):
    """Each slot, repeated over a small grid, is decoded on its own to colour and opacity; opacities are softmaxed over slots.

    The target is the image itself, in [0, 1].

    Args:
        slot_dim: width of a slot.
        image_size: side of the square image to draw; grid * patch * 2^n.
        grid: side of the grid that a slot is repeated over.
        patch: side of the square of pixels that the last convolution draws at each place. 1 is the published decoder;
            4 from a grid a quarter of the image does all other work at low resolution and is several times faster.
        width: channels of the convolutions.
        kernel: side of the convolution kernels (odd).
        refine: convolutions after the last doubling, before the one that draws.
    """

    def __init__(
        self,
        slot_dim: int,
        *,
        image_size: int = 64,
        grid: int = 8,
        patch: int = 1,
        width: int = 64,
        kernel: int = 5,
        refine: int = 1,
    ) -> None:
        super().__init__()
        doublings = (image_size // (grid * patch)).bit_length() - 1
        if grid * patch * 2 ** max(doublings, 0) != image_size:
            raise ConfigError(
                f"SpatialBroadcast needs image_size = grid * patch * 2^n, got {image_size}, {grid} and {patch}; "
                f"use grid={image_size // (4 * patch)} for n = 2."
            )
        self.slot_dim, self.image_size, self.grid = slot_dim, image_size, (grid, grid)
        self.position = CoordinateCode(slot_dim)
        widths = [slot_dim] + [width] * (doublings + refine)
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise(widths)):
            if index < doublings:
                layers.append(
                    nn.ConvTranspose2d(before, after, kernel, stride=2, padding=kernel // 2, output_padding=1)
                )
            else:
                layers.append(he_(nn.Conv2d(before, after, kernel, padding=kernel // 2)))
            layers.append(nn.ReLU())
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 4 * patch**2, 3, padding=1), nn.PixelShuffle(patch))

    def forward(self, slots: Slots, batch: Batch, features: Features, *, generator: Randomness = None) -> Decoding:
        """Slots of width slot_dim and images of side image_size -> prediction [B, 3, H, W], masks [B, K, H, W]."""
        check_image_size("SpatialBroadcast", batch, self.image_size)
        check_slots("SpatialBroadcast", slots, self.slot_dim)
        colours, masks = self._draw(slots.vectors)
        return Decoding(prediction=(colours * masks).sum(dim=1), target=batch.image, masks=masks.squeeze(2))

    def _draw(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        batch_size, num_slots = vectors.shape[:2]
        cells = vectors.flatten(0, 1)[:, None] + self.position(self.grid)
        pictures = self.layers(cells.transpose(1, 2).unflatten(-1, self.grid)).unflatten(0, (batch_size, num_slots))
        colours, opacity = pictures.split([3, 1], dim=2)
        return colours, opacity.softmax(dim=1)


def check_image_size(name: str, batch: Batch, image_size: int) -> None:
    """Raises ShapeError where the images are not squares of this side."""
    if tuple(batch.image.shape[-2:]) != (image_size, image_size):
        raise ShapeError(
            f"{name} draws {image_size} x {image_size} images, got {list(batch.image.shape)}; "
            f"resize the data or pass image_size={batch.image.shape[-1]}."
        )


def check_slots(name: str, slots: Slots, slot_dim: int) -> None:
    """Raises ShapeError where the slots have another width."""
    if slots.vectors.shape[-1] != slot_dim:
        raise ShapeError(
            f"{name} expects slots of width {slot_dim}, got {list(slots.vectors.shape)}; pass slot_dim={slots.vectors.shape[-1]}."
        )
