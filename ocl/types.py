"""The values that flow between parts, and the shape letters used everywhere.

B batch, K slots, R registers, N tokens, D width, H W pixels, h w token grid, M queries of the decoder, C channels,
L conditioning tokens. Each value checks itself when it is made, so a part may trust what it receives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ocl.errors import RangeError, ShapeError

RANGE_SLACK = 1e-3  # resizing with a smooth filter overshoots by rounding, never by more


@dataclass(frozen=True)
class Batch:
    """Images with their ground truth.

    image: float [B, 3, H, W] in [0, 1]; every consumer normalises for itself.
    instances, classes: integer [B, H, W] or None; 0 is background, -1 is to be ignored.
    keys: one stable name per image (a file name, a scene number), or empty.
    Values are checked on the CPU only, where looking at them does not wait for a device.
    """

    image: Tensor
    instances: Tensor | None = None
    classes: Tensor | None = None
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        image = self.image
        if image.ndim != 4 or image.shape[1] != 3:
            raise ShapeError(f"Batch.image must be [B, 3, H, W], got {list(image.shape)}; use image[None] for one image.")
        if not image.is_floating_point():
            raise RangeError(f"Batch.image must be floating point in [0, 1], got {image.dtype}; use image / 255.")
        for name, labels in (("instances", self.instances), ("classes", self.classes)):
            if labels is None:
                continue
            if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
                raise ShapeError(f"Batch.{name} must hold integers, got {labels.dtype}; use {name}.long().")
            expected = (image.shape[0], *image.shape[2:])
            if tuple(labels.shape) != expected:
                raise ShapeError(
                    f"Batch.{name} must be [B, H, W] = {list(expected)} like the image, got {list(labels.shape)}; "
                    "resize labels with nearest neighbour."
                )
        if self.keys and len(self.keys) != image.shape[0]:
            raise ShapeError(f"Batch.keys must name each of {image.shape[0]} images or be empty, got {len(self.keys)}.")
        _check_unit_range(image)

    def __len__(self) -> int:
        return self.image.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=non_blocking)

        return replace(self, image=self.image.to(device, non_blocking=non_blocking),
                       instances=move(self.instances), classes=move(self.classes))


@dataclass(frozen=True)
class Features:
    """Tokens [B, N, D] of an image and the grid (h, w) they came from; h * w == N, row by row."""

    tokens: Tensor
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3:
            raise ShapeError(f"Features.tokens must be [B, N, D], got {list(self.tokens.shape)}.")
        _check_grid("Features.tokens", self.grid, self.tokens.shape[1])

    @property
    def width(self) -> int:
        return self.tokens.shape[-1]


@dataclass(frozen=True)
class Slots:
    """What the slot module found.

    vectors: [B, K, D]. attn: [B, K, N], sums to 1 over K (and over the heads it is the sum of); it is the attention of the
    last iteration, before renormalising over tokens. grid: (h, w) of the tokens. active: bool [B, K] or None (all).
    """

    vectors: Tensor
    attn: Tensor
    grid: tuple[int, int]
    active: Tensor | None = None

    def __post_init__(self) -> None:
        if self.vectors.ndim != 3 or self.attn.ndim != 3 or self.vectors.shape[:2] != self.attn.shape[:2]:
            raise ShapeError(
                f"Slots need vectors [B, K, D] and attn [B, K, N], got {list(self.vectors.shape)} and {list(self.attn.shape)}."
            )
        _check_grid("Slots.attn", self.grid, self.attn.shape[-1])
        if self.active is not None and self.active.shape != self.vectors.shape[:2]:
            raise ShapeError(f"Slots.active must be [B, K] = {list(self.vectors.shape[:2])}, got {list(self.active.shape)}.")

    def maps(self) -> Tensor:
        """The attention as pictures [B, K, h, w]."""
        return self.attn.unflatten(-1, self.grid)


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser attends to: slots [B, K, C], registers [R, C] or None, slot_mask [B, K] bool or None.

    Registers belong to the whole batch and are not repeated over it; slot_mask False means: this slot is not attended.
    """

    slots: Tensor
    registers: Tensor | None = None
    slot_mask: Tensor | None = None


@dataclass(frozen=True)
class Decoding:
    """What the decoder made of the slots, and what it should have made: the decoder owns its target.

    prediction, target: same shape [B, ...]. masks: [B, K, h, w], sums to 1 over K, or None.
    """

    prediction: Tensor
    target: Tensor
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.prediction.shape != self.target.shape:
            shapes = f"{list(self.prediction.shape)} and {list(self.target.shape)}"
            raise ShapeError(f"Decoding needs prediction and target of one shape, got {shapes}.")

    def error(self) -> Tensor:
        """Mean squared error of each image, [B], in float32 or wider."""
        wide = torch.promote_types(self.prediction.dtype, torch.float32)
        return (self.prediction.to(wide) - self.target.to(wide)).square().flatten(1).mean(1)


@dataclass(frozen=True)
class Output:
    """What `model(batch)` returns."""

    features: Features
    slots: Slots
    decoding: Decoding


@dataclass(frozen=True)
class Step:
    """What a loss may look at: one forward pass and where in the training it happened (0 is the first update)."""

    batch: Batch
    output: Output
    index: int = 0


def _check_grid(name: str, grid: tuple[int, int], num_tokens: int) -> None:
    if math.prod(grid) != num_tokens:
        raise ShapeError(f"{name} holds {num_tokens} tokens, which is not the grid {grid[0]} x {grid[1]}.")


def _check_unit_range(image: Tensor) -> None:
    looks_free = image.device.type == "cpu" and not torch.compiler.is_compiling() and type(image) is Tensor
    if not looks_free or image.numel() == 0:
        return
    low, high = (value.item() for value in torch.aminmax(image.detach()))
    if math.isnan(low) or math.isinf(low) or math.isinf(high):
        raise RangeError("Batch.image holds NaN or infinite values; find the sample that made them with `ocl data check`.")
    if low < -RANGE_SLACK or high > 1 + RANGE_SLACK:
        hint = "use image / 255" if high > 2 else "use (image + 1) / 2" if low < 0 else "clamp it"
        raise RangeError(f"Batch.image must lie in [0, 1], got [{low:.3g}, {high:.3g}]; {hint}.")
