"""One integer table per image: which labels meet in how many pixels, ignored pixels apart. All scores follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocl.errors import RangeError
from ocl.ops.label_contingency import check_labels, contingency_op, label_range

Counts = NDArray[np.int64]
COMPACT_ABOVE = 2**22  # entries of a table; larger ones are built on labels numbered without gaps


@dataclass(frozen=True)
class Contingency:
    """Label counts of B images; column 0 of `counts` is the background.

    counts: [B, P, T] pixels by (pred, true) label. void: [B, P] ignored pixels by pred label.
    regions: [B] number of true labels up to the largest one, background and gaps included; 0 in an image without pixels.
    segments: [B] number of pred labels up to the largest one, gaps included.
    """

    counts: Counts
    void: Counts
    regions: Counts
    segments: Counts

    def __len__(self) -> int:
        return len(self.counts)

    def without_gaps(self) -> Contingency:
        """As if the objects of each image had been numbered 1, 2, ... without gaps."""
        objects = (self.counts[:, :, 1:].sum(axis=1) > 0).sum(axis=1)
        return replace(self, regions=np.where(self.regions > 0, objects + 1, 0))


def tabulate(pred: Tensor, true: Tensor, ignore: Tensor | None = None) -> Contingency:
    """Count the label pairs of each image or clip.

    pred, true: integers >= 0 of one shape [B, ...]; ignore: bool of that shape, true labels under it may be anything.
    Any ids will do: widely scattered ones are numbered before counting. The table comes back on the CPU.
    Raises ShapeError or RangeError naming the argument.
    """
    check_labels(pred, true, ignore)
    num_pred, num_true = _num_labels("pred", pred, None), _num_labels("true", true, ignore)
    pred_ids, true_ids = np.arange(0), np.arange(0)
    is_sparse = len(pred) * num_pred * (num_true + 1) > COMPACT_ABOVE
    if is_sparse:
        pred, pred_ids = _number(pred, None)
        true, true_ids = _number(true, ignore)
        num_pred, num_true = len(pred_ids), len(true_ids)
    table = contingency_op(pred, true, ignore, num_pred, num_true).cpu().numpy()
    counts, void = table[..., :-1], table[..., -1]
    largest_true, largest_pred = _last_used(counts.sum(axis=1)), _last_used(counts.sum(axis=2) + void)
    if is_sparse:
        largest_true, largest_pred = true_ids[largest_true], pred_ids[largest_pred]
    has_pixels = int(pred[0].numel() > 0) if len(pred) else 0
    return Contingency(counts, void, regions=(largest_true + 1) * has_pixels, segments=(largest_pred + 1) * has_pixels)


def relabel(labels: Tensor) -> Tensor:
    """Objects numbered 1, 2, ... in the order of their ids, image by image; 0 and negative labels stay what they are.

    labels: integers [B, ...]. Returns int64 of the same shape. Published code does this for photographs, not for MOVi.
    """
    numbered = labels.long().clone()
    for image in numbered:
        objects = image > 0
        image[objects] = torch.unique(image[objects], return_inverse=True)[1] + 1
    return numbered


def _num_labels(name: str, labels: Tensor, ignore: Tensor | None) -> int:
    low, high = label_range(labels, ignore)
    if low < 0:
        hint = "pass ignore=(true < 0)" if name == "true" else "give every pixel a segment"
        raise RangeError(f"segmentation scores expect labels {name} >= 0, got {low}; {hint}.")
    return max(high, 0) + 1


def _number(labels: Tensor, ignore: Tensor | None) -> tuple[Tensor, Counts]:
    """Labels as positions in the sorted list of ids that occur anywhere in the batch; that list begins with 0."""
    labels = labels.long() if ignore is None else labels.long().masked_fill(ignore, 0)
    ids, positions = torch.unique(labels, return_inverse=True)
    if ids[0] != 0:
        ids, positions = torch.cat([ids.new_zeros(1), ids]), positions + 1
    return positions, ids.cpu().numpy()


def _last_used(sizes: Counts) -> Counts:
    """[B, T] -> [B]: the largest index whose size is not 0, 0 where there is none."""
    return np.max((sizes > 0) * np.arange(sizes.shape[1]), axis=1, initial=0)
