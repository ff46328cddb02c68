"""Images in [0, 1] -> what a network was trained on: statistics of published models, and a check of what came in."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from ocl.errors import RangeError, ShapeError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of red, green, blue in [0, 1]

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP: Statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIGNED: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # [0, 1] -> [-1, 1]


@final
class Normalise(nn.Module):
    """(image - mean) / std per channel: [B, 3, H, W] in [0, 1] -> the same shape in float32 or wider.

    The statistics are not part of a checkpoint. Raises ShapeError or RangeError, naming `owner`, for what is not a batch of
    floating-point colour images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, statistics: Statistics, *, owner: str) -> None:
        super().__init__()
        self.owner = owner
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != 3:
            raise ShapeError(f"{self.owner} expects images [B, 3, H, W], got {list(image.shape)}; use image[None] for one.")
        if not image.is_floating_point():
            raise RangeError(f"{self.owner} expects floating-point images in [0, 1], got {image.dtype}; use image / 255.")
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        return (image - self.mean) / self.std
