"""The cross-attention module against diffusers' own, whose weights it loads."""

import pytest
import torch

from ocl.errors import ShapeError
from ocl.nn import RegisterCrossAttention

SIZES = {"heads": 2, "dim_head": 8}


def layer(**options):
    torch.manual_seed(0)
    return RegisterCrossAttention(12, 10, **SIZES, **options)


def inputs():
    torch.manual_seed(1)
    return torch.randn(3, 20, 12), torch.randn(3, 4, 10), torch.randn(5, 10)


@pytest.mark.parametrize("bias", [False, True])
def test_it_is_diffusers_attention_on_slots_and_registers_side_by_side(bias):
    module = pytest.importorskip("diffusers.models.attention_processor", reason='pip install "ocl[diffusion]" to compare')
    theirs = module.Attention(12, 10, heads=2, dim_head=8, bias=bias)
    ours = layer(bias=bias)
    ours.load_state_dict(theirs.state_dict())  # strict: the same names
    hidden, slots, registers = inputs()
    context = torch.cat([slots, registers.expand(3, -1, -1)], dim=1)
    torch.testing.assert_close(ours(hidden, slots, registers), theirs(hidden, context))


def test_slots_dropped_by_mask_leave_the_registers():
    ours, (hidden, slots, registers) = layer(), inputs()
    dropped = ours(hidden, slots, registers, slot_mask=torch.zeros(3, 4, dtype=torch.bool))
    torch.testing.assert_close(dropped, ours(hidden, slots[:, :0], registers))


def test_projected_registers_give_the_same_and_save_the_projection(monkeypatch):
    ours, (hidden, slots, registers) = layer(), inputs()
    expected = ours(hidden, slots, registers)
    projected = ours.project_registers(registers)
    monkeypatch.setattr(ours, "project_registers", lambda *_: pytest.fail("registers were projected again"))
    torch.testing.assert_close(ours(hidden, slots, projected), expected, rtol=0, atol=0)


def test_registers_are_projected_once_for_the_whole_batch():
    ours, (hidden, slots, registers) = layer(), inputs()
    rows = []
    ours.to_k.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[:-1].numel()))
    ours(hidden, slots, registers)
    assert sorted(rows) == [5, 3 * 4]


def test_maps_sum_to_what_the_registers_leave():
    ours, (hidden, slots, registers) = layer(sinks=True), inputs()
    output, maps = ours(hidden, slots, registers, return_maps=True)
    torch.testing.assert_close(output, ours(hidden, slots, registers))
    assert maps.shape == (3, 4, 20)
    assert (maps.sum(1) < 1).all() and (maps > 0).all()
    _, alone = layer()(hidden, slots, return_maps=True)
    torch.testing.assert_close(alone.sum(1), torch.ones(3, 20))


def test_gradients_reach_every_weight_and_input():
    ours, tensors = layer(sinks=True), inputs()
    for tensor in tensors:
        tensor.requires_grad_()
    output, maps = ours(*tensors, return_maps=True)
    (output.square().sum() + maps.square().sum()).backward()
    assert all(x.grad is not None and x.grad.any() for x in (*tensors, *ours.parameters()))


def test_frozen_weights_and_registers_get_no_gradient():
    ours, (hidden, slots, registers) = layer().requires_grad_(False), inputs()
    slots.requires_grad_()
    ours(hidden, slots, registers).square().sum().backward()
    assert slots.grad.any() and all(x.grad is None for x in ours.parameters())


def test_misuse_names_the_argument():
    ours, (hidden, slots, registers) = layer(), inputs()
    with pytest.raises(ShapeError, match=r"hidden_states \[B, M, 12\]"):
        ours(hidden[..., :5], slots)
    with pytest.raises(ShapeError, match=r"slots \[B, K, 10\]"):
        ours(hidden, slots[0])
    with pytest.raises(ShapeError, match=r"registers \[R, 10\]"):
        ours(hidden, slots, registers[None])
