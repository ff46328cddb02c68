"""What every part promises, whatever its kind: batches, precision, gradients, state, compilation, the meta device."""

import copy
import shutil

import pytest
import torch

from ocl.nn.freezing import load_trainable_state_dict, trainable_state_dict

KEPT_WIDE = {"attn", "error", "loss", "maps", "masks"}  # sums and softmaxes that half precision would spoil


def total(outputs):
    """A scalar that depends on every returned number in another way."""
    return sum((value.float() * torch.linspace(1, 2, value.numel()).view_as(value)).sum() for value in outputs.values())


def assert_equal(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def one(value, index):
    return value[index : index + 1] if torch.is_tensor(value) else value


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_image_does_not_see_the_rest_of_its_batch(per_image, tolerance, batch_size):
    part, inputs = per_image.build(), per_image.inputs(batch_size)
    singles = [{name: one(value, index) for name, value in inputs.items()} for index in range(batch_size)]
    alone = [per_image.run(part, single) for single in singles]
    together = {name: torch.cat([outputs[name] for outputs in alone]) for name in alone[0]}
    found = per_image.run(part, inputs)
    largest = max([1.0, *(float(value.detach().abs().max()) for value in together.values())])  # what rounding is relative to
    rtol, atol = (tolerance[torch.float32][name] for name in ("rtol", "atol"))
    assert_equal(found, together, rtol=rtol, atol=atol * largest)


def test_the_same_call_gives_the_same_result(example):
    part, inputs = example.build(), example.inputs()
    assert_equal(example.run(part, inputs), example.run(part, inputs), rtol=0, atol=0)


def test_training_and_evaluation_mode_agree(example):
    """No part here has dropout or batch statistics unless a user asks for it."""
    part, inputs = example.build(), example.inputs()
    assert_equal(example.run(part.train(), inputs), example.run(part.eval(), inputs), rtol=0, atol=0)


def test_every_trainable_weight_gets_a_gradient(example):
    part = example.build()
    trainable = {name: weight for name, weight in part.named_parameters() if weight.requires_grad}
    scalar = total(example.run(part, example.inputs(3)))
    assert scalar.requires_grad == bool(trainable)
    if trainable:
        scalar.backward()
    assert [name for name, weight in trainable.items() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_part_works_in_the_dtype_it_is_moved_to(example, dtype):
    outputs = example.run(example.build().to(dtype), example.inputs(dtype=dtype))
    exact = example.run(example.build().double(), example.inputs(dtype=torch.float64))
    for name, value in outputs.items():
        assert value.dtype in ({dtype, torch.float32} if name in KEPT_WIDE else {dtype}), name
        assert relative(value, exact[name]) < (1e-12 if dtype == torch.float64 else 0.03), name


def test_autocast_to_bfloat16_stays_close(example):
    part, inputs = example.build(), example.inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = example.run(part, inputs)
        if any(weight.requires_grad for weight in part.parameters()):
            total(rough).backward()
    exact = example.run(part, inputs)
    for name, value in rough.items():
        assert relative(value, exact[name]) < 0.03, name
    assert all(weight.grad.isfinite().all() for weight in part.parameters() if weight.grad is not None)


def relative(found, expected):
    expected = expected.double()
    if expected.numel() == 0:
        return 0.0
    return ((found.double() - expected).norm() / expected.norm()).item()


def test_a_state_dict_carries_everything_that_matters(example):
    source, target = example.build(seed=0), example.build(seed=1)
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    assert_equal(example.run(target, example.inputs()), example.run(source, example.inputs()), rtol=0, atol=0)


def test_a_checkpoint_without_frozen_weights_carries_the_rest(example):
    source, target = example.build(seed=0), example.build(seed=1)
    load_trainable_state_dict(target, copy.deepcopy(trainable_state_dict(source)))
    assert_equal(example.run(target, example.inputs()), example.run(source, example.inputs()), rtol=0, atol=0)


def test_a_copy_is_independent(example):
    source = example.build()
    duplicate = copy.deepcopy(source)
    expected = {name: value.clone() for name, value in example.run(source, example.inputs()).items()}
    with torch.no_grad():
        for weight in source.parameters():
            weight.zero_()
    assert_equal(example.run(duplicate, example.inputs()), expected, rtol=0, atol=0)


def test_compiles_without_graph_breaks(plain, tolerance):
    part, inputs = plain.build(), plain.inputs()
    expected = plain.run(part, inputs)
    torch._dynamo.reset()
    part.compile(fullgraph=True, backend="eager")
    assert_equal(plain.run(part, inputs), expected, **tolerance[torch.float32])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile generates C++; install a compiler")
def test_generated_code_agrees(representative, tolerance):
    part, inputs = representative.build(), representative.inputs()
    expected = representative.run(part, inputs)
    torch._dynamo.reset()
    part.compile(fullgraph=True)
    assert_equal(representative.run(part, inputs), expected, **tolerance[torch.float32])


def test_shapes_are_known_on_the_meta_device(example):
    expected = example.run(example.build(), example.inputs())
    with torch.device("meta"):
        found = example.run(example.build(), example.inputs(device="meta"))
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in expected.items()}
    assert all(value.is_meta for value in found.values())
