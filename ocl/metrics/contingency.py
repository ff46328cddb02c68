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
FEW_LABELS = 32
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
    table = _count_few_labels(pred, true, ignore)
    if table is not None:
        return _contingency(table, np.arange(FEW_LABELS), np.arange(FEW_LABELS), pred)
    num_pred, num_true = _num_labels("pred", pred, None), _num_labels("true", true, ignore)
    if len(pred) * num_pred * (num_true + 1) <= COMPACT_ABOVE:
        table = contingency_op(pred, true, ignore, num_pred, num_true)
        return _contingency(table, np.arange(num_pred), np.arange(num_true), pred)
    pred, pred_ids = _number(pred, None)
    true, true_ids = _number(true, ignore)
    return _contingency(contingency_op(pred, true, ignore, len(pred_ids), len(true_ids)), pred_ids, true_ids, pred)


def relabel(labels: Tensor) -> Tensor:
    """Objects numbered 1, 2, ... in the order of their ids, image by image; 0 and negative labels stay what they are.

    labels: integers [B, ...]. Returns int64 of the same shape. Published code does this for photographs, not for MOVi.
    """
    numbered = labels.long().clone()
    for image in numbered:
        objects = image > 0
        image[objects] = torch.unique(image[objects], return_inverse=True)[1] + 1
    return numbered


def _count_few_labels(pred: Tensor, true: Tensor, ignore: Tensor | None) -> Tensor | None:
    """The table where all labels lie below FEW_LABELS, as they nearly always do: one pass, no search for the largest label."""
    try:
        table = contingency_op(pred, true, ignore, FEW_LABELS, FEW_LABELS)
    except RangeError:
        return None
    counts_every_pixel = int(table.sum()) == pred.numel()  # the operator leaves out ignored pixels whose pred does not fit
    return table if counts_every_pixel else None


def _contingency(table: Tensor, pred_ids: Counts, true_ids: Counts, pred: Tensor) -> Contingency:
    """From the operator's table, whose rows and columns stand for these ids; unused ones at the end are cut off."""
    counts, void = np.split(table.cpu().numpy(), [-1], axis=2)
    last_pred, last_true = _last_used(counts.sum(axis=2) + void[..., 0]), _last_used(counts.sum(axis=1))
    num_pred, num_true = last_pred.max(initial=0) + 1, last_true.max(initial=0) + 1
    has_pixels = int(pred[0].numel() > 0) if len(pred) else 0
    return Contingency(
        counts[:, :num_pred, :num_true],
        void[:, :num_pred, 0],
        regions=(true_ids[last_true] + 1) * has_pixels,
        segments=(pred_ids[last_pred] + 1) * has_pixels,
    )


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
