"""Slots of other images: partners, what they share, and which slots are swapped."""

import pytest
import torch

from ocl.slots import GaussianInit
from ocl.slots.mismatch import keep, partners, shared_noise, swapped
from ocl.types import Mismatch, Slots

CPU = torch.device("cpu")


def slots(batch, k=4):
    torch.manual_seed(0)
    return Slots(torch.randn(batch, k, 3, requires_grad=True), torch.rand(batch, k, 4).softmax(1), (2, 2))


@pytest.mark.parametrize("pairing", ["halves", "ring"])
@pytest.mark.parametrize("batch", [1, 2, 3, 6, 7])
def test_partners_are_other_images_and_each_is_partner_once(batch, pairing):
    found = partners(batch, Mismatch(pairing=pairing), device=CPU)
    assert sorted(found.tolist()) == list(range(batch))
    if batch > 1:
        assert (found != torch.arange(batch)).all()


@pytest.mark.parametrize("pairing", ["halves", "ring"])
@pytest.mark.parametrize("batch", [1, 2, 3, 6, 7])
def test_partners_start_from_the_same_noise(batch, pairing):
    mismatch = Mismatch(pairing=pairing)
    noise = shared_noise(GaussianInit(4, 5), batch, mismatch, None, device=CPU)
    assert noise.shape == (batch, 4, 5)
    assert torch.equal(noise, noise[partners(batch, mismatch, device=CPU)])


def test_halves_of_an_even_batch_are_drawn_once_per_pair():
    noise = shared_noise(GaussianInit(4, 5), 6, Mismatch(), torch.Generator().manual_seed(0), device=CPU)
    assert torch.equal(noise[:3], torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(noise[:3], noise[3:])


def test_a_slot_is_its_own_or_its_partner_s_of_the_same_index():
    own = slots(6)
    found = swapped(own, Mismatch(), draw=torch.rand(6, 4))
    for image in range(6):
        for index in range(4):
            candidates = (own.vectors[image, index], own.vectors[(image + 3) % 6, index])
            assert any(torch.equal(found.vectors[image, index], candidate) for candidate in candidates)


def test_the_published_rule_keeps_what_is_drawn_above_the_rate():
    draw = torch.tensor([[0.1, 0.5, 0.6, 0.9]])
    assert keep(draw, Mismatch(0.5)).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(("num_slots", "rate", "swaps"), [(6, 0.5, 3), (7, 0.5, 3), (3, 0.1, 1), (4, 1.0, 4)])
def test_exact_swaps_the_same_number_in_every_image(num_slots, rate, swaps):
    own = keep(torch.rand(50, num_slots), Mismatch(rate, "exact"))
    assert ((~own).sum(dim=1) == swaps).all()
    assert (~own).any(dim=0).all()


def test_complementary_mixtures_of_partners_are_a_partition_of_all_slots():
    own = slots(6)
    found = swapped(own, Mismatch(swap="complementary"), draw=torch.rand(6, 4))
    for image in range(3):
        before = torch.stack([own.vectors[image], own.vectors[image + 3]]).sort(dim=0).values
        after = torch.stack([found.vectors[image], found.vectors[image + 3]]).sort(dim=0).values
        assert torch.equal(before, after)


def test_both_images_of_a_mixture_get_its_gradient():
    own = slots(2)
    found = swapped(own, Mismatch(), draw=torch.tensor([[0.9, 0.1, 0.9, 0.1], [0.9, 0.9, 0.9, 0.9]]))
    found.vectors[0].sum().backward()
    assert own.vectors.grad[:, :, 0].tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]


def test_inactive_slots_travel_with_their_vectors():
    own = slots(2)
    own = Slots(own.vectors, own.attn, own.grid, active=torch.tensor([[True] * 4, [False] * 4]))
    found = swapped(own, Mismatch(), draw=torch.tensor([[0.9, 0.1, 0.9, 0.1]] * 2))
    assert found.active.tolist() == [[True, False, True, False], [False, True, False, True]]
