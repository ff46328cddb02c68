"""Each disease of slots is drawn as an attention map and recognised; healthy maps raise no alarm."""

import pytest
import torch

from ocl.train.health import (
    REMEDIES,
    Monitor,
    attention_entropy,
    dead_slots,
    duplicate_slots,
    gauges,
    stripe_slots,
)
from ocl.types import Slots

GRID = (8, 8)


def slots_with(labels: torch.Tensor, num_slots: int, active: torch.Tensor | None = None) -> Slots:
    """Hard maps: each token [B, 64] belongs to one slot."""
    attn = torch.nn.functional.one_hot(labels, num_slots).mT.float()
    return Slots(torch.zeros(len(labels), num_slots, 4), attn, GRID, active)


def discs(num_images: int, seed: int = 0) -> torch.Tensor:
    """Three objects at places of their own in every image, on a background: labels [B, 64] in 0..3."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    labels = torch.zeros(num_images, 8, 8, dtype=torch.long)
    for image in labels:
        for label in (1, 2, 3):
            y, x = torch.randint(1, 7, (2,), generator=generator).tolist()
            image[(rows - y) ** 2 + (columns - x) ** 2 <= 3] = label
    return labels.flatten(1)


def columns(num_images: int) -> torch.Tensor:
    """Four vertical stripes, the same in every image."""
    return (torch.arange(8) // 2).repeat(8)[None].repeat(num_images, 1)


def test_healthy_slots_raise_no_alarm():
    values = gauges(slots_with(discs(16), 4))
    assert values == pytest.approx({"dead": 0, "duplicate": 0, "stripes": 0, "entropy": 0}, abs=0.1)


def test_slots_without_pixels_are_dead():
    slots = slots_with(discs(4), 7)
    assert dead_slots(slots)[:, 4:].all()
    assert not dead_slots(slots)[:, 0].any()


def test_absent_slots_are_not_dead():
    active = torch.tensor([True] * 4 + [False] * 3).expand(4, 7)
    slots = slots_with(discs(4), 7, active)
    assert not dead_slots(slots)[:, 4:].any()


def test_slots_with_the_same_map_are_duplicates_whatever_their_mass():
    attn = slots_with(discs(4), 4).attn
    split = torch.cat([0.7 * attn[:, :1], attn[:, 1:], 0.3 * attn[:, :1]], 1)
    found = duplicate_slots(Slots(torch.zeros(4, 5, 4), split, GRID))
    assert found.tolist() == [[False, False, False, False, True]] * 4


def test_two_dead_slots_are_not_duplicates():
    assert not duplicate_slots(slots_with(discs(4), 7)).any()


def test_maps_that_depend_on_position_only_are_stripes():
    assert stripe_slots(slots_with(columns(4), 4)).all()


def test_stripes_are_found_in_any_order_of_the_slots():
    attn = slots_with(columns(4), 4).attn.clone()
    for image in attn:
        image.copy_(image[torch.randperm(4, generator=torch.Generator().manual_seed(1))])
    assert stripe_slots(Slots(torch.zeros(4, 4, 4), attn, GRID)).all()


def test_one_image_has_no_stripes():
    assert not stripe_slots(slots_with(columns(1), 4)).any()


def test_flat_maps_are_a_matter_of_entropy_alone():
    slots = Slots(torch.zeros(3, 4, 4), torch.full((3, 4, 64), 0.25), GRID)
    assert not stripe_slots(slots).any() and not duplicate_slots(slots).any()
    torch.testing.assert_close(attention_entropy(slots), torch.ones(3))


def test_entropy_is_that_of_the_distribution_over_slots():
    share = torch.tensor([0.5, 0.25, 0.25])
    slots = Slots(torch.zeros(2, 3, 4), share[None, :, None].expand(2, 3, 64), GRID)
    expected = torch.distributions.Categorical(share).entropy() / torch.tensor(3.0).log()
    torch.testing.assert_close(attention_entropy(slots), expected.expand(2))


@pytest.mark.parametrize("permutation", [[3, 1, 0, 2], [1, 2, 3, 0]])
def test_gauges_ignore_the_order_of_slots(permutation):
    slots = slots_with(discs(6), 4)
    other = Slots(slots.vectors[:, permutation], slots.attn[:, permutation], GRID)
    assert gauges(other) == pytest.approx(gauges(slots))


def test_half_precision_and_one_slot_are_read():
    slots = Slots(torch.zeros(2, 1, 4, dtype=torch.bfloat16), torch.ones(2, 1, 64, dtype=torch.bfloat16), GRID)
    assert all(0 <= value <= 1 for value in gauges(slots).values())


HEALTHY = dict.fromkeys(REMEDIES, 0.0)


@pytest.mark.parametrize("kind", list(REMEDIES))
def test_a_lasting_disease_is_told_once_with_its_remedy_until_it_recovers(kind):
    monitor, ill = Monitor(patience=2), {**HEALTHY, kind: 1.0}
    told = [monitor.read(values) for values in (ill, ill, ill, HEALTHY, ill, ill, ill)]
    assert [len(warnings) for warnings in told] == [0, 1, 0, 0, 0, 1, 0]
    assert kind in told[1][0] and REMEDIES[kind][1] in told[1][0]
