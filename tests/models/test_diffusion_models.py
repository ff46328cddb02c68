"""CODA, Stable-LSD and SlotAdapt: published sizes, how they differ, and that contrast trains slots alone."""

from dataclasses import replace

import pytest
import torch

from ocl.decoders import LatentDiffusion, PatchMLP
from ocl.decoders.diffusion import NoRegisters
from ocl.decoders.diffusion.decoder import drop_slots
from ocl.encoders import CNN
from ocl.errors import ConfigError, ShapeError
from ocl.losses import ContrastiveAlignment, MaskGuidance, Reconstruction
from ocl.models import coda, slot_attention, slotadapt, stable_lsd
from ocl.slots import SlotAttention
from ocl.types import Batch, Mismatch, Output, Slots, Step


def trained(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def small(builder, folder, **parts):
    torch.manual_seed(0)
    return builder(weights=str(folder), num_slots=3, slot_dim=8, encoder=CNN(8, stride=4), **parts)


def batch(size=2):
    torch.manual_seed(5)
    return Batch(torch.rand(size, 3, 16, 16))


def test_coda_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = coda(num_slots=6)
    assert trained(model.slot_module) + trained(model.init) == 8_279_040
    assert trained(model.decoder) == 31_572_160
    assert sum(parameter.numel() for parameter in model.decoder.denoiser.parameters()) == 859_520_964
    assert model.decoder.conditioner.registers().shape == (77, 768)


def test_slotadapt_has_an_adapter_for_each_of_fifteen_blocks_outside_the_middle():
    with torch.device("meta"):
        model = slotadapt(num_slots=6)
    assert trained(model.decoder) == 38_718_400
    assert model.decoder.denoiser.map_layers == [f"up_blocks.2.attentions.{index}.transformer_blocks.0" for index in range(3)]


def test_stable_lsd_trains_slots_only():
    with torch.device("meta"):
        model = stable_lsd()
    assert trained(model.decoder) == 0 and trained(model.slot_module) > 0
    assert model.decoder.schedule.prediction == "v_prediction" and model.slot_module.out_dim == 1024


def test_coda_without_registers_and_contrast_is_stable_lsd_with_trained_cross_attention(tiny_pipeline, tolerance):
    folder, projections = tiny_pipeline("sd"), ("to_k", "to_v", "to_out")
    modules = [SlotAttention(8, 8, out_dim=32, position=True, input_mlp=True) for _ in range(2)]  # published ones differ
    ours = small(coda, folder, registers=NoRegisters(), drop_rate=0.0, slot_module=modules[0]).train()
    theirs = small(stable_lsd, folder, trained=projections, slot_module=modules[1]).train()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    gradients = []
    for model in (ours, theirs):
        draws = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        features, slots = model.encode(batch().image, noise=torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)))
        contrast = slots if model is ours else None
        decoding = model.decoder(slots, batch(), features, generator=draws, contrast=contrast)
        loss = decoding.error().mean()
        if model is ours:
            loss = loss - 0.0 * decoding.contrast_error().mean()
        loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], **tolerance[torch.float32])


@pytest.mark.parametrize(
    ("builder", "options", "named"),
    [
        (coda, {"registers": NoRegisters()}, "registers"),
        (coda, {"trained": ()}, "trained"),
        (coda, {"drop_rate": 0.0, "trained": ("to_k",)}, "trained and drop_rate"),
        (stable_lsd, {"trained": ("to_k",)}, "trained"),
        (slotadapt, {"drop_rate": 0.1}, "drop_rate"),
    ],
)
def test_what_a_decoder_of_one_s_own_would_ignore_is_refused(tiny_pipeline, builder, options, named):
    decoder = LatentDiffusion(str(tiny_pipeline("sd")))
    assert small(builder, tiny_pipeline("sd"), decoder=decoder).decoder is decoder
    with pytest.raises(ConfigError, match=f"{builder.__name__}: {named} .* the decoder .* leave out"):
        small(builder, tiny_pipeline("sd"), decoder=decoder, **options)


def test_slotadapt_has_coda_s_slot_module():
    """The paper is silent on it."""
    with torch.device("meta"):
        ours, theirs = slotadapt().slot_module, coda().slot_module
    assert ours.made_with == theirs.made_with and ours.eps == 1e-6


@pytest.mark.parametrize("builder", [coda, slotadapt])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("pairing", ["halves", "ring"])
def test_contrast_works_for_any_batch_and_trains_slots_alone(tiny_pipeline, builder, size, pairing):
    parts = {} if builder is coda else {"decoder": _adapted(tiny_pipeline("sd"))}
    model = small(builder, tiny_pipeline("sd"), **parts)
    loss = ContrastiveAlignment(weight=0.5, warmup_steps=0, pairing=pairing)
    output = model(batch(size), generator=torch.Generator().manual_seed(0), mismatch=loss.mismatch(0))
    loss(Step(batch(size), output)).backward()
    assert all(value.grad is None or not value.grad.any() for value in model.decoder.parameters())
    if builder is coda:
        assert model.slot_module.to_v.weight.grad.any()


@pytest.mark.parametrize("learned", [False, True])
def test_the_contrastive_loss_leaves_the_decoder_s_gradients_bit_identical(tiny_pipeline, learned):
    from ocl.decoders.diffusion import LearnedRegisters

    registers = LearnedRegisters(5, 32) if learned else None
    model = small(coda, tiny_pipeline("sd"), registers=registers).train()
    gradients = []
    for weight in (1e-30, 0.5):
        losses = [Reconstruction(), ContrastiveAlignment(weight=weight, warmup_steps=0)]
        output = model(batch(4), generator=torch.Generator().manual_seed(0), mismatch=losses[1].mismatch(0))
        model.zero_grad()
        sum(loss(Step(batch(4), output)) for loss in losses).backward()
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None})
    decoder = [name for name in gradients[0] if name.startswith("decoder.")]
    assert len(decoder) == len([value for value in model.decoder.parameters() if value.requires_grad]) > 0
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in decoder)
    assert not torch.equal(gradients[0]["slot_module.to_v.weight"], gradients[1]["slot_module.to_v.weight"])


@pytest.mark.parametrize("kind", ["sd", "sd_v"])
def test_dropping_all_slots_is_the_pipeline_s_own_empty_prompt(tiny_pipeline, kind, tolerance):
    import diffusers

    decoder = small(coda, tiny_pipeline(kind)).decoder
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tiny_pipeline(kind), safety_checker=None, feature_extractor=None)
    empty, _ = pipeline.encode_prompt("", "cpu", 1, False)
    noisy, time = torch.randn(2, 4, 8, 8), torch.tensor([7, 800])
    expected = pipeline.unet(noisy, time, encoder_hidden_states=empty.expand(2, -1, -1)).sample
    slots = Slots(torch.randn(2, 3, 32), torch.full((2, 3, 4), 1 / 3), (2, 2))
    found = decoder.denoiser(noisy, time, decoder.conditioner(drop_slots(slots, torch.tensor([False, False])))).prediction
    torch.testing.assert_close(found, expected, **tolerance[torch.float32])


@pytest.mark.parametrize("builder", [coda, slotadapt])
def test_without_the_stop_the_contrastive_term_trains_the_decoder_too_and_slots_as_before(tiny_pipeline, builder, tolerance):
    parts = {} if builder is coda else {"decoder": _adapted(tiny_pipeline("sd"))}
    model = small(builder, tiny_pipeline("sd"), **parts).eval()
    gradients = {}
    for stop in (True, False):
        loss = ContrastiveAlignment(weight=0.5, warmup_steps=0, stop_gradient=stop)
        output = model(batch(), generator=torch.Generator().manual_seed(0), mismatch=loss.mismatch(0))
        model.zero_grad()
        value = loss(Step(batch(), output))
        value.backward()
        gradients[stop] = {name: each.grad for name, each in model.named_parameters() if each.grad is not None} | {"": value}
    decoder = [name for name in gradients[False] if name.startswith("decoder.")]
    assert decoder and all(name not in gradients[True] or not gradients[True][name].any() for name in decoder)
    assert any(gradients[False][name].any() for name in decoder)
    for name in gradients[True].keys() - set(decoder):
        torch.testing.assert_close(gradients[False][name], gradients[True][name], **tolerance[torch.float32])


def _adapted(folder):
    from ocl.decoders.diffusion import AdaptedUNet, PooledSlots

    return LatentDiffusion(str(folder), denoiser=AdaptedUNet(str(folder), map_block=-1), conditioner=PooledSlots(), drop_rate=0.1)


def test_partners_share_their_start_while_training_and_not_while_evaluating(tiny_pipeline):
    model = small(coda, tiny_pipeline("sd"))
    image = Batch(torch.rand(1, 3, 16, 16).expand(4, -1, -1, -1).contiguous())
    shared = model(image, generator=torch.Generator().manual_seed(0), mismatch=Mismatch(decode=False)).slots.vectors
    assert torch.allclose(shared[0], shared[2], atol=1e-6) and not torch.allclose(shared[0], shared[1], atol=1e-4)
    alone = model(image, generator=torch.Generator().manual_seed(0)).slots.vectors
    assert not torch.allclose(alone[0], alone[2], atol=1e-4)


def test_slots_are_dropped_in_training_only(tiny_pipeline):
    decoder = small(coda, tiny_pipeline("sd"), drop_rate=0.5).decoder
    images = Batch(torch.rand(64, 3, 4, 4))
    kept = decoder.train().draw(images, torch.Generator().manual_seed(0)).kept
    assert 16 < kept.sum() < 48
    assert decoder.eval().draw(images, torch.Generator().manual_seed(0)).kept is None


def test_a_decoder_that_cannot_contrast_says_so():
    model = slot_attention(num_slots=3, slot_dim=8, image_size=16, encoder=CNN(8, stride=4), decoder=PatchMLP(8, image_size=16))
    with pytest.raises(ConfigError, match="PatchMLP decodes no slots of other images"):
        model(batch(), mismatch=Mismatch())


def test_guidance_reads_the_adapters_masks(tiny_pipeline):
    model = small(slotadapt, tiny_pipeline("sd"), decoder=_adapted(tiny_pipeline("sd")))
    output = model(batch())
    assert output.decoding.masks.shape == (2, 3, 8, 8)
    MaskGuidance(start_step=0)(Step(batch(), output)).backward()
    adapters = [value for name, value in model.named_parameters() if ".adapter.to_k." in name and "up_blocks.1" in name]
    assert adapters and all(value.grad.any() for value in adapters)
    assert model.slot_module.to_v.weight.grad.any()


@pytest.mark.parametrize("distance", ["bce", "mse"])
def test_guidance_judges_no_image_whose_slots_were_dropped(tiny_pipeline, distance):
    model = small(slotadapt, tiny_pipeline("sd"), decoder=_adapted(tiny_pipeline("sd"))).train()
    loss = MaskGuidance(start_step=0, distance=distance)
    features, slots = model.encode(batch(4).image, noise=torch.randn(4, 3, 8))
    attn = slots.attn.detach().requires_grad_()
    slots = Slots(slots.vectors, attn, slots.grid)
    drawn = model.decoder.draw(batch(4), torch.Generator().manual_seed(0))

    def guided(kept):
        decoding = model.decoder(slots, batch(4), features, draws=replace(drawn, kept=torch.tensor(kept)))
        value = loss(Step(batch(4), Output(features, slots, decoding)))
        return value, torch.autograd.grad(value, attn)[0].flatten(1).any(1).tolist()

    some, images = guided([True, False, False, True])
    assert images == [True, False, False, True]
    parts = [guided([index == kept for index in range(4)])[0] for kept in (0, 3)]
    torch.testing.assert_close(some, torch.stack(parts).mean())
    assert guided([False] * 4) == (0, [False] * 4)


def test_images_that_latents_do_not_divide_are_refused(tiny_pipeline):
    with pytest.raises(ShapeError, match="image sides divisible by 2"):
        small(coda, tiny_pipeline("sd"))(Batch(torch.rand(1, 3, 15, 16)))


def test_registers_can_be_left_out_of_coda(tiny_pipeline):
    model = small(coda, tiny_pipeline("sd"), registers=NoRegisters(), drop_rate=0.9).train()
    assert model.decoder.conditioner.registers is None
    output = model(batch(8), generator=torch.Generator().manual_seed(0))
    assert output.decoding.error().isfinite().all()


def test_parts_of_two_pipelines_are_refused(tiny_pipeline, tmp_path):
    from ocl.decoders.diffusion import LearnedRegisters

    with pytest.raises(ConfigError, match="registers of width 16 do not fit a denoiser of conditioning width 32"):
        small(coda, tiny_pipeline("sd"), registers=LearnedRegisters(2, 16))


def test_latents_that_are_not_finite_are_reported(tiny_pipeline):
    from ocl.errors import RangeError

    model = small(coda, tiny_pipeline("sd"))
    with torch.no_grad():
        next(iter(model.decoder.autoencoder.parameters())).fill_(float("nan"))
    with pytest.raises(RangeError, match=r"latents of the images hold NaN .* float32"):
        model(batch())


def test_a_few_steps_lower_the_noise_error_on_one_batch(tiny_pipeline):
    """The denoiser is random here; what it can learn of one batch it learns through slots and cross-attention."""
    model = small(coda, tiny_pipeline("sd"))
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    errors = []
    for index in range(25):
        step = Step(batch(), model(batch(), generator=torch.Generator().manual_seed(0)), index)
        loss = Reconstruction()(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.9 * errors[0]
