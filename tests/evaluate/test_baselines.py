"""Segmenters that learn nothing."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from ocl.evaluate.baselines import BASELINES, grid, kmeans


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _inertia(points, labels):
    return sum(((points[labels == label] - points[labels == label].mean(0)) ** 2).sum() for label in np.unique(labels))


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_labels_every_pixel_of_odd_and_tiny_images(name):
    for size in [(7, 5), (1, 1), (1, 9)]:
        labels = BASELINES[name](torch.rand(3, 3, *size), _generator())
        assert labels.shape == (3, *size) and labels.dtype == torch.int64 and labels.min() >= 0


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_the_same_at_any_batch_size(name):
    images = torch.rand(5, 3, 12, 16)
    together, one_by_one = _generator(), _generator()
    whole = BASELINES[name](images, together)
    parts = torch.cat([BASELINES[name](image[None], one_by_one) for image in images])
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_changes_neither_images_nor_global_randomness(name):
    images = torch.rand(2, 3, 8, 8)
    before, state = images.clone(), torch.get_rng_state()
    BASELINES[name](images, _generator())
    assert torch.equal(images, before) and torch.equal(state, torch.get_rng_state())


def test_grid_cells_are_equal_rectangles():
    labels = grid(torch.rand(1, 3, 6, 9), _generator(), rows=2, columns=3)[0]
    assert torch.equal(labels, torch.arange(6).reshape(2, 3).repeat_interleave(3, 0).repeat_interleave(3, 1))


def test_grid_of_more_cells_than_pixels_still_gives_each_pixel_its_own():
    assert grid(torch.rand(1, 3, 2, 2), _generator(), rows=4, columns=4).unique().numel() == 4


def test_blocks_are_connected_across_their_nearest_point():
    labels = BASELINES["random blocks"](torch.rand(1, 3, 64, 64), _generator())[0]
    same = (labels[:, 1:] == labels[:, :-1]).float().mean()
    assert labels.unique().numel() > 3 and same > 0.9


@pytest.mark.parametrize("clusters", [2, 5, 9])
def test_kmeans_is_as_tight_as_that_of_sklearn(clusters):
    ours, theirs = 0.0, 0.0
    for seed in range(6):
        places = torch.randint(3, (800, 1), generator=_generator(seed + 50))
        points = torch.randn(800, 3, generator=_generator(seed)) + 4 * places
        labels = kmeans(points, clusters, generator=_generator(seed))
        ours += _inertia(points.numpy(), labels.numpy())
        theirs += KMeans(clusters, n_init=1, random_state=seed).fit(points.numpy()).inertia_
    assert ours < 1.03 * theirs


def test_kmeans_finds_separate_colours_exactly():
    truth = torch.randint(4, (20, 20), generator=_generator())
    palette = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    labels = kmeans(palette[truth].reshape(-1, 3), 4, generator=_generator()).reshape(20, 20)
    assert len({(int(a), int(b)) for a, b in zip(truth.flatten(), labels.flatten(), strict=True)}) == 4


def test_kmeans_of_one_colour_is_one_cluster():
    assert kmeans(torch.full((50, 3), 0.3), 5, generator=_generator()).unique().numel() == 1


def test_kmeans_labels_the_points_it_was_not_fitted_on():
    points = torch.cat([torch.randn(500, 2), torch.randn(500, 2) + 50])
    labels = kmeans(points, 2, generator=_generator(), sample=100)
    assert labels[:500].unique().numel() == 1 and labels[500:].unique().numel() == 1 and labels[0] != labels[-1]
