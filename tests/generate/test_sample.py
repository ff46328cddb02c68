"""Sampling: images that do not depend on their batch, and what guidance, masks and schedules do to them."""

import pytest
import torch

from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion import AdaptedUNet, NullPrompt, PooledSlots, SlotTokens
from ocl.errors import ConfigError, RangeError, ShapeError
from ocl.generate import named_generators, sample
from ocl.generate.sample import sample_latents
from ocl.types import Slots

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def slots(batch=3, k=4):
    torch.manual_seed(2)
    return Slots(torch.randn(batch, k, 32), torch.rand(batch, k, 4).softmax(1), (2, 2))


@pytest.fixture
def decoder(tiny_pipeline):
    folder = str(tiny_pipeline("sd"))
    return LatentDiffusion(folder, conditioner=SlotTokens(NullPrompt(folder))).eval()


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_image_depends_on_its_own_seed_and_not_on_its_batch(decoder, sampler, guidance, tolerance):
    names, given = ["a", "b", "c"], slots()
    options = dict(steps=3, sampler=sampler, guidance=guidance)
    together = sample(decoder, given, (16, 16), generator=named_generators(names, seed=1), **options)
    assert together.shape == (3, 3, 16, 16) and (together >= 0).all() and (together <= 1).all()
    one = Slots(given.vectors[1:2], given.attn[1:2], given.grid)
    alone = sample(decoder, one, (16, 16), generator=named_generators(["b"], seed=1), **options)
    torch.testing.assert_close(alone[0], together[1], **tolerance[torch.float32])


def test_guidance_of_zero_ignores_the_slots(decoder, tolerance):
    given = slots(1)
    other = Slots(given.vectors + 1, given.attn, given.grid)
    images = [sample(decoder, each, (16, 16), steps=3, guidance=0.0, generator=torch.Generator().manual_seed(0))
              for each in (given, other)]  # fmt: skip
    torch.testing.assert_close(*images, **tolerance[torch.float32])


def test_slots_that_are_not_active_do_not_show(decoder, tolerance):
    given = slots(2)
    fewer = Slots(given.vectors[:, :3], given.attn[:, :3].softmax(1), given.grid)
    masked = Slots(given.vectors, given.attn, given.grid, active=torch.tensor([[True, True, True, False]] * 2))
    images = [sample(decoder, each, (16, 16), steps=3, generator=torch.Generator().manual_seed(0)) for each in (fewer, masked)]
    torch.testing.assert_close(*images, **tolerance[torch.float32])


@pytest.mark.parametrize("kind", ["sd_v", "sdxl", "pixart", "sana"])
def test_every_kind_of_pipeline_draws(tiny_pipeline, kind):
    decoder = LatentDiffusion(str(tiny_pipeline(kind)), conditioner=SlotTokens(NullPrompt(str(tiny_pipeline(kind)))))
    images = sample(decoder, slots(2), (16, 16), steps=3, sampler="dpm++", generator=torch.Generator().manual_seed(0))
    assert images.shape == (2, 3, 16, 16) and images.isfinite().all()


@pytest.mark.parametrize("kind", ["sd", "sdxl", "pixart"])
def test_guidance_is_two_predictions_of_the_same_latents(tiny_pipeline, kind, tolerance):
    """In one pass, whose beginning both share, or in two, with keys and values kept from step to step or not."""
    decoder = LatentDiffusion(str(tiny_pipeline(kind)), conditioner=SlotTokens(NullPrompt(str(tiny_pipeline(kind))))).eval()
    denoiser, given = decoder.denoiser, slots(2)

    def drawn(passes, share_trunk):
        denoiser.passes, denoiser.share_trunk = passes, share_trunk
        return sample(decoder, given, (16, 16), steps=3, sampler="dpm++", generator=torch.Generator().manual_seed(0))

    expected = drawn("separate", False)
    for way in (("separate", True), ("merged", False), ("merged", True)):
        torch.testing.assert_close(drawn(*way), expected, **tolerance[torch.float32])
    alone = sample(decoder, given, (16, 16), steps=3, guidance=1.0, sampler="dpm++", generator=torch.Generator().manual_seed(0))
    assert (alone - expected).abs().max() > 1e-4  # guidance matters


def test_what_lies_before_the_slots_is_computed_once(decoder):
    sizes = []
    decoder.denoiser.backbone.module.conv_in.register_forward_hook(lambda layer, args, output: sizes.append(len(args[0])))
    sample(decoder, slots(3), (16, 16), steps=2, guidance=2.0)
    assert sizes == [3, 3]


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_latents_are_clipped_only_where_the_config_of_the_scheduler_says_so(decoder, sampler):
    """A config of a DPM solver, as PixArt's, does not mention it, and the default of diffusers' DDIM is to clip."""

    def drawn(**clipping):
        config = {name: value for name, value in decoder.schedule.config.items() if name != "clip_sample"}
        decoder.schedule.config = config | clipping
        return sample_latents(decoder, slots(2), (8, 8), steps=3, guidance=2.0, sampler=sampler,
                              generator=torch.Generator().manual_seed(0))  # fmt: skip

    silent, free, clipped = drawn(), drawn(clip_sample=False), drawn(clip_sample=True)
    assert silent.abs().max() > 1 and torch.equal(silent, free)
    assert (sampler == "dpm++") == torch.equal(clipped, free)


def test_adapters_draw(tiny_pipeline):
    folder = str(tiny_pipeline("sd"))
    decoder = LatentDiffusion(folder, denoiser=AdaptedUNet(folder, map_block=-1), conditioner=PooledSlots())
    assert sample(decoder, slots(2), (16, 16), steps=2).isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("part", "name", "message"),
    [
        ("denoiser", "attn2.to_v.weight", "latents that the denoiser drew hold NaN .*; check the slots and its weights"),
        ("autoencoder", "decoder.conv_in.weight", "decoded images hold NaN .*; run the autoencoder in float32"),
    ],
)
def test_pictures_that_are_not_finite_name_the_part_that_made_them(decoder, device, part, name, message):
    weights = next(value for key, value in getattr(decoder.to(device), part).named_parameters() if key.endswith(name))
    with torch.no_grad():
        weights[0, 0] = float("nan")
    given = slots(2)
    given = Slots(given.vectors.to(device), given.attn.to(device), given.grid)
    with pytest.raises(RangeError, match=message):
        sample(decoder, given, (16, 16), steps=2)


def test_what_cannot_be_sampled_says_what_to_do(tiny_pipeline, decoder):
    with pytest.raises(ConfigError, match=r"flow matching.*use sampler dpm\+\+"):
        sample(LatentDiffusion(str(tiny_pipeline("sana"))), slots(1), (16, 16), sampler="ddim")
    with pytest.raises(ConfigError, match="at least one step, got 'ddim' and 0"):
        sample(decoder, slots(1), (16, 16), steps=0)
    with pytest.raises(ShapeError, match="divisible by 2, got 15 x 16"):
        sample(decoder, slots(1), (15, 16))
