"""Scores of one contingency table under one treatment of ignored pixels: adjusted Rand index, IoU, matchings."""

from __future__ import annotations

from functools import cached_property
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ocl.metrics.contingency import Contingency, Counts
from ocl.metrics.protocols import Void

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def adjusted_rand_index(counts: Counts) -> Floats:
    """Adjusted Rand index of each table [B, P, T] (Hubert & Arabie 1985): 1 for equal partitions, about 0 for chance.

    1 where both partitions are one region, where both are single pixels, and where there is no pixel (SAVi's convention).
    Pair counts are integers and their ratio is exact before its one rounding, for up to 3e9 pixels per table.
    """

    def pairs(sizes: Counts) -> Counts:
        return sizes * (sizes - 1)

    together = pairs(counts).sum(axis=(1, 2))
    in_pred = pairs(counts.sum(axis=2)).sum(axis=1)
    in_true = pairs(counts.sum(axis=1)).sum(axis=1)
    in_all = pairs(counts.sum(axis=(1, 2)))
    rows = zip(together.tolist(), in_pred.tolist(), in_true.tolist(), in_all.tolist(), strict=True)
    return np.array([_rand_ratio(*row) for row in rows], dtype=np.float64)


def _rand_ratio(together: int, in_pred: int, in_true: int, in_all: int) -> float:
    """(together - expected) / (mean - expected), expected = in_pred in_true / in_all, in Python's unbounded integers."""
    product = in_pred * in_true
    best = (in_pred + in_true) * in_all - 2 * product
    return 2 * (together * in_all - product) / best if best else 1.0


@final
class Overlap:
    """Regions and segments of B images once it is decided where the ignored pixels belong.

    shared: [B, P, T] pixels in common. segment_size [B, P], region_size [B, T]: what the union of an IoU is made of.
    """

    def __init__(self, table: Contingency, void: Void) -> None:
        self._num_segments = table.segments
        self._matchings: dict[tuple[str, bool, bool], Counts] = {}
        self.shared = table.counts
        self.segment_size = table.counts.sum(axis=2)
        if void == "background":
            self.shared = table.counts.copy()
            self.shared[:, :, 0] += table.void
            self.segment_size = self.segment_size + table.void
        elif void == "extra_segment":
            extra = np.zeros_like(table.counts[:, :1])
            extra[:, 0, 0] = table.void.sum(axis=1)
            self.shared = np.concatenate([table.counts, extra], axis=1)
            self.segment_size = self.shared.sum(axis=2)
        elif void == "gt_only":
            self.segment_size = self.segment_size + table.void
        self.region_size = self.shared.sum(axis=1)

    @cached_property
    def ari(self) -> Floats:
        """[B], the background as one more region."""
        return adjusted_rand_index(self.shared)

    @cached_property
    def iou(self) -> Floats:
        """[B, P, T] intersection over union of each segment with each region, 0 where both are empty."""
        union = self.segment_size[:, :, None] + self.region_size[:, None] - self.shared
        return self.shared / np.maximum(union, 1)

    @cached_property
    def best_iou(self) -> Floats:
        """[B, T] IoU of each region with the segment that fits it best; a segment may serve several regions."""
        return self.iou.max(axis=1)

    @cached_property
    def cosine(self) -> Floats:
        """[B, P, T] cosine of each pair of binary masks, 0 where one is empty."""
        norm = np.sqrt(self.segment_size[:, :, None].astype(np.float64) * self.region_size[:, None])
        return self.shared / np.maximum(norm, 1)

    def regions(self, *, background: bool) -> Flags:
        """[B, T] labels that some pixel carries; without background, objects only."""
        present = self.region_size > 0
        present[:, 0] &= background
        return present

    def matching(self, by: Literal["iou", "cosine"], *, background: bool, empty_segments: bool) -> Counts:
        """[B, T] the segment of each region, or -1: one to one, with the largest total IoU or cosine. See `match`.

        empty_segments: every label up to the largest one of the image takes part, whether or not a pixel carries it.
        """
        key = (by, background, empty_segments)
        if key not in self._matchings:
            used = self.segment_size > 0
            segments = np.arange(used.shape[1]) < self._num_segments[:, None] if empty_segments else used
            similarity = self.iou if by == "iou" else self.cosine
            self._matchings[key] = match(similarity, self.regions(background=background), segments)
        return self._matchings[key]

    def matched_iou(self, segment: Counts) -> Floats:
        """[B, T] IoU of each region with its segment [B, T]; 0 where that is -1."""
        found = np.take_along_axis(self.iou, np.maximum(segment, 0)[:, None], axis=1)[:, 0]
        return np.where(segment >= 0, found, 0.0)


def match(similarity: Floats, regions: Flags, segments: Flags) -> Counts:
    """One-to-one matching of regions to segments with the largest total similarity (Kuhn 1955), image by image.

    similarity: [B, P, T] >= 0. regions [B, T], segments [B, P]: which of them take part.
    Returns [B, T]: the segment of each region, or -1. A region similar to no segment may be left at -1: it adds nothing.
    Where all regions prefer different segments that is the answer, and nothing is searched.
    """
    num_segments = similarity.shape[1]
    preferred = similarity.argmax(axis=1)
    has_choice = regions & (similarity.max(axis=1) > 0)
    wooers = ((preferred[:, None] == np.arange(num_segments)[:, None]) & has_choice[:, None]).sum(axis=2)
    matching = np.where(has_choice, preferred, -1)
    for image in np.flatnonzero((wooers > 1).any(axis=1)):
        rows, columns = np.flatnonzero(segments[image]), np.flatnonzero(regions[image])
        row, column = linear_sum_assignment(similarity[image][np.ix_(rows, columns)], maximize=True)
        matching[image] = -1
        matching[image, columns[column]] = rows[row]
    return matching
