"""Whether a slot draws its own object and nothing else: two measures on generated pictures, 0 for slots that do, 1 for none."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot

from ocl.vis.masks import hard_labels


def recognised(vectors: Tensor, seen: Tensor, labels: Tensor, living: Tensor) -> Tensor:
    """What slots of the image a picture shows: the share of its pixels [B, K].

    vectors: the image's slots [B, K, D]. seen: slots of the picture, encoded by the same model, [B, J, D]. labels: which of those
    owns each pixel of the picture, int64 [B, H, W]. Each is taken for the image's slot that it is most like (cosine) of those that
    own pixels there (`living` bool [B, K]). Rows sum to 1; zero for an image in which no slot lives.
    """
    likeness = cosine_similarity(seen[:, :, None], vectors[:, None], dim=-1).masked_fill(~living[:, None], -torch.inf)
    taken_for = one_hot(likeness.argmax(dim=2), vectors.shape[1]).double()
    owned = one_hot(labels.flatten(1), seen.shape[1]).double().mean(dim=1)
    return (owned[:, None] @ taken_for)[:, 0] * living.any(dim=1, keepdim=True)


def mixing(shares: Tensor, living: Tensor) -> Tensor:
    """Entanglement of single-slot pictures, float64 [B]: how much of the picture drawn from one slot shows other slots.

    shares [B, K, K]: row k is `recognised` of the picture drawn from slot k alone. With own the mean share of slot k in its own
    picture and A the number of slots that own pixels, the measure is (1 - own) / (1 - 1 / A): 0 where every picture shows its slot
    and nothing else, 1 where all pictures are the same, whatever they show, or show slots at random; more where pictures show the
    wrong slots systematically. Slots that own no pixel are left out; NaN where fewer than two do.
    """
    count = living.sum(dim=1).double()
    own = (shares.diagonal(dim1=1, dim2=2) * living).sum(dim=1) / count
    return torch.where(count > 1, (1 - own) / (1 - 1 / count), torch.nan)


def spill(whole: Tensor, without: Tensor, labels: Tensor) -> Tensor:
    """How much of what a slot draws lies outside its mask, float64 [B, K], from pictures drawn with all slots and with all but one.

    whole [B, 3, H, W], without [B, K, 3, H, W], drawn from the same noise; labels: the slot of each pixel, int64 [B, H, W]. The
    measure is (mean change per pixel outside the mask) / (mean change inside), at most 1: 0 where removing a slot changes nothing
    but its own pixels, 1 where the change has nothing to do with its mask. NaN for a slot that owns no pixel, or all of them, or
    whose removal changes nothing.
    """
    change = (whole[:, None] - without).abs().double().mean(dim=2)
    mask = one_hot(labels, without.shape[1]).permute(0, 3, 1, 2).double()
    inside = (change * mask).sum((2, 3)) / mask.sum((2, 3))
    outside = (change * (1 - mask)).sum((2, 3)) / (1 - mask).sum((2, 3))
    ratio = (outside / inside).clamp(max=1)
    return torch.where((inside > 0) | (outside > 0), ratio, torch.nan)


def living_slots(maps: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Soft maps [B, K, h, w] -> the slot of each pixel, int64 [B, H, W], and which slots own any, bool [B, K]."""
    labels = hard_labels(maps, size)
    return labels, one_hot(labels.flatten(1), maps.shape[1]).any(dim=1)
