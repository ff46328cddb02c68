"""ARI, FG-ARI, mBO, mIoU and FG-mIoU of label maps under named protocols, all from one contingency table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ocl.metrics.contingency import Contingency, Counts, tabulate
from ocl.metrics.overlap import Flags, Floats, Overlap, adjusted_rand_index
from ocl.metrics.protocols import Protocol, Score, Void, protocol_named


def segmentation_scores(
    pred: Tensor, true: Tensor, ignore: Tensor | None = None, protocol: str | Protocol = "coda"
) -> dict[str, Tensor]:
    """Scores of each image or clip under one protocol.

    pred, true: integers >= 0 of one shape, [B, H, W] or [B, T, H, W] (a clip is one partition); true 0 is background.
    ignore: bool of that shape; what becomes of those pixels is the protocol's choice, true labels under it may be anything.
    Returns float64 [B] on the CPU under `ari`, `fg_ari`, `mbo`, `miou`, `fg_miou`, as fractions; NaN = not scored, by that
    protocol or for that image. Every score is computed from exact pixel counts. The ids are taken as they come: `coda`
    counts gaps between them as objects that nobody found; use `relabel(true)` first where its data loader renumbers.
    Raises ConfigError for an unknown protocol, ShapeError or RangeError for labels that cannot be counted.
    """
    chosen = protocol_named(protocol)
    (scored,) = score_tables(tabulate(pred, true, ignore), [chosen])
    nothing = np.full(len(pred), np.nan)
    names: tuple[Score, ...] = ("ari", "fg_ari", "mbo", "miou", "fg_miou")
    return {name: torch.from_numpy(scored.values.get(name, nothing).copy()) for name in names}


@dataclass(frozen=True)
class Scored:
    """values: score -> [B], for the scores of the protocol. objects: [B], how many objects mBO and FG-mIoU averaged over."""

    values: dict[Score, Floats]
    objects: Counts


def score_tables(table: Contingency, protocols: Sequence[Protocol]) -> list[Scored]:
    """One table of B images under each protocol; what protocols have in common is computed once."""
    fg_ari = adjusted_rand_index(table.counts[:, :, 1:])  # no treatment of ignored pixels adds foreground
    has_objects = table.counts[:, :, 1:].any(axis=(1, 2))
    overlaps: dict[Void, Overlap] = {}
    scored = []
    for protocol in protocols:
        if protocol.void not in overlaps:
            overlaps[protocol.void] = Overlap(table, protocol.void)
        overlap = overlaps[protocol.void]
        values: dict[Score, Floats] = {}
        if "ari" in protocol.scores:
            values["ari"] = overlap.ari
        if "fg_ari" in protocol.scores:
            values["fg_ari"] = np.where(has_objects | (protocol.empty == "one"), fg_ari, np.nan)
        if "mbo" in protocol.scores:
            values["mbo"] = _mean_best_overlap(table, overlap, protocol)
        if "miou" in protocol.scores:
            values["miou"] = _mean_matched_overlap(table, overlap, protocol, background=True)
        if "fg_miou" in protocol.scores:
            values["fg_miou"] = _mean_matched_overlap(table, overlap, protocol, background=False)
        scored.append(Scored(values, _count(table, overlap, protocol, background=False)))
    return scored


def _mean_best_overlap(table: Contingency, overlap: Overlap, protocol: Protocol) -> Floats:
    """Average over regions of the best IoU (Pont-Tuset et al. 2017, section 5; DINOSAUR leaves the background out)."""
    regions = overlap.regions(background=protocol.mbo_background)
    if protocol.unmatched == "dropped":
        regions &= _match(overlap, protocol, background=False) >= 0
    count = _count(table, overlap, protocol, background=protocol.mbo_background)
    return _average(overlap.best_iou, regions, count)


def _mean_matched_overlap(table: Contingency, overlap: Overlap, protocol: Protocol, *, background: bool) -> Floats:
    matched = overlap.matched_iou(_match(overlap, protocol, background=background))
    return _average(matched, overlap.regions(background=background), _count(table, overlap, protocol, background=background))


def _match(overlap: Overlap, protocol: Protocol, *, background: bool) -> Counts:
    """Segment of each region, -1 for none. Where unmatched objects are dropped, an empty segment can keep an object."""
    return overlap.matching(protocol.matching, background=background, empty_segments=protocol.unmatched == "dropped")


def _count(table: Contingency, overlap: Overlap, protocol: Protocol, *, background: bool) -> Counts:
    """[B] how many regions are averaged over."""
    if protocol.gaps == "zero":
        return table.regions if background else np.maximum(table.regions - 1, 0)
    present = overlap.regions(background=background).sum(axis=1)
    return np.minimum(present, table.segments) if protocol.unmatched == "dropped" else present


def _average(iou: Floats, regions: Flags, count: Counts) -> Floats:
    """Sum of `iou` [B, T] over `regions` divided by `count`, NaN where that is 0.

    Added up in the order of the labels, so that an image scores the same bits in every batch, however wide its table.
    """
    total = np.where(regions, iou, 0.0).cumsum(axis=1)[:, -1]
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
