"""Edits and compositions as laws on Slots."""

import pytest
import torch

from ocl.encoders import CNN
from ocl.errors import ConfigError
from ocl.generate import compose, drop, insert, keep_only, move, swap
from ocl.models import slot_attention
from ocl.types import Slots


def slots(seed=0, batch=3, k=4):
    torch.manual_seed(seed)
    return Slots(torch.randn(batch, k, 5), torch.randn(batch, k, 9).softmax(1), (3, 3))


def test_dropping_a_slot_gives_its_pixels_to_the_others_in_proportion():
    before = slots()
    after = drop(before, 1)
    assert torch.equal(after.vectors, before.vectors[:, [0, 2, 3]])
    torch.testing.assert_close(after.attn.sum(1), torch.ones(3, 9))
    torch.testing.assert_close(after.attn[:, 0] / after.attn[:, 1], before.attn[:, 0] / before.attn[:, 2])


def test_the_only_slot_cannot_be_dropped():
    with pytest.raises(ConfigError, match=r"would remove the only slot of the image.*swap it, or use more slots"):
        drop(slots(k=1), 0)


def test_one_slot_alone_holds_every_pixel():
    after = keep_only(slots(), 2)
    assert torch.equal(after.vectors, slots().vectors[:, 2:3]) and torch.equal(after.attn, torch.ones(3, 1, 9))


def test_swapping_changes_one_vector_and_swapping_back_restores_it():
    before, other = slots(0), slots(1)
    after = swap(before, 1, other, 3)
    assert torch.equal(after.vectors[:, 1], other.vectors[:, 3]) and torch.equal(after.vectors[:, 0], before.vectors[:, 0])
    assert torch.equal(swap(after, 1, before, 1).vectors, before.vectors)


def test_an_inserted_slot_takes_the_pixels_it_held():
    before, other = slots(0), slots(1)
    after = insert(before, other, 2)
    assert after.vectors.shape[1] == 5 and torch.equal(after.attn[:, 4], other.attn[:, 2])
    torch.testing.assert_close(after.attn.sum(1), torch.ones(3, 9))
    torch.testing.assert_close(drop(after, 4).attn, before.attn)


def test_an_edit_leaves_its_input_alone():
    before, copy = slots(), slots()
    for edit in (lambda: drop(before, 0), lambda: swap(before, 0, slots(1), 0), lambda: insert(before, slots(1), 0)):
        edit()
        assert torch.equal(before.vectors, copy.vectors) and torch.equal(before.attn, copy.attn)


def test_an_index_that_is_not_there_is_refused():
    for edit in (lambda: drop(slots(), 4), lambda: swap(slots(), 0, slots(), -1), lambda: insert(slots(), slots(), 9)):
        with pytest.raises(ConfigError, match="has 4 slots"):
            edit()


@pytest.fixture
def model():
    return slot_attention(num_slots=3, slot_dim=8, image_size=32, encoder=CNN(8, stride=4)).eval()


def test_moving_by_nothing_changes_no_slot(model):
    image, noise = torch.rand(2, 3, 32, 32), torch.randn(2, 3, 8)
    before = model.encode(image, noise=noise)[1]
    after = move(model, image, 1, (0, 0), noise=noise)
    torch.testing.assert_close(after.vectors, before.vectors)
    torch.testing.assert_close(after.attn.sum(1), torch.ones_like(after.attn[:, 0]))


def test_a_moved_slot_is_the_one_that_the_shifted_image_has_there(model):
    """The picture is black near the border, so that shifting is rolling; two cells down and one to the left."""
    image, noise = torch.zeros(4, 3, 32, 32), torch.randn(4, 3, 8)
    image[:, :, 8:24, 8:24] = torch.rand(4, 3, 16, 16)
    before = model.encode(image, noise=noise)[1]
    there = model.encode(image.roll((8, -4), dims=(2, 3)), noise=noise)[1]
    after = move(model, image, 1, (8, -4), noise=noise)
    rows, columns = [0, 0, 0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7, 7]
    wanted = before.maps()[:, 1][:, rows][:, :, columns]
    for each in range(4):
        likeness = [(wanted[each] * found).sum() / found.square().sum().sqrt() for found in there.maps()[each]]
        best = likeness.index(max(likeness))
        torch.testing.assert_close(after.vectors[each, 1], there.vectors[each, best])
        assert not torch.allclose(after.vectors[each, 1], before.vectors[each, 1], atol=1e-3)
    assert torch.equal(after.vectors[:, [0, 2]], before.vectors[:, [0, 2]])


def test_a_moved_object_s_pixels_move_with_it(model):
    image, noise = torch.rand(1, 3, 32, 32), torch.randn(1, 3, 8)
    before = model.encode(image, noise=noise)[1].maps()[:, 1]
    after = move(model, image, 1, (0, 8), noise=noise)  # two cells to the right
    assert (after.maps()[:, 1, :, 2:] >= before[:, :, :-2] - 1e-6).all()


# compositions


def test_columns_use_every_slot_once_as_published():
    given = slots(batch=3, k=4)
    found = compose(given).vectors
    for image in range(3):
        for index in range(4):
            assert torch.equal(found[image, index], given.vectors[(image + index) % 3, index])
    torch.testing.assert_close(compose(given).attn.sum(1), torch.ones(3, 9))


def test_random_mixtures_follow_from_their_generator():
    given = slots(batch=5)
    first, again, other = (compose(given, "random", generator=torch.Generator().manual_seed(s)).vectors for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    for index in range(4):
        assert all(any(torch.equal(vector, own) for own in given.vectors[:, index]) for vector in first[:, index])
