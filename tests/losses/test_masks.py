"""Mask entropy: 0 for decided masks, 1 for undecided ones, and pushes shared pixels apart."""

import pytest
import torch

from ocl.errors import ConfigError
from ocl.losses import MaskEntropy
from ocl.types import Batch, Decoding, Features, Output, Slots, Step


def step(masks):
    image = torch.rand(2, 3, 4, 4)
    slots = Slots(torch.zeros(2, 3, 5), torch.full((2, 3, 4), 1 / 3), (2, 2))
    return Step(Batch(image), Output(Features(torch.zeros(2, 4, 5), (2, 2)), slots, Decoding(image, image, masks)))


def test_decided_masks_cost_nothing_and_even_masks_cost_the_weight():
    decided = torch.nn.functional.one_hot(torch.randint(3, (2, 4, 4)), 3).permute(0, 3, 1, 2).float()
    assert MaskEntropy(weight=0.5)(step(decided)).item() == pytest.approx(0, abs=1e-6)
    assert MaskEntropy(weight=0.5)(step(torch.full((2, 3, 4, 4), 1 / 3))).item() == pytest.approx(0.5)


def test_the_gradient_makes_the_larger_of_two_slots_larger():
    logits = torch.zeros(2, 3, 4, 4)
    logits[:, 0] = 0.2
    logits.requires_grad_()
    MaskEntropy()(step(logits.softmax(dim=1))).backward()
    assert (logits.grad[:, 0] < 0).all() and (logits.grad[:, 1:] > 0).all()


def test_a_decoder_without_masks_is_refused():
    with pytest.raises(ConfigError, match="draws masks"):
        MaskEntropy()(step(None))


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_must_be_positive_and_finite(weight):
    with pytest.raises(ConfigError, match=r"MaskEntropy\.weight"):
        MaskEntropy(weight=weight)
