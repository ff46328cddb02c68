"""Mask distillation: the cross-entropy by hand, gradients to the slot module alone, later start, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

from ocl.errors import ConfigError
from ocl.losses import MaskDistillation
from ocl.types import Batch, Decoding, Features, Output, Slots, Step


def step(attn, masks, *, index=0):
    """attn: [2, 3, 4] on a grid of 2 x 2; masks: [2, 3, 4, 4]."""
    image = torch.rand(2, 3, 4, 4)
    slots = Slots(torch.zeros(2, 3, 5), attn, (2, 2))
    return Step(Batch(image), Output(Features(torch.zeros(2, 4, 5), (2, 2)), slots, Decoding(image, image, masks)), index)


def test_the_loss_is_the_cross_entropy_against_the_shares_of_the_decoders_labels():
    attn, masks = torch.rand(2, 3, 4).softmax(dim=1), torch.rand(2, 3, 4, 4)
    expected = 0.0
    for image in range(2):
        for cell in range(4):
            row, column = 2 * (cell // 2), 2 * (cell % 2)
            labels = masks[image, :, row : row + 2, column : column + 2].argmax(dim=0).flatten()
            expected -= sum(float(attn[image, label, cell].log()) / 4 for label in labels) / 8
    assert MaskDistillation(weight=0.5)(step(attn, masks)).item() == pytest.approx(0.5 * expected, rel=1e-5)


def test_training_on_it_alone_brings_the_slots_to_the_decoders_labels():
    logits, labels = torch.zeros(2, 3, 4, requires_grad=True), torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])
    drawn = F.one_hot(labels, 3).movedim(-1, 1).float().unflatten(2, (2, 2)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    for _ in range(50):
        loss = MaskDistillation(weight=1.0)(step(logits.softmax(dim=1), drawn))
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 5 * gradient).detach().requires_grad_()
    assert torch.equal(logits.argmax(dim=1), labels)


def test_the_decoder_is_the_teacher_and_gets_no_gradient():
    attn, masks = torch.rand(2, 3, 4).softmax(dim=1).requires_grad_(), torch.rand(2, 3, 4, 4, requires_grad=True)
    MaskDistillation()(step(attn, masks)).backward()
    assert attn.grad.abs().sum() > 0 and masks.grad is None


def test_it_sets_in_later_where_asked():
    attn, masks = torch.full((2, 3, 4), 1 / 3), torch.rand(2, 3, 4, 4)
    assert MaskDistillation(start_step=5)(step(attn, masks, index=4)) == 0
    assert MaskDistillation(start_step=5)(step(attn, masks, index=5)) > 0


def test_slots_that_see_nothing_give_a_finite_loss():
    attn = torch.zeros(2, 3, 4, requires_grad=True)
    loss = MaskDistillation()(step(attn, torch.rand(2, 3, 4, 4)))
    loss.backward()
    assert loss.isfinite() and attn.grad.isfinite().all()


def test_a_decoder_without_masks_is_refused():
    with pytest.raises(ConfigError, match="draws masks"):
        MaskDistillation()(step(torch.full((2, 3, 4), 1 / 3), None))


@pytest.mark.parametrize("bad", [{"weight": 0}, {"weight": float("nan")}, {"start_step": -1}])
def test_bad_options_are_refused(bad):
    with pytest.raises(ConfigError, match=rf"MaskDistillation\.{next(iter(bad))}"):
        MaskDistillation(**bad)
