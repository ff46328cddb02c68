"""Frames: a slot is where its attention is, and its picture moves with it."""

import torch

from ocl.nn.frames import SMALLEST, frames, seen_from


def blob(row, column, size=8):
    attn = torch.zeros(1, 1, size, size)
    attn[..., row : row + 2, column : column + 2] = 1
    return attn.flatten(2)


def test_centre_and_spread_are_mean_and_deviation_of_the_attention():
    centre, spread = frames(blob(2, 4), (8, 8))
    torch.testing.assert_close(centre, torch.tensor([[[3 / 8, 5 / 8]]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(spread, torch.full((1, 1, 2), 1 / 16), atol=1e-4, rtol=0)


def test_a_slot_that_looks_at_one_point_keeps_a_size():
    attn = torch.zeros(1, 1, 16)
    attn[..., 5] = 1
    assert torch.equal(frames(attn, (4, 4))[1], torch.full((1, 1, 2), SMALLEST))


def test_moving_the_attention_moves_the_frame():
    here, there = (seen_from(*frames(blob(*place), (8, 8)), (8, 8)).unflatten(2, (8, 8)) for place in ((1, 1), (4, 3)))
    torch.testing.assert_close(here[..., :4, :4, :4], there[..., 3:7, 2:6, :4], atol=1e-4, rtol=1e-3)


def test_gradient_pulls_the_attention():
    attn = torch.rand(2, 3, 16, requires_grad=True)
    seen_from(*frames(attn, (4, 4)), (4, 4))[..., :4].square().sum().backward()
    assert attn.grad.abs().sum() > 0


def test_an_empty_map_gives_finite_frames():
    centre, spread = frames(torch.zeros(1, 1, 16), (4, 4))
    assert torch.isfinite(centre).all() and torch.isfinite(spread).all()


def test_frames_keep_their_precision_under_autocast():
    attn = (6 * torch.randn(4, 5, 64, generator=torch.Generator().manual_seed(0))).softmax(dim=1)
    expected = frames(attn.double(), (8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = frames(attn, (8, 8))
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left.double(), right, atol=1e-5, rtol=1e-4)
