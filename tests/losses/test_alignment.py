"""Contrastive alignment and attention guidance as losses: sign, weight, when they set in, what they ask for."""

import pytest
import torch

from ocl.errors import ConfigError, ShapeError
from ocl.losses import ContrastiveAlignment, MaskGuidance
from ocl.types import Batch, Decoding, Features, Mismatch, Output, Slots, Step

B, K = 2, 3


def step(index=0, *, contrast=None, masks=None, attn=None):
    torch.manual_seed(0)
    prediction = torch.randn(B, 4, 4, 4, requires_grad=True)
    attn = torch.rand(B, K, 16).softmax(1) if attn is None else attn
    decoding = Decoding(prediction, torch.zeros(B, 4, 4, 4), masks, contrast)
    output = Output(Features(torch.zeros(B, 16, 2), (4, 4)), Slots(torch.zeros(B, K, 2), attn, (4, 4)), decoding)
    return Step(Batch(torch.zeros(B, 3, 8, 8)), output, index)


def test_it_rewards_the_error_under_slots_of_other_images():
    contrast = torch.full((B, 4, 4, 4), 3.0, requires_grad=True)
    value = ContrastiveAlignment(weight=0.05, warmup_steps=0)(step(contrast=contrast))
    assert value.item() == pytest.approx(-0.05 * 9)
    value.backward()
    assert (contrast.grad < 0).all()


def test_nothing_is_decoded_and_nothing_lost_in_the_warm_up_but_partners_share_noise():
    loss = ContrastiveAlignment(warmup_steps=10)
    assert loss.mismatch(9) == Mismatch(decode=False)
    assert loss.mismatch(10) == Mismatch(decode=True)
    assert loss(step(9)).item() == 0


def test_after_the_warm_up_a_pass_without_contrast_is_an_error():
    with pytest.raises(ShapeError, match="decoded no slots of other images"):
        ContrastiveAlignment(warmup_steps=0)(step())


@pytest.mark.parametrize("options", [{"weight": 0.0}, {"weight": float("inf")}, {"rate": 0.0}, {"rate": 1.5}, {"warmup_steps": -1}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=f"ContrastiveAlignment.{next(iter(options))}"):
        ContrastiveAlignment(**options)


def test_most_losses_ask_for_nothing():
    assert MaskGuidance().mismatch(0) is None


@pytest.mark.parametrize("distance", ["bce", "mse"])
def test_guidance_is_lowest_where_both_masks_agree(distance):
    hard = torch.eye(K)[torch.arange(16) % K].mT.expand(B, K, 16)
    loss = MaskGuidance(weight=1.0, start_step=0, distance=distance)
    same = loss(step(attn=hard, masks=hard.unflatten(-1, (4, 4))))
    other = loss(step(attn=hard, masks=hard.roll(1, dims=1).unflatten(-1, (4, 4))))
    assert same < 1e-5 < 0.1 < other


def test_guidance_reads_slot_masks_on_the_decoder_s_grid():
    hard = torch.zeros(B, K, 4, 4)
    hard[:, 0, :2], hard[:, 1, 2:] = 1, 1
    small = hard[:, :, ::2, ::2]
    assert MaskGuidance(start_step=0, distance="mse")(step(attn=hard.flatten(2), masks=small)).item() == 0


@pytest.mark.parametrize("distance", ["bce", "mse"])
def test_guidance_sends_gradient_to_both_masks(distance):
    attn, masks = (torch.rand(B, K, 16).softmax(1).requires_grad_() for _ in range(2))
    MaskGuidance(start_step=0, distance=distance)(step(attn=attn, masks=masks.unflatten(-1, (4, 4)))).backward()
    assert attn.grad.any() and masks.grad.any()


@pytest.mark.parametrize("distance", ["bce", "mse"])
def test_guidance_leaves_images_without_decoded_slots_out_of_the_mean(distance):
    loss = MaskGuidance(start_step=0, distance=distance)
    attn, masks = torch.rand(2, K, 16).softmax(1).requires_grad_(), torch.rand(2, K, 4, 4).softmax(1)
    dropped = torch.cat([masks[:1], torch.zeros_like(masks[:1])])
    value = loss(step(attn=attn, masks=dropped))
    value.backward()
    alone = attn.detach()[:1].expand(2, -1, -1)
    torch.testing.assert_close(value, loss(step(attn=alone, masks=masks[:1].expand(2, -1, -1, -1))))
    assert attn.grad[0].any() and not attn.grad[1].any()

    none = loss(step(attn=attn, masks=torch.zeros_like(masks)))
    none.backward()
    assert none.item() == 0 and not attn.grad[1].any()


def test_guidance_sets_in_later():
    masks = torch.rand(B, K, 4, 4).softmax(1)
    assert MaskGuidance(start_step=5)(step(4, masks=masks)).item() == 0 < MaskGuidance(start_step=5)(step(5, masks=masks))


def test_guidance_needs_masks():
    with pytest.raises(ConfigError, match="this one draws none"):
        MaskGuidance()(step())
