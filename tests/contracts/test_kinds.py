"""What each kind of part promises beyond `test_every_part.py`: what it declares, its symmetries, and what it refuses."""

import pytest
import torch

from ocl.errors import ShapeError
from ocl.types import Batch, Features, Slots


def permuted(example, part, name, order, dim=1):
    """The outputs when one input is permuted, and those when none is."""
    inputs = example.inputs()
    changed = inputs | {name: inputs[name].index_select(dim, order)}
    return example.run(part, changed), example.run(part, inputs)


# encoders


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (40, 16)])
def test_an_encoder_keeps_the_grid_of_any_image(encoder, size):
    part = encoder.build()
    features = part(torch.rand(2, 3, *size))
    assert features.tokens.shape == (2, features.grid[0] * features.grid[1], part.width)
    if size == (40, 16):
        assert features.grid[0] > features.grid[1]


def test_an_encoder_survives_a_black_image(encoder):
    assert encoder.build()(torch.zeros(1, 3, 16, 16)).tokens.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 16, 16, 3), (3,)])
def test_an_encoder_refuses_what_is_no_image(encoder, shape):
    with pytest.raises(ShapeError, match="expects images"):
        encoder.build()(torch.rand(shape))


# where slots start


def test_slots_start_where_the_part_declares(slot_init):
    part = slot_init.build()
    assert part(5).shape == (5, part.num_slots, part.slot_dim)


def test_one_generator_gives_one_start_and_another_gives_another(slot_init):
    part = slot_init.build()
    first, again, other = (part(2, generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert torch.equal(first, other) != slot_init.random


def test_a_generator_leaves_the_global_one_alone(slot_init):
    part = slot_init.build()
    before = torch.get_rng_state()
    part(2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_of_another_shape_is_refused(random_init):
    with pytest.raises(ShapeError, match="noise"):
        random_init.build()(2, noise=torch.zeros(2, 1, 1))


# slot modules


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 1)])
def test_attention_is_a_distribution_over_slots(slot_module, tolerance, grid):
    part, inputs = slot_module.build(), slot_module.inputs(3, grid=grid)
    outputs = slot_module.run(part, inputs)
    assert outputs["vectors"].shape == (3, inputs["init"].shape[1], part.out_dim)
    assert (outputs["attn"] >= 0).all()
    torch.testing.assert_close(outputs["attn"].sum(dim=1), torch.ones(3, grid[0] * grid[1]), **tolerance[torch.float32])


def test_permuting_initial_slots_permutes_slots(slot_module, tolerance):
    order = torch.tensor([2, 0, 1])
    found, expected = permuted(slot_module, slot_module.build(), "init", order)
    for name in ("vectors", "attn"):
        torch.testing.assert_close(found[name], expected[name][:, order], **tolerance[torch.float32])


def test_permuting_tokens_leaves_slots_unchanged(slot_module, tolerance):
    order = torch.randperm(16)
    found, expected = permuted(slot_module, slot_module.build(), "tokens", order)
    if slot_module.position:
        assert not torch.allclose(found["vectors"], expected["vectors"], **tolerance[torch.float32])
    else:
        torch.testing.assert_close(found["vectors"], expected["vectors"], **tolerance[torch.float32])
        torch.testing.assert_close(found["attn"], expected["attn"][..., order], **tolerance[torch.float32])


def test_slots_send_gradients_to_features_and_start(slot_module):
    inputs = slot_module.inputs()
    inputs["tokens"].requires_grad_()
    inputs["init"].requires_grad_()
    slot_module.run(slot_module.build(), inputs)["vectors"].square().sum().backward()
    assert inputs["tokens"].grad.any()
    assert inputs["init"].grad is None if slot_module.name.endswith("implicit") else inputs["init"].grad.any()


@pytest.mark.parametrize("value", [0.0, 1e4])
def test_slots_survive_features_without_contrast(slot_module, value):
    inputs = slot_module.inputs()
    outputs = slot_module.run(slot_module.build(), inputs | {"tokens": torch.full_like(inputs["tokens"], value)})
    assert all(output.isfinite().all() for output in outputs.values())


def test_one_slot_takes_everything(slot_module):
    inputs = slot_module.inputs()
    outputs = slot_module.run(slot_module.build(), inputs | {"init": inputs["init"][:, :1]})
    torch.testing.assert_close(outputs["attn"], torch.ones_like(outputs["attn"]))


@pytest.mark.parametrize(("name", "cut"), [("tokens", -1), ("init", -1), ("init", 0)])
def test_a_slot_module_refuses_other_widths_and_batches(slot_module, name, cut):
    inputs = slot_module.inputs()
    with pytest.raises(ShapeError, match="expects"):
        slot_module.run(slot_module.build(), inputs | {name: inputs[name].narrow(cut, 0, 1)})


# decoders


def test_permuting_slots_permutes_masks_and_leaves_the_prediction(decoder, tolerance):
    order = torch.tensor([2, 0, 1])
    found, expected = permuted(decoder, decoder.build(), "vectors", order)
    torch.testing.assert_close(found["prediction"], expected["prediction"], **tolerance[torch.float32])
    assert found.keys() == expected.keys()
    if "masks" in found:
        torch.testing.assert_close(found["masks"], expected["masks"][:, order], **tolerance[torch.float32])


def test_masks_are_a_distribution_over_slots(decoder, tolerance):
    masks = decoder.run(decoder.build(), decoder.inputs(3)).get("masks")
    if masks is None:
        assert decoder.name.startswith("LatentDiffusion")  # has masks only where slots have attention of their own
        return
    assert masks.ndim == 4 and masks.shape[:2] == (3, 3)
    assert (masks >= 0).all()
    torch.testing.assert_close(masks.sum(dim=1), torch.ones_like(masks[:, 0]), **tolerance[torch.float32])


def test_a_decoder_sends_gradients_to_slots_and_not_through_its_target(decoder):
    inputs = decoder.inputs()
    inputs["vectors"].requires_grad_()
    inputs["tokens"].requires_grad_()
    outputs = decoder.run(decoder.build(), inputs)
    outputs["error"].sum().backward()
    assert inputs["vectors"].grad.any()
    assert inputs["tokens"].grad is None
    assert not outputs["target"].requires_grad


def test_a_decoder_does_not_look_at_the_ground_truth(decoder):
    part, inputs = decoder.build(), decoder.inputs()
    background = torch.zeros(2, 16, 16, dtype=torch.int64)
    blind = decoder.run(part, inputs)
    for instances in (background, background - 1, background + 7):
        seeing = decoder.run(part, inputs | {"instances": instances})
        torch.testing.assert_close(seeing["prediction"], blind["prediction"], rtol=0, atol=0)


def test_a_decoder_refuses_slots_of_another_width(decoder):
    part, inputs = decoder.build(), decoder.inputs()
    with pytest.raises(ShapeError, match=f"{type(part).__name__} expects slots of width {part.slot_dim}"):
        decoder.run(part, inputs | {"vectors": inputs["vectors"][..., :5]})


# losses


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_loss_is_one_number_in_full_precision_with_a_gradient(loss, batch_size):
    inputs = loss.inputs(batch_size)
    inputs["prediction"].requires_grad_()
    value = loss.run(loss.build(), inputs)["loss"]
    value.backward()
    assert value.shape == () and value.dtype == torch.float32
    assert inputs["prediction"].grad.any()


@pytest.mark.parametrize("label", [0, -1])
def test_a_loss_is_finite_without_foreground(loss, label):
    instances = torch.full((2, 16, 16), label)
    assert loss.run(loss.build(), loss.inputs() | {"instances": instances})["loss"].isfinite()


# values


def test_batches_features_and_slots_refuse_what_does_not_fit():
    with pytest.raises(ShapeError):
        Batch(torch.rand(3, 8, 8))
    with pytest.raises(ShapeError):
        Batch(torch.rand(1, 3, 8, 8), instances=torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ShapeError):
        Features(torch.rand(1, 15, 2), (4, 4))
    with pytest.raises(ShapeError):
        Slots(torch.rand(1, 3, 2), torch.rand(1, 4, 16), (4, 4))
