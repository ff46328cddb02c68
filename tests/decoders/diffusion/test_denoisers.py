"""Denoisers: the same function as diffusers computes on concatenated conditioning, and gradients only where they belong."""

import gc
import json
import shutil
import weakref

import pytest
import torch

from ocl.decoders.diffusion import AdaptedUNet, LatentTransformer, LatentUNet, latent_denoiser
from ocl.decoders.diffusion.denoisers import KEY_VALUE_OUTPUT
from ocl.errors import CheckpointError, ConfigError, ShapeError
from ocl.nn.freezing import trainable_state_dict
from ocl.types import Conditioning

KINDS = ["sd", "sd_v", "sdxl", "pixart", "sana"]
B, K, R, C = 2, 3, 5, 32


def inputs(batch=B):
    torch.manual_seed(1)
    return torch.randn(batch, 4, 8, 8), torch.arange(batch) * 300 + 7


def conditioning(seed=0, *, registers=True, mask=None, grad=False):
    torch.manual_seed(seed)
    slots = torch.randn(B, K, C, requires_grad=grad)
    torch.manual_seed(99)
    return Conditioning(slots, torch.randn(R, C) if registers else None, mask)


def diffusers_prediction(denoiser, kind, context, mask=None):
    """The pipeline's own model with its own attention on one context tensor per image."""
    import diffusers

    noisy, time = inputs()
    part = "transformer" if kind in ("pixart", "sana") else "unet"
    name = type(denoiser.backbone.module).__name__
    model = getattr(diffusers, name).from_pretrained(denoiser.folder, subfolder=part).eval()
    more = {}
    if kind == "sdxl":
        more["added_cond_kwargs"] = {"time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * B), "text_embeds": torch.zeros(B, 20)}
    if kind == "pixart":
        more["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    return model(noisy, timestep=time, encoder_hidden_states=context, encoder_attention_mask=mask, **more).sample[:, :4]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def denoiser(tiny_pipeline, kind):
    made = latent_denoiser(str(tiny_pipeline(kind)))
    made.folder = tiny_pipeline(kind)
    return made


def test_registers_projected_once_equal_registers_concatenated_to_every_image(denoiser, kind, tolerance):
    given = conditioning()
    context = torch.cat([given.slots, given.registers.expand(B, -1, -1)], dim=1)
    found = denoiser(*inputs(), given).prediction
    torch.testing.assert_close(found, diffusers_prediction(denoiser, kind, context), **tolerance[torch.float32])


def test_self_attention_is_ours_where_torch_would_compute_it(denoiser, kind):
    layers = {name: layer for name, layer in denoiser.backbone.module.named_modules() if name.endswith("attn1")}
    found = {type(layer.processor).__name__ for layer in layers.values()}
    assert found == ({"SanaLinearAttnProcessor2_0"} if kind == "sana" else {"SelfAttention"})


def test_masked_slots_are_not_attended(denoiser, kind, tolerance):
    mask = torch.tensor([[True, False, True], [False, False, False]])
    given = conditioning(mask=mask)
    context = torch.cat([given.slots, given.registers.expand(B, -1, -1)], dim=1)
    full = torch.cat([mask, torch.ones(B, R, dtype=torch.bool)], dim=1)
    found = denoiser(*inputs(), given).prediction
    torch.testing.assert_close(found, diffusers_prediction(denoiser, kind, context, full), **tolerance[torch.float32])


def test_dropping_all_slots_is_the_unconditional_branch(denoiser, tolerance):
    given = conditioning(mask=torch.zeros(B, K, dtype=torch.bool))
    registers_alone = Conditioning(given.slots[:, :0], given.registers)
    found, expected = (denoiser(*inputs(), each).prediction for each in (given, registers_alone))
    torch.testing.assert_close(found, expected, **tolerance[torch.float32])


def test_without_registers_and_slots_the_prediction_is_still_a_number(denoiser):
    given = conditioning(registers=False, mask=torch.zeros(B, K, dtype=torch.bool), grad=True)
    denoiser(*inputs(), given).prediction.sum().backward()
    assert given.slots.grad.isfinite().all() and not given.slots.grad.any()


def test_only_key_value_and_output_are_trained_and_saved(denoiser):
    names = trainable_state_dict(denoiser).keys()
    assert names and all(any(f".attn2.{kept}." in name for kept in KEY_VALUE_OUTPUT) for name in names)
    assert names == {name for name, value in denoiser.named_parameters() if value.requires_grad}


def gradients(denoiser, weight, *, passes, share_trunk=True):
    """(gradients of the slots, of the other images' slots, of the weights) of error - weight * contrast error."""
    denoiser.passes, denoiser.share_trunk = passes, share_trunk
    denoiser.zero_grad()
    own, other = conditioning(0, grad=True), conditioning(1, grad=True)
    found = denoiser(*inputs(), own, other if weight is not None else None)
    loss = found.prediction.square().mean()
    if weight is not None:
        loss = loss - weight * found.contrast.square().mean()
    loss.backward()
    weights = {name: value.grad.clone() for name, value in denoiser.named_parameters() if value.requires_grad}
    return own.slots.grad, other.slots.grad, weights


@pytest.mark.parametrize("passes", ["merged", "separate"])
def test_the_contrastive_term_leaves_the_denoiser_s_gradients_bit_identical(denoiser, passes):
    own, other, without = gradients(denoiser, 0.0, passes=passes)
    same, pushed, with_it = gradients(denoiser, 0.5, passes=passes)
    assert torch.equal(own, same) and pushed.any() and not other.any()
    assert all(torch.equal(without[name], value) for name, value in with_it.items())


def test_a_separate_contrastive_pass_changes_nothing_of_the_plain_one(denoiser):
    plain, _, without = gradients(denoiser, None, passes="separate")
    own, other, with_it = gradients(denoiser, 0.5, passes="separate")
    assert torch.equal(plain, own) and other.any()
    assert all(torch.equal(without[name], value) for name, value in with_it.items())


@pytest.mark.parametrize("share_trunk", [False, True])
def test_one_merged_pass_equals_two_passes(denoiser, share_trunk, tolerance):
    expected = gradients(denoiser, 0.5, passes="separate")
    found = gradients(denoiser, 0.5, passes="merged", share_trunk=share_trunk)
    for ours, theirs in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance[torch.float32])
    for name, value in expected[2].items():
        torch.testing.assert_close(found[2][name], value, **tolerance[torch.float32])


def test_the_contrastive_gradient_is_that_of_detached_weights(denoiser, tolerance):
    """Against the published way, which switches requires_grad off for a pass of its own."""
    _, found, _ = gradients(denoiser, 0.5, passes="merged")
    other = conditioning(1, grad=True)
    denoiser.requires_grad_(False)
    (-0.5 * denoiser(*inputs(), other).prediction.square().mean()).backward()
    torch.testing.assert_close(found, other.slots.grad, **tolerance[torch.float32])


def test_the_trunk_runs_once_for_both_halves(denoiser, kind):
    seen = {}
    model = denoiser.backbone.module
    layers = {"entry": model.get_submodule("patch_embed" if kind == "sana" else "pos_embed" if kind == "pixart" else "conv_in")}
    layers["attn1"] = next(layer for name, layer in model.named_modules() if name.endswith("attn1"))
    for name, layer in layers.items():
        layer.register_forward_hook(lambda layer, args, out, name=name: seen.update({name: len(args[0])}))
    denoiser(*inputs(), conditioning(), conditioning(1))
    assert set(seen.values()) == {B}
    denoiser(*inputs(), conditioning())
    assert set(seen.values()) == {B}


@pytest.mark.parametrize("passes", ["merged", "separate"])
@pytest.mark.parametrize("checkpointing", [True, "selective"])
def test_activations_can_be_computed_again(tiny_pipeline, kind, passes, checkpointing, tolerance):
    expected = gradients(latent_denoiser(str(tiny_pipeline(kind))), 0.5, passes=passes)
    found = gradients(latent_denoiser(str(tiny_pipeline(kind)), checkpointing=checkpointing), 0.5, passes=passes)
    torch.testing.assert_close(found[:2], expected[:2], **tolerance[torch.float32])
    torch.testing.assert_close(found[2], expected[2], **tolerance[torch.float32])


def test_a_graph_that_is_kept_can_be_computed_again_twice(tiny_pipeline, tolerance):
    denoiser = latent_denoiser(str(tiny_pipeline("sd")), checkpointing=True, passes="separate")
    found = denoiser(*inputs(), own := conditioning(0, grad=True), conditioning(1, grad=True))
    error = found.prediction.square().mean() - 0.5 * found.contrast.square().mean()
    first, second = (torch.autograd.grad(error, own.slots, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(second, first, **tolerance[torch.float32])


@pytest.mark.parametrize("checkpointing", [True, "selective"])
def test_two_passes_may_come_before_the_backward_pass(tiny_pipeline, checkpointing, tolerance):
    """A pass with registers after one without them, and after a merged one: each is computed again as it was."""
    results = []
    for saved in (False, checkpointing):
        denoiser = latent_denoiser(str(tiny_pipeline("sd")), checkpointing=saved)
        both = denoiser(*inputs(), conditioning(0), conditioning(1))
        alone = denoiser(*inputs(), conditioning(2, registers=False))
        sum(value.square().mean() for value in (both.prediction, both.contrast, alone.prediction)).backward()
        results.append({name: value.grad for name, value in denoiser.named_parameters() if value.requires_grad})
    torch.testing.assert_close(results[1], results[0], **tolerance[torch.float32])


def test_keys_and_values_are_projected_once_for_sampling(denoiser, tolerance):
    calls = []
    for name, layer in denoiser.named_modules():
        if name.endswith("attn2.to_k"):
            layer.register_forward_hook(lambda *_: calls.append(1))
    given = conditioning()
    with torch.no_grad(), denoiser.reusing_projections():
        first = denoiser(*inputs(), given).prediction
        once = len(calls)
        second = denoiser(*inputs(), given).prediction
    assert len(calls) == once > 0 and torch.equal(first, second)
    torch.testing.assert_close(denoiser(*inputs(), given).prediction, first, **tolerance[torch.float32])


def test_trained_projections_are_named(tiny_pipeline):
    folder = str(tiny_pipeline("sd"))
    assert not trainable_state_dict(LatentUNet(folder, trained=()))
    names = trainable_state_dict(LatentUNet(folder, trained=("to_q",)))
    assert names and all(".attn2.to_q.weight" in name for name in names)


@pytest.mark.parametrize("passes", ["merged", "separate"])
def test_trained_queries_get_no_contrastive_gradient_either(tiny_pipeline, passes):
    denoiser = LatentUNet(str(tiny_pipeline("sd")), trained=("to_q", "to_k", "to_v", "to_out"))
    *_, without = gradients(denoiser, 0.0, passes=passes)
    *_, with_it = gradients(denoiser, 0.5, passes=passes)
    assert all(torch.equal(without[name], value) for name, value in with_it.items())


def test_queries_and_keys_may_be_normalised(tiny_pipeline, tmp_path, tolerance):
    """As in Sana 1.5: an RMS norm over all heads, before they are split."""
    import diffusers

    folder = shutil.copytree(tiny_pipeline("sana"), tmp_path / "sana")
    config = diffusers.SanaTransformer2DModel.load_config(folder, subfolder="transformer")
    config |= {"qk_norm": "rms_norm_across_heads", "num_cross_attention_heads": 4}
    diffusers.SanaTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    denoiser = LatentTransformer(str(folder))
    denoiser.folder = folder
    given = conditioning()
    context = torch.cat([given.slots, given.registers.expand(B, -1, -1)], dim=1)
    found = denoiser(*inputs(), given).prediction
    torch.testing.assert_close(found, diffusers_prediction(denoiser, "sana", context), **tolerance[torch.float32])


def test_sana_is_told_scaled_times_where_its_config_says_so(tiny_pipeline, tmp_path, tolerance):
    """diffusers' Sana pipeline multiplies times by `timestep_scale`; the model itself does not."""
    folder = shutil.copytree(tiny_pipeline("sana"), tmp_path / "sana")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"timestep_scale": 0.25}))
    scaled, plain = (LatentTransformer(str(each)) for each in (folder, tiny_pipeline("sana")))
    (noisy, time), given = inputs(), conditioning()
    found = scaled(noisy, time, given).prediction
    torch.testing.assert_close(found, plain(noisy, time * 0.25, given).prediction, **tolerance[torch.float32])
    assert not torch.allclose(found, plain(noisy, time, given).prediction, atol=1e-4)


# adapters


@pytest.fixture
def adapted(tiny_pipeline):
    made = AdaptedUNet(str(tiny_pipeline("sd")), map_block=-1)
    made.folder = tiny_pipeline("sd")
    return made


def with_text(seed=0, *, mask=None, grad=False):
    given = conditioning(seed, registers=False, mask=mask, grad=grad)
    return Conditioning(given.slots, slot_mask=mask, text=given.slots.mean(dim=1, keepdim=True))


def test_new_adapters_leave_the_frozen_model_as_it_is(adapted, tolerance):
    given = with_text()
    found = adapted(*inputs(), given).prediction
    torch.testing.assert_close(found, diffusers_prediction(adapted, "sd", given.text), **tolerance[torch.float32])


def test_adapters_stand_in_all_down_and_up_blocks_and_not_in_the_middle(adapted):
    blocks = {name.split("backbone.module.")[1].split(".")[0] for name in trainable_state_dict(adapted)}
    assert blocks == {"down_blocks", "up_blocks"}
    assert all(".adapter." in name for name in trainable_state_dict(adapted))


def test_adapter_maps_are_a_distribution_over_slots(adapted, tolerance):
    maps = adapted(*inputs(), with_text()).maps
    assert maps.shape == (B, K, 8, 8)
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(B, 8, 8), **tolerance[torch.float32])


def awake(adapted):
    """Adapters that do something: their output no longer starts at zero."""
    torch.manual_seed(3)
    for name, value in adapted.named_parameters():
        if ".adapter.to_out." in name:
            torch.nn.init.normal_(value, std=0.2)
    return adapted


def test_adapters_get_no_contrastive_gradient(adapted):
    awake(adapted)

    def weights(weight):
        adapted.zero_grad()
        own, other = with_text(0, grad=True), with_text(1, grad=True)
        found = adapted(*inputs(), own, other)
        (found.prediction.square().mean() - weight * found.contrast.square().mean()).backward()
        assert other.slots.grad is None or other.slots.grad.any() == (weight > 0)
        return {name: value.grad.clone() for name, value in adapted.named_parameters() if value.requires_grad}

    for passes in ("merged", "separate"):
        adapted.passes = passes
        without, with_it = weights(0.0), weights(0.5)
        assert without and all(torch.equal(without[name], value) for name, value in with_it.items())


def test_adapters_in_one_merged_pass_equal_two_passes(adapted, tolerance):
    awake(adapted)
    results = {}
    for adapted.passes in ("merged", "separate"):
        found = adapted(*inputs(), with_text(0), with_text(1))
        results[adapted.passes] = found
    for name in ("prediction", "contrast", "maps"):
        found, expected = (getattr(results[passes], name) for passes in ("merged", "separate"))
        torch.testing.assert_close(found, expected, **tolerance[torch.float32])


@pytest.mark.parametrize("passes", ["merged", "separate"])
@pytest.mark.parametrize("checkpointing", [True, "selective"])
def test_adapters_and_their_maps_can_be_computed_again(tiny_pipeline, passes, checkpointing, tolerance):
    results = []
    for saved in (False, checkpointing):
        torch.manual_seed(0)  # adapters start at random
        denoiser = awake(AdaptedUNet(str(tiny_pipeline("sd")), map_block=-1, passes=passes, checkpointing=saved))
        own, other = with_text(0, grad=True), with_text(1, grad=True)
        found = denoiser(*inputs(), own, other)
        maps = dict(denoiser.state.maps)
        (found.prediction.square().mean() - 0.5 * found.contrast.square().mean() + found.maps.square().mean()).backward()
        assert maps and all(denoiser.state.maps[name] is value for name, value in maps.items())  # not those of the second time
        results.append([value.grad for value in (own.slots, other.slots, *denoiser.parameters()) if value.requires_grad])
    torch.testing.assert_close(results[1], results[0], **tolerance[torch.float32])


def test_a_checkpointed_pass_is_freed_with_its_output(tiny_pipeline):
    denoiser = AdaptedUNet(str(tiny_pipeline("sd")), map_block=-1, checkpointing=True)
    maps = weakref.ref(denoiser(*inputs(), with_text(grad=True)).maps)
    kept = [weakref.ref(value) for value in denoiser.state.maps.values()]
    denoiser.state.maps = {}
    gc.collect()
    assert kept and maps() is None and all(value() is None for value in kept)


def test_adapters_need_a_text_token(adapted):
    with pytest.raises(ConfigError, match="PooledSlots"):
        adapted(*inputs(), conditioning())


def test_the_block_whose_maps_are_asked_for_must_have_some(tiny_pipeline):
    with pytest.raises(ConfigError, match=r"up block 0 .* no cross-attention; those with one: 1"):
        AdaptedUNet(str(tiny_pipeline("sd")), map_block=0)
    with pytest.raises(ConfigError, match="2 up blocks, got map_block=2"):
        AdaptedUNet(str(tiny_pipeline("sd")))


# bad input


def test_conditioning_of_another_width_is_refused(denoiser):
    with pytest.raises(ShapeError, match=r"conditioning of width 32.*out_dim=32"):
        denoiser(*inputs(), Conditioning(torch.zeros(B, K, 16)))


def test_latents_of_another_depth_are_refused(denoiser):
    with pytest.raises(ShapeError, match=r"latents \[B, 4, h, w\]"):
        denoiser(torch.zeros(B, 3, 8, 8), inputs()[1], conditioning())


def test_registers_masks_and_text_of_other_shapes_are_refused():
    slots = torch.zeros(B, K, C)
    with pytest.raises(ShapeError, match="registers must be"):
        Conditioning(slots, torch.zeros(R, C + 1))
    with pytest.raises(ShapeError, match="slot_mask must be bool"):
        Conditioning(slots, slot_mask=torch.ones(B, K))
    with pytest.raises(ShapeError, match="text must be"):
        Conditioning(slots, text=torch.zeros(B, C))


@pytest.fixture
def copied(tiny_pipeline, tmp_path):
    return shutil.copytree(tiny_pipeline("sd"), tmp_path / "pipeline")


def test_a_pipeline_without_a_denoiser_says_so(copied):
    index = json.loads((copied / "model_index.json").read_text())
    del index["unet"]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="has no unet"):
        latent_denoiser(str(copied))


def test_a_denoiser_of_another_kind_is_refused(copied):
    index = json.loads((copied / "model_index.json").read_text())
    index["unet"] = ["diffusers", "UNet3DConditionModel"]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="UNet3DConditionModel, which is not supported; this needs UNet2DConditionModel"):
        latent_denoiser(str(copied))


def test_a_damaged_denoiser_names_the_part(copied):
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"the unet of .* cannot be loaded"):
        latent_denoiser(str(copied))


def test_missing_weights_name_a_tensor(copied):
    from safetensors.torch import load_file, save_file

    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["conv_in.weight"]
    save_file(state, path)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors \(conv_in.weight"):
        latent_denoiser(str(copied))


def test_a_folder_that_is_no_pipeline_and_a_missing_one_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no model_index.json"):
        latent_denoiser(str(tmp_path))
    with pytest.raises(CheckpointError, match="is missing; pass an existing one"):
        latent_denoiser(str(tmp_path / "nowhere"))


def test_a_hub_id_that_is_not_cached_says_how_to_get_it():
    with pytest.raises(CheckpointError, match="downloads are off; run once with network: hf download owner/pipeline"):
        latent_denoiser("owner/pipeline", local_files_only=True)


def test_a_relative_path_that_is_no_folder_may_have_been_meant_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = rf"weights/generator is no folder in {tmp_path} \(relative paths count from there.*\), and as a hub id .* not in the"
    with pytest.raises(CheckpointError, match=expected):
        latent_denoiser("weights/generator", local_files_only=True)


@pytest.mark.parametrize("kind", [LatentUNet, AdaptedUNet])
def test_selective_checkpointing_is_refused_at_stage_3(tiny_pipeline, kind):
    from ocl.train.engine_deepspeed import _check_checkpointing

    more = {} if kind is LatentUNet else {"map_block": -1}
    model = torch.nn.ModuleList([kind(str(tiny_pipeline("sd")), checkpointing="selective", **more)])
    _check_checkpointing(model, 2)
    with pytest.raises(ConfigError, match=r"selective does not work with ZeRO stage 3; set it to true"):
        _check_checkpointing(model, 3)
