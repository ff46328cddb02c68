"""Soft masks as labels, overlays and cut-outs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ocl.errors import ShapeError
from ocl.vis.masks import borders, cut_out, fade, hard_labels, overlay, paint, upsample


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_labels_are_the_argmax_of_all_masks_upsampled_together(num_slots, rows, columns, height, width, seed):
    masks = torch.rand(2, num_slots, rows, columns, generator=torch.Generator().manual_seed(seed))
    together = torch.nn.functional.interpolate(masks, (height, width), mode="bilinear").argmax(1)
    assert torch.equal(hard_labels(masks, (height, width)), together)


def test_upsampling_comes_before_the_argmax():
    # Two strong slots side by side, one weak everywhere: half way between them the weak one wins only after upsampling.
    masks = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.7, 0.7]]])[None]
    labels = hard_labels(masks, (1, 8))[0, 0]
    assert labels.tolist()[0] == 0 and labels.tolist()[-1] == 1 and 2 in labels.tolist()


def test_upsampling_keeps_the_sum_over_slots():
    masks = torch.rand(1, 5, 4, 3).softmax(1)
    assert torch.allclose(upsample(masks, (17, 9)).sum(1), torch.ones(1, 17, 9), atol=1e-6)


def test_bilinear_upsampling_agrees_with_pillow():
    mask = torch.rand(1, 1, 4, 4)
    expected = Image.fromarray(mask[0, 0].numpy()).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.allclose(upsample(mask, (16, 16))[0, 0].numpy(), np.array(expected), atol=1e-5)


def test_masks_of_one_image_are_refused_with_the_shape_that_came():
    with pytest.raises(ShapeError, match=r"\[B, K, h, w\].*\[3, 4, 4\]"):
        hard_labels(torch.rand(3, 4, 4), (8, 8))


@pytest.mark.parametrize("size", [(5, 9), (1, 7), (7, 1), (1, 1)])
def test_overlay_keeps_the_size_and_touches_nothing(size):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 3, size)
    before = picture.copy()
    result = overlay(picture, paint(labels))
    assert result.shape == picture.shape and result.dtype == np.uint8
    assert np.array_equal(picture, before)


def test_overlay_at_its_ends_is_the_colours_or_the_grey_picture():
    picture = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    colours = paint(np.arange(36).reshape(6, 6) % 4)
    assert np.array_equal(overlay(picture, colours, alpha=1, contours=False), colours)
    grey = np.array(Image.fromarray(picture).convert("L"), dtype=int)
    assert np.abs(overlay(picture, colours, alpha=0, contours=False).astype(int) - grey[..., None]).max() <= 1


def test_borders_lie_between_regions_only():
    labels = np.zeros((4, 6), dtype=int)
    labels[:, 3:] = 1
    assert np.array_equal(np.argwhere(borders(labels))[:, 1], [2] * 4)
    assert not borders(np.ones((3, 3), dtype=int)).any()


def test_cut_outs_of_all_slots_give_the_picture_back():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    labels = np.random.default_rng(1).integers(0, 3, (5, 7))
    pieces = [cut_out(picture, labels == slot) for slot in range(3)]
    assert all(piece.shape == (5, 7, 4) and piece.dtype == np.uint8 for piece in pieces)
    joined = sum(piece[..., :3] * (piece[..., 3:] // 255) for piece in pieces)
    assert np.array_equal(joined, picture)


def test_fading_goes_from_the_ground_to_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(fade(picture, np.ones((5, 7))), picture)
    assert (fade(picture, np.zeros((5, 7)), ground=200) == 200).all()
