"""Short names for published vision transformers: each owns one `ViT`. See there for what the options do."""

from __future__ import annotations

from typing import Literal, final

from torch import Tensor

from ocl.encoders.sizes import dino_id, dinov2_id, dinov3_id, mae_id
from ocl.encoders.vit import ViT
from ocl.interfaces import Encoder
from ocl.types import Features


@final
class DINOv2(Encoder):
    """DINOv2 (Oquab et al. 2023), patches of 14; registers are of Darcet et al. 2024.

    Args:
        size: widths 384, 768, 1024, 1536.
        registers: the weights trained with register tokens.
        weights: local folder or hub id to read instead of the published one.
        image_size: the shorter side is resized to it, rounded to whole patches; None keeps the size, rounded likewise.
        layer: None is the normalised last layer, k the bare output of the k-th block.
        trainable: fine-tune the weights, and save them in checkpoints.
    """

    def __init__(
        self,
        size: Literal["small", "base", "large", "giant"] = "base",
        *,
        registers: bool = False,
        weights: str | None = None,
        image_size: int | None = None,
        layer: int | None = None,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.vit = ViT(weights or dinov2_id(size, registers), image_size=image_size, layer=layer, trainable=trainable)
        self.width = self.vit.width

    def forward(self, image: Tensor) -> Features:
        """Image [B, 3, H, W] in [0, 1] -> one token per patch."""
        return self.vit(image)


@final
class DINOv3(Encoder):
    """DINOv3 (Siméoni et al. 2025), patches of 16; the published weights ask for a licence agreement on the hub.

    Args:
        size: widths 384, 768, 1024.
        weights: local folder or hub id to read instead of the published one.
        image_size: the shorter side is resized to it, rounded to whole patches; None keeps the size, rounded likewise.
        layer: None is the normalised last layer, k the bare output of the k-th block.
        trainable: fine-tune the weights, and save them in checkpoints.
    """

    def __init__(
        self,
        size: Literal["small", "base", "large"] = "base",
        *,
        weights: str | None = None,
        image_size: int | None = None,
        layer: int | None = None,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.vit = ViT(weights or dinov3_id(size), image_size=image_size, layer=layer, trainable=trainable)
        self.width = self.vit.width

    def forward(self, image: Tensor) -> Features:
        """Image [B, 3, H, W] in [0, 1] -> one token per patch."""
        return self.vit(image)


@final
class DINO(Encoder):
    """DINO (Caron et al. 2021).

    Args:
        size: widths 384, 768.
        patch: side of a patch in pixels.
        weights: local folder or hub id to read instead of the published one.
        image_size: the shorter side is resized to it, rounded to whole patches; None keeps the size, rounded likewise.
        layer: None is the normalised last layer, k the bare output of the k-th block.
        trainable: fine-tune the weights, and save them in checkpoints.
    """

    def __init__(
        self,
        size: Literal["small", "base"] = "base",
        *,
        patch: Literal[8, 16] = 16,
        weights: str | None = None,
        image_size: int | None = None,
        layer: int | None = None,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.vit = ViT(weights or dino_id(size, patch), image_size=image_size, layer=layer, trainable=trainable)
        self.width = self.vit.width

    def forward(self, image: Tensor) -> Features:
        """Image [B, 3, H, W] in [0, 1] -> one token per patch."""
        return self.vit(image)


@final
class MAE(Encoder):
    """Masked autoencoder (He et al. 2022) with nothing masked; patches of 16, or 14 for huge.

    Args:
        size: widths 768, 1024, 1280.
        weights: local folder or hub id to read instead of the published one.
        image_size: the shorter side is resized to it, rounded to whole patches; None keeps the size, rounded likewise.
        layer: None is the normalised last layer, k the bare output of the k-th block.
        trainable: fine-tune the weights, and save them in checkpoints.
    """

    def __init__(
        self,
        size: Literal["base", "large", "huge"] = "base",
        *,
        weights: str | None = None,
        image_size: int | None = None,
        layer: int | None = None,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.vit = ViT(weights or mae_id(size), image_size=image_size, layer=layer, trainable=trainable)
        self.width = self.vit.width

    def forward(self, image: Tensor) -> Features:
        """Image [B, 3, H, W] in [0, 1] -> one token per patch."""
        return self.vit(image)
