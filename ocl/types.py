"""The values that flow between parts, and the shape letters used everywhere.

B batch, K slots, R registers, N tokens, D width, H W pixels, h w token grid, M queries of the decoder, C channels,
L conditioning tokens. Each value checks itself when it is made, so a part may trust what it receives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ocl.errors import RangeError, ShapeError

Randomness = torch.Generator | Sequence[torch.Generator] | None
"""Where draws come from: one generator for a batch, one per image so that batching changes nothing, or torch's global one."""

RANGE_SLACK = 1e-3  # resizing with a smooth filter overshoots by rounding, never by more


@dataclass(frozen=True)
class Batch:
    """Images with their ground truth.

    image: float [B, 3, H, W] in [0, 1]; every consumer normalises for itself.
    instances, classes: integer [B, H, W] or None; 0 is background, -1 is to be ignored.
    keys: one stable name per image (a file name, a scene number), or empty.
    features, moments: what a frozen encoder, or the autoencoder of a diffusion model, makes of these images, where it was
    computed before (`ocl cache`); the model then does not compute it again.
    Values are checked on the CPU only, where looking at them does not wait for a device.
    """

    image: Tensor
    instances: Tensor | None = None
    classes: Tensor | None = None
    keys: tuple[str, ...] = ()
    features: Features | None = None
    moments: Moments | None = None

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
        tokens = None if self.features is None else self.features.tokens
        mean = None if self.moments is None else self.moments.mean
        for name, values in (("features", tokens), ("moments", mean)):
            if values is not None and len(values) != image.shape[0]:
                raise ShapeError(f"Batch.{name} must belong to its {image.shape[0]} images, got {list(values.shape)}.")
        _check_unit_range(image)

    def __len__(self) -> int:
        return self.image.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""

        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device, non_blocking=non_blocking)

        features, moments = self.features, self.moments
        return replace(
            self,
            image=self.image.to(device, non_blocking=non_blocking),
            instances=move(self.instances),
            classes=move(self.classes),
            features=features and replace(features, tokens=features.tokens.to(device, non_blocking=non_blocking)),
            moments=moments and Moments(moments.mean.to(device, non_blocking=non_blocking), move(moments.std)),
        )


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
class Moments:
    """The posterior of an image's latents as an autoencoder gives it, before scaling: mean and std [B, C, h, w].

    std is the root of the variance, or None where latents follow from the image without spread.
    """

    mean: Tensor
    std: Tensor | None = None

    def __post_init__(self) -> None:
        if self.mean.ndim != 4 or (self.std is not None and self.std.shape != self.mean.shape):
            found = [list(value.shape) for value in (self.mean, self.std) if value is not None]
            raise ShapeError(f"Moments need mean and std of one shape [B, C, h, w], got {' and '.join(map(str, found))}.")


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

    def part(self, images: slice) -> Slots:
        """Those of some images of the batch."""
        active = None if self.active is None else self.active[images]
        return Slots(self.vectors[images], self.attn[images], self.grid, active)


@dataclass(frozen=True)
class Conditioning:
    """What a denoiser attends to: slots [B, K, C], registers [R, C] or None, slot_mask [B, K] bool or None.

    Registers belong to the whole batch and are not repeated over it; slot_mask False means: this slot is not attended.
    text: [B, L, C] or None; stands in for the prompt where the slots have layers of their own.
    """

    slots: Tensor
    registers: Tensor | None = None
    slot_mask: Tensor | None = None
    text: Tensor | None = None

    def __post_init__(self) -> None:
        if self.slots.ndim != 3:
            raise ShapeError(f"Conditioning.slots must be [B, K, C], got {list(self.slots.shape)}.")
        batch, num_slots, width = self.slots.shape
        if self.registers is not None and (self.registers.ndim != 2 or self.registers.shape[1] != width):
            shape = list(self.registers.shape)
            raise ShapeError(f"Conditioning.registers must be [R, C] with C = {width} as the slots, got {shape}.")
        if self.slot_mask is not None and (self.slot_mask.shape != (batch, num_slots) or self.slot_mask.dtype != torch.bool):
            found = f"{self.slot_mask.dtype} {list(self.slot_mask.shape)}"
            raise ShapeError(f"Conditioning.slot_mask must be bool [B, K] = {[batch, num_slots]}, got {found}.")
        if self.text is not None and (self.text.ndim != 3 or self.text.shape[::2] != (batch, width)):
            raise ShapeError(f"Conditioning.text must be [B, L, C] = [{batch}, L, {width}], got {list(self.text.shape)}.")


@dataclass(frozen=True)
class Denoised:
    """What a denoiser predicts from a noisy latent, of the latent's shape.

    contrast: the prediction under another conditioning, or None. maps: attention mass of each slot [B, K, h, w], or None.
    """

    prediction: Tensor
    contrast: Tensor | None = None
    maps: Tensor | None = None


@dataclass(frozen=True)
class Decoding:
    """What the decoder made of the slots, and what it should have made: the decoder owns its target.

    prediction, target: same shape [B, ...]. masks: [B, K, h, w], sums to 1 over K, or None.
    contrast: the prediction from slots that do not belong to the image, or None; it trains the slots, and the decoder only
        where `Mismatch.stop_gradient` is false.
    """

    prediction: Tensor
    target: Tensor
    masks: Tensor | None = None
    contrast: Tensor | None = None

    def __post_init__(self) -> None:
        if self.prediction.shape != self.target.shape or (self.contrast is not None and self.contrast.shape != self.target.shape):
            found = [list(value.shape) for value in (self.prediction, self.target, self.contrast) if value is not None]
            shapes = " and ".join(map(str, found))
            raise ShapeError(f"Decoding needs prediction and target of one shape, got {shapes}.")

    def error(self) -> Tensor:
        """Mean squared error of each image, [B], in float32 or wider."""
        return _mean_squared(self.prediction, self.target)

    def contrast_error(self) -> Tensor:
        """The same for the prediction from slots of other images. Raises ShapeError where there is none."""
        if self.contrast is None:
            raise ShapeError("Decoding.contrast is None: this pass decoded no slots of other images.")
        return _mean_squared(self.contrast, self.target)


@dataclass(frozen=True)
class Mismatch:
    """How slots that do not belong to an image are made from those of its partner in the batch (CODA).

    Partners start from the same slot noise, so that slot k of both means similar things; slot k is swapped for slot k.

    rate: how likely, or how large a share of the slots, is swapped.
    swap: "independent" draws every slot of every image on its own; "exact" swaps floor(K * rate) slots, at least one, of each
        image; "complementary" lets partners exchange the same slots, so that every slot is in exactly one of both mixtures
        (with "halves" and an even B; else as "independent").
    pairing: "halves" pairs image i with i + B / 2; "ring" gives all images one noise and pairs i with i + 1, for any batch
        size ("halves" falls back to it where B is odd).
    decode: false in the warm-up, where partners share noise and nothing is swapped yet.
    stop_gradient: false lets the error of the mixtures reach the decoder as well, an ablation in which training collapses.
    """

    rate: float = 0.5
    swap: Literal["independent", "exact", "complementary"] = "independent"
    pairing: Literal["halves", "ring"] = "halves"
    decode: bool = True
    stop_gradient: bool = True


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


def _mean_squared(prediction: Tensor, target: Tensor) -> Tensor:
    wide = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(wide) - target.to(wide)).square().flatten(1).mean(1)


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
