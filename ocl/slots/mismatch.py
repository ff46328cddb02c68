"""Slots that do not belong to an image: mixtures of its own and its partner's (CODA: Nguyen et al. 2026, contrastive alignment)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ocl.interfaces import SlotInit
from ocl.nn.draws import normal, uniform
from ocl.types import Mismatch, Randomness, Slots


def shared_noise(init: SlotInit, batch_size: int, mismatch: Mismatch, generator: Randomness, *, device: torch.device) -> Tensor:
    """Noise [B, K, D] that is the same for partners, so that slot k of both starts alike."""
    drawn = batch_size // 2 if _in_halves(batch_size, mismatch) else min(batch_size, 1)
    noise = normal((drawn, init.num_slots, init.slot_dim), _first(generator, drawn), device=device)
    return noise.repeat(batch_size // max(drawn, 1), 1, 1)


def partners(batch_size: int, mismatch: Mismatch, *, device: torch.device) -> Tensor:
    """Index of each image's partner, int64 [B]; a batch of one is its own."""
    step = batch_size // 2 if _in_halves(batch_size, mismatch) else 1
    return (torch.arange(batch_size, device=device) - step) % max(batch_size, 1)


def swapped(slots: Slots, mismatch: Mismatch, generator: Randomness = None, *, draw: Tensor | None = None) -> Slots:
    """Some slots of each image replaced by its partner's slots of the same index; gradients flow to both images.

    draw: numbers in [0, 1), [B, K], to use in place of drawing them from `generator`.
    """
    batch, num_slots = slots.vectors.shape[:2]
    partner = partners(batch, mismatch, device=slots.vectors.device)
    if draw is None:
        draw = uniform((batch, num_slots), generator, device=slots.vectors.device)
    own = keep(draw, mismatch)[..., None]
    active = None if slots.active is None else torch.where(own[..., 0], slots.active, slots.active[partner])
    vectors = torch.where(own, slots.vectors, slots.vectors[partner])
    attn = torch.where(own, slots.attn, slots.attn[partner])
    return replace(slots, vectors=vectors, attn=attn, active=active)


def keep(draw: Tensor, mismatch: Mismatch) -> Tensor:
    """Which slots stay an image's own, bool [B, K], from numbers in [0, 1)."""
    batch, num_slots = draw.shape
    if mismatch.swap == "exact":
        swaps = max(int(num_slots * mismatch.rate), 1)
        return draw.argsort(dim=1).argsort(dim=1) >= swaps
    own = draw > mismatch.rate
    if mismatch.swap == "complementary" and _in_halves(batch, mismatch):
        first = own[: batch // 2]
        return torch.cat([first, first])
    return own


def _in_halves(batch_size: int, mismatch: Mismatch) -> bool:
    return mismatch.pairing == "halves" and batch_size % 2 == 0


def _first(generator: Randomness, count: int) -> Randomness:
    return generator if generator is None or isinstance(generator, torch.Generator) else generator[:count]
