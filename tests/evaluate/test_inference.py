"""Running a model so that the result for an image depends on that image and a seed alone."""

import torch

from ocl.evaluate.inference import inference, masks_of, run, slot_noise
from ocl.slots import GaussianInit
from ocl.types import Batch


def test_noise_of_an_image_follows_from_its_name_and_the_seed_alone():
    init = GaussianInit(4, 6)
    both, alone = slot_noise(init, ["a", "b"], seed=1), slot_noise(init, ["b"], seed=1)
    assert both.shape == (2, 4, 6) and both.dtype == torch.float32
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(slot_noise(init, ["b"], seed=2), alone)


def test_noise_is_standard_normal():
    noise = slot_noise(GaussianInit(10, 100), [str(number) for number in range(100)], seed=0)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_noise_leaves_global_randomness_alone():
    init, state = GaussianInit(2, 2), torch.get_rng_state()
    slot_noise(init, ["a"], seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_names_that_are_no_unicode_still_give_noise():
    assert slot_noise(GaussianInit(2, 2), ["\udcff.jpg"], seed=0).shape == (1, 2, 2)


def test_masks_of_the_slot_module_and_of_the_decoder(untrained):
    batch = Batch(torch.rand(2, 3, 16, 16))
    with inference(untrained):
        output = run(untrained, batch, names=["a", "b"], seed=0, device="cpu")
    assert masks_of(output, "slots").shape == (2, 3, 8, 8) and masks_of(output, "decoder").shape == (2, 3, 16, 16)


def test_the_mode_of_every_part_is_put_back_after_an_error(untrained):
    untrained.train()
    untrained.encoder.eval()
    try:
        with inference(untrained):
            assert not any(module.training for module in untrained.modules())
            raise KeyError
    except KeyError:
        pass
    assert untrained.training and untrained.decoder.training and not untrained.encoder.training
    assert torch.is_grad_enabled()
