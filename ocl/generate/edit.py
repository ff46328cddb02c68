"""Edits of an image by its slots: pure functions, Slots in, Slots out. Draw the result with `sample`."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ocl.errors import ConfigError
from ocl.models import SlotAutoencoder
from ocl.types import Slots


def drop(slots: Slots, index: int) -> Slots:
    """Remove one slot and give its pixels to the others, in proportion to what they already held.

    Raises ConfigError where there is no other.
    """
    _check(slots, index)
    others = [k for k in range(slots.vectors.shape[1]) if k != index]
    if not others:
        raise ConfigError("drop would remove the only slot of the image, and nothing is left to draw; swap it, or use more slots.")
    attn = slots.attn[:, others]
    total = attn.sum(dim=1, keepdim=True)
    attn = torch.where(total > 0, attn / total.clamp_min(1e-12), 1 / len(others))
    active = None if slots.active is None else slots.active[:, others]
    return replace(slots, vectors=slots.vectors[:, others], attn=attn, active=active)


def keep_only(slots: Slots, index: int) -> Slots:
    """One slot alone, which holds every pixel."""
    _check(slots, index)
    one = slice(index, index + 1)
    active = None if slots.active is None else slots.active[:, one]
    return replace(slots, vectors=slots.vectors[:, one], attn=torch.ones_like(slots.attn[:, one]), active=active)


def swap(slots: Slots, index: int, other: Slots, other_index: int) -> Slots:
    """Put a slot of another image in the place of one; its pixels stay where they were."""
    _check(slots, index)
    _check(other, other_index)
    vectors = slots.vectors.clone()
    vectors[:, index] = other.vectors[:, other_index]
    return replace(slots, vectors=vectors)


def insert(slots: Slots, other: Slots, other_index: int) -> Slots:
    """Add a slot of another image as the last one; it takes the pixels that it held there from all others."""
    _check(other, other_index)
    one = slice(other_index, other_index + 1)
    taken = other.attn[:, one]
    active = None
    if slots.active is not None:
        active = torch.cat([slots.active, torch.ones_like(slots.active[:, :1])], dim=1)
    vectors = torch.cat([slots.vectors, other.vectors[:, one]], dim=1)
    return replace(slots, vectors=vectors, attn=torch.cat([slots.attn * (1 - taken), taken], dim=1), active=active)


@torch.no_grad()
def move(model: SlotAutoencoder, image: Tensor, index: int, offset: tuple[int, int], *, noise: Tensor) -> Slots:
    """The object of one slot at another place: its slot is read from the image shifted by `offset` (down, right) in pixels.

    The shifted image is encoded from the same noise, and the slot that covers the shifted pixels best takes the place of the
    old one. A slot is not a movable sprite: what it knows about its place it learned from its tokens.
    """
    slots = model.encode(image, noise=noise)[1]
    _check(slots, index)
    shifted = model.encode(_shift(image, offset), noise=noise)[1]
    (height, width), (rows, columns) = image.shape[-2:], slots.grid
    cells = (round(offset[0] * rows / height), round(offset[1] * columns / width))
    wanted = _shift(slots.maps()[:, index : index + 1], cells).flatten(2)
    found = torch.cosine_similarity(wanted, shifted.attn, dim=2).argmax(dim=1)
    each = torch.arange(len(image), device=image.device)
    vectors, maps = slots.vectors.clone(), slots.attn.clone()
    vectors[:, index] = shifted.vectors[each, found]
    maps[:, index] = 0
    rest = maps.sum(dim=1, keepdim=True)
    maps = torch.where(rest > 0, maps / rest.clamp_min(1e-12), 1 / maps.shape[1])
    taken = wanted[:, 0]
    maps = maps * (1 - taken[:, None])
    maps[:, index] += taken
    return replace(slots, vectors=vectors, attn=maps)


def _shift(picture: Tensor, offset: tuple[int, int]) -> Tensor:
    """[..., H, W] moved down and right; what comes in from outside repeats the border."""
    height, width = picture.shape[-2:]
    rows = (torch.arange(height, device=picture.device) - offset[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=picture.device) - offset[1]).clamp(0, width - 1)
    return picture[..., rows, :][..., columns]


def _check(slots: Slots, index: int) -> None:
    count = slots.vectors.shape[1]
    if not 0 <= index < count:
        raise ConfigError(f"the image has {count} slots, got index {index}; pass 0 to {count - 1}.")
