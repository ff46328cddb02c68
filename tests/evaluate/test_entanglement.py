"""Entanglement: 0 for slots that draw themselves alone, 1 for slots that all draw the same, and in between by proportion."""

import pytest
import torch

from ocl.evaluate.entanglement import living_slots, mixing, recognised, spill

B, K, D, SIZE = 2, 4, 8, 8


def image_slots():
    torch.manual_seed(0)
    return torch.randn(B, K, D)


def quadrants():
    """Slot k owns a quarter of the image, int64 [B, SIZE, SIZE]."""
    rows, columns = torch.arange(SIZE)[:, None] * 2 // SIZE, torch.arange(SIZE) * 2 // SIZE
    return (2 * rows + columns).expand(B, SIZE, SIZE)


ALL = torch.ones(B, K, dtype=torch.bool)


def shares_of(seen_from):
    """Shares when the picture drawn from slot k is encoded into the slots `seen_from(k)`, each a quarter of the picture."""
    vectors = image_slots()
    return torch.stack([recognised(vectors, seen_from(vectors, k), quadrants(), ALL) for k in range(K)], dim=1)


def test_pictures_that_show_their_own_slot_alone_are_not_mixed():
    noisy = shares_of(lambda vectors, k: 3 * vectors[:, k : k + 1].expand(-1, K, -1) + 0.01 * torch.randn(B, K, D))
    assert torch.equal(mixing(noisy, ALL), torch.zeros(B).double())


def test_pictures_that_are_all_the_same_are_wholly_mixed_whatever_they_show():
    whole_scene = shares_of(lambda vectors, k: vectors)
    one_object = shares_of(lambda vectors, k: vectors[:, 2:3].expand(-1, K, -1))
    for shares in (whole_scene, one_object):
        torch.testing.assert_close(mixing(shares, ALL), torch.ones(B).double())


def test_mixing_grows_with_the_share_of_others():
    half = shares_of(lambda vectors, k: torch.cat([vectors[:, k : k + 1].expand(-1, 2, -1), vectors.roll(-k - 1, 1)[:, :2]], 1))
    torch.testing.assert_close(mixing(half, ALL), torch.full([B], 0.5 / (1 - 1 / K)).double())


def test_pictures_that_show_the_wrong_slot_are_worse_than_chance():
    wrong = shares_of(lambda vectors, k: vectors[:, k - 1 : k or None].expand(-1, K, -1))
    torch.testing.assert_close(mixing(wrong, ALL), torch.full([B], K / (K - 1)).double())


def test_slots_without_pixels_take_no_part():
    living = torch.tensor([[True, True, False, False], [False, True, False, False]])
    vectors = image_slots()
    shares = torch.stack([recognised(vectors, vectors[:, k : k + 1].expand(-1, K, -1), quadrants(), living) for k in range(K)], 1)
    assert not shares[..., 2:].any()  # a dead slot is never what a picture is taken for
    torch.testing.assert_close(shares.sum(2), torch.ones(B, K).double())
    found = mixing(shares, living)
    assert found[0] == 0 and found[1].isnan()
    assert mixing(shares.roll(1, 1)[:1], living[:1])[0] > 0


def test_shares_are_the_shares_of_pixels():
    labels = torch.zeros(B, SIZE, SIZE, dtype=torch.int64)
    labels[:, :2] = 1
    found = recognised(image_slots(), image_slots(), labels, ALL)
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25, 0, 0]] * B).double())


def painted(change_outside):
    """(whole, without): removing slot k takes 0.5 from its pixels, and `change_outside` from all others."""
    whole = torch.full((B, 3, SIZE, SIZE), 0.9)
    mask = torch.stack([quadrants() == k for k in range(K)], dim=1)[:, :, None]
    return whole, whole[:, None] - torch.where(mask, 0.5, change_outside)


@pytest.mark.parametrize(("outside", "expected"), [(0.0, 0.0), (0.125, 0.25), (0.5, 1.0), (0.8, 1.0)])
def test_spill_is_the_change_outside_relative_to_the_change_inside(outside, expected):
    found = spill(*painted(outside), quadrants())
    torch.testing.assert_close(found, torch.full((B, K), expected).double(), atol=1e-6, rtol=0)


def test_spill_is_undefined_without_a_change_or_a_mask():
    whole, without = painted(0.0)
    without[:, 1] = whole
    labels = torch.where(quadrants() == 3, 0, quadrants())
    found = spill(whole, without, labels)
    assert found[:, 1].isnan().all() and found[:, 3].isnan().all() and found[:, 2].eq(0).all()
    everything = spill(whole, without, torch.zeros(B, SIZE, SIZE, dtype=torch.int64))
    assert everything.isnan().all()


def test_living_slots_own_a_pixel():
    maps = torch.tensor([0.5, 0.2, 0.3]).view(1, 3, 1, 1).repeat(1, 1, 4, 4)
    maps[:, 2, 0, 0] = 0.9
    labels, living = living_slots(maps, (4, 4))
    assert living.tolist() == [[True, False, True]] and int((labels == 2).sum()) == 1
