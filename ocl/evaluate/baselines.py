"""Segmenters that learn nothing. A model is worth its training only above all of them: on small scenes they score high."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

# images [B, 3, H, W] in [0, 1] and a CPU generator (for those that draw) -> labels, int64 [B, H, W]
Segmenter = Callable[[Tensor, torch.Generator], Tensor]


def one_segment(images: Tensor, generator: torch.Generator) -> Tensor:
    """The whole image is one segment."""
    return torch.zeros(len(images), *images.shape[2:], dtype=torch.int64)


def random_pixels(images: Tensor, generator: torch.Generator, *, segments: int) -> Tensor:
    """Each pixel draws its segment by itself."""
    size = images.shape[2:]
    return torch.stack([torch.randint(segments, size, generator=generator) for _ in images])


def random_blocks(images: Tensor, generator: torch.Generator, *, segments: int) -> Tensor:
    """Each pixel belongs to the nearest of some random points (a Voronoi diagram)."""
    places = _places(images)
    points = [torch.rand(segments, 2, generator=generator) for _ in images]
    return torch.stack([_nearest(places, centres) for centres in points]).unflatten(1, images.shape[2:])


def grid(images: Tensor, generator: torch.Generator, *, rows: int, columns: int) -> Tensor:
    """The image is cut into rows x columns equal cells."""
    height, width = images.shape[2:]
    row, column = torch.arange(height) * rows // height, torch.arange(width) * columns // width
    return (row[:, None] * columns + column).repeat(len(images), 1, 1)


def colour_clusters(images: Tensor, generator: torch.Generator, *, segments: int, position: float = 0.0) -> Tensor:
    """K-means over the colours of each image, and over `position` times the place of a pixel (0 to 1 along each side)."""
    places = position * _places(images)
    colours = images.detach().float().cpu().flatten(2).transpose(1, 2)
    points = [torch.cat([own, places], dim=1) if position else own for own in colours]
    return torch.stack([kmeans(own, segments, generator=generator) for own in points]).unflatten(1, images.shape[2:])


def kmeans(points: Tensor, clusters: int, *, generator: torch.Generator, steps: int = 25, sample: int = 2048) -> Tensor:
    """The cluster of each point [N, D], int64 [N]: Lloyd's algorithm from greedy k-means++ seeds (Arthur & Vassilvitskii 2007).

    Centres are fitted on every n-th point, so that at most `sample` are used, for at most `steps` rounds.
    Where there are fewer distinct points than clusters, some clusters stay empty.
    """
    fitted = points[:: math.ceil(len(points) / sample)]
    centres = _seeds(fitted, clusters, generator)
    labels = _nearest(fitted, centres)
    for _ in range(steps):
        counts = torch.bincount(labels, minlength=clusters)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, labels, fitted)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        before, labels = labels, _nearest(fitted, centres)
        if torch.equal(before, labels):
            break
    return _nearest(points, centres)


RANDOM_SEGMENTS = 7

BASELINES: Mapping[str, Segmenter] = {
    "one segment": one_segment,
    "random pixels": partial(random_pixels, segments=RANDOM_SEGMENTS),
    "random blocks": partial(random_blocks, segments=RANDOM_SEGMENTS),
    "4 rows": partial(grid, rows=4, columns=1),
    "4 columns": partial(grid, rows=1, columns=4),
    **{f"grid {side}x{side}": partial(grid, rows=side, columns=side) for side in (2, 3, 4)},
    **{f"colour k-means, {count}": partial(colour_clusters, segments=count) for count in (3, 5, 7, 9)},
    **{f"colour+place k-means, {count}": partial(colour_clusters, segments=count, position=1.0) for count in (5, 7, 9)},
}


def _places(images: Tensor) -> Tensor:
    """Centres of the pixels of one image, row by row: [H * W, 2], 0 to 1 along each side."""
    height, width = images.shape[2:]
    return torch.cartesian_prod((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The centre [K, D] nearest to each point [N, D]; the lower one of equals."""
    return (centres.square().sum(1) - 2 * points @ centres.T).argmin(1)


def _seeds(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++: of a few points drawn in proportion to their squared distance, the one that lowers the error most."""
    trials = 2 + int(math.log(clusters))
    first = points[torch.randint(len(points), (1,), generator=generator)]
    centres, nearest = [first], (points - first).square().sum(1)
    for _ in range(clusters - 1):
        reach = nearest.double().cumsum(0)
        drawn = torch.searchsorted(reach, torch.rand(trials, generator=generator, dtype=torch.float64) * reach[-1])
        candidates = points[drawn.clamp(max=len(points) - 1)]
        distances = torch.minimum(nearest, (points - candidates[:, None]).square().sum(2))
        best = int(distances.sum(1).argmin())
        centres.append(candidates[best : best + 1])
        nearest = distances[best]
    return torch.cat(centres)
