"""Are the slots alive? Gauges on attention maps, and the remedies that users of slot attention found for each disease."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from ocl.types import Slots

DEAD_SHARE = 0.1  # of the mass 1/K that a slot would hold if all held the same
DUPLICATE_COSINE = 0.95
STRIPE_CORRELATION = 0.95
FLAT_VARIATION = 0.2  # standard deviation over tokens, relative to the mean

REMEDIES = {
    "dead": (
        0.5,
        "more than half of the slots hold no pixels: use fewer slots, a Gaussian slot init instead of learned slots "
        "(slots that share one distribution cannot die), or a lower learning rate with a longer warm-up",
    ),
    "duplicate": (
        0.5,
        "more than half of the slots copy another slot: use fewer slots, a Gaussian or more spread slot init, "
        "or more slot attention iterations",
    ),
    "stripes": (
        0.7,
        "slots split the image by position, the same way in every image: lower the learning rate and lengthen the warm-up, "
        "weaken the position code, add iterations, use a Gaussian slot init rather than a learned one, or implicit gradients",
    ),
    "entropy": (
        0.95,
        "every slot sees everything: warm the learning rate up longer or lower it, add slot attention iterations, use a "
        "smaller eps, implicit or truncated gradients, or another slot init (learned instead of Gaussian, or the reverse)",
    ),
}


def dead_slots(slots: Slots) -> Tensor:
    """bool [B, K]: the slot holds less than DEAD_SHARE / K of the image. Slots that are not active are absent, not dead."""
    mass = slots.attn.float().mean(-1)
    return (mass < DEAD_SHARE / _counts(slots)[:, None]) & _active(slots)


def duplicate_slots(slots: Slots) -> Tensor:
    """bool [B, K]: an earlier slot of the image has the same map up to scale (cosine over DUPLICATE_COSINE).

    Dead slots and flat maps do not count (`attention_entropy` sees the latter).
    """
    maps = torch.nn.functional.normalize(slots.attn.float(), dim=-1) * _telling(slots)[..., None]
    return (maps @ maps.mT > DUPLICATE_COSINE).tril(-1).any(-1)


def stripe_slots(slots: Slots) -> Tensor:
    """bool [B, K]: a slot of the next image of the batch has the same map, so the map depends on position, not on content.

    Same means a Pearson correlation over tokens above STRIPE_CORRELATION; every slot of the next image is tried, because slots
    have no order. Dead slots and flat maps do not count. The images of the batch must differ; one image alone has no stripes.
    """
    attn = slots.attn.float()
    if len(attn) < 2:
        return torch.zeros_like(attn[..., 0], dtype=torch.bool)
    centred = attn - attn.mean(-1, keepdim=True)
    maps = torch.nn.functional.normalize(centred, dim=-1) * _telling(slots)[..., None]
    return (maps @ maps.roll(-1, 0).mT > STRIPE_CORRELATION).any(-1)


def attention_entropy(slots: Slots) -> Tensor:
    """float32 [B]: mean over tokens of -sum_k a log a, divided by log K. 0: each token has one slot, 1: all slots are alike."""
    attn = slots.attn.float().clamp_min(torch.finfo(torch.float32).tiny)
    entropy = -(attn * attn.log()).sum(1).mean(-1)
    return entropy / _counts(slots).clamp_min(2).log()


@torch.no_grad()
def gauges(slots: Slots) -> dict[str, float]:
    """Share of slots, averaged over images, that are dead, duplicates or stripes, and the mean entropy; each in [0, 1]."""
    counts = _counts(slots)
    shares = torch.stack([
        (dead_slots(slots).sum(1) / counts).mean(),
        (duplicate_slots(slots).sum(1) / counts).mean(),
        (stripe_slots(slots).sum(1) / counts).mean(),
        attention_entropy(slots).mean(),
    ])
    return dict(zip(REMEDIES, shares.tolist(), strict=True))


@final
class Monitor:
    """Warns when a gauge stays beyond its limit for `patience` readings, once per kind until it recovers.

    Args:
        patience: readings in a row; slots look undecided for a while after every start.
    """

    def __init__(self, *, patience: int = 3) -> None:
        self._patience = patience
        self._streaks = dict.fromkeys(REMEDIES, 0)

    def read(self, values: Mapping[str, float]) -> list[str]:
        """Take one reading of `gauges`; returns the warnings that are due now."""
        warnings = []
        for kind, (limit, remedy) in REMEDIES.items():
            ill = not math.isnan(values[kind]) and values[kind] > limit
            self._streaks[kind] = self._streaks[kind] + 1 if ill else 0
            if self._streaks[kind] == self._patience:
                warnings.append(f"slot health: {kind} {values[kind]:.2f} (limit {limit}): {remedy}.")
        return warnings


def _active(slots: Slots) -> Tensor:
    everything = torch.ones_like(slots.attn[..., 0], dtype=torch.bool)
    return everything if slots.active is None else slots.active


def _telling(slots: Slots) -> Tensor:
    """bool [B, K]: the map says where the slot looks: the slot is alive, and its map is not flat."""
    attn = slots.attn.float()
    flat = attn.std(-1, correction=0) < FLAT_VARIATION * attn.mean(-1)
    return _active(slots) & ~dead_slots(slots) & ~flat


def _counts(slots: Slots) -> Tensor:
    return _active(slots).sum(1).clamp_min(1).float()
