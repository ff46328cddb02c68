"""One training step of the official CODA implementation, from its recorded draws: every quantity, in one pass and in two."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ocl.decoders.diffusion import LearnedRegisters, NullPrompt, SlotTokens
from ocl.decoders.diffusion.decoder import Draws
from ocl.encoders import CNN, ViT
from ocl.errors import CheckpointError
from ocl.losses import ContrastiveAlignment, Reconstruction
from ocl.models import SlotAutoencoder
from ocl.models.exporters import export_coda
from ocl.models.importers import INIT_KEYS, MODULE_KEYS, coda_model
from ocl.nn.freezing import trainable_state_dict
from ocl.ops import backend
from ocl.slots import SlotAttention
from ocl.slots.mismatch import swapped
from ocl.types import Batch, Mismatch, Output, Step

ROUNDING = 1e-10  # the smallest other gradient is 1e4 times as large


@pytest.fixture(scope="module")
def recorded(folder):
    return load_file(folder / "training_step.safetensors")


def imported(folder, checkpoint="official-layout-checkpoint"):
    sizes = json.loads((folder / "parameters.json").read_text())
    encoder = ViT(str(folder / "tiny-dinov2"), image_size=14 * sizes["grid"])
    checkpoint = folder / checkpoint if isinstance(checkpoint, str) else checkpoint
    return coda_model(checkpoint, weights=str(folder / "tiny-stable-diffusion"), encoder=encoder)


@pytest.fixture
def model(folder):
    return imported(folder)


def replay(model, recorded):
    """The training step with the recorded draws in place of ours: output, and the loss that is minimised."""
    batch = Batch((recorded["image"] + 1) / 2)
    noise = recorded["draw0_randn"].repeat(2, 1, 1)
    features, slots = model.encode(batch.image, noise=noise)
    draws = Draws(
        level=recorded["draw1_randint"], posterior=recorded["draw2_randn"], noise=recorded["draw3_randn_like"],
        kept=recorded["draw4_rand"].flatten() >= model.decoder.drop_rate,
    )  # fmt: skip
    contrast = swapped(slots, Mismatch(rate=0.5), draw=recorded["draw5_rand"][..., 0])
    output = Output(features, slots, model.decoder(slots, batch, features, contrast=contrast, draws=draws))
    step = Step(batch, output, index=100)
    losses = [Reconstruction(), ContrastiveAlignment(weight=0.05, warmup_steps=10)]
    return output, torch.stack([loss(step) for loss in losses]).sum()


def official_name(name):
    """A gradient's name in the recording -> the name of our parameter."""
    if name.startswith("unet."):
        return "decoder.denoiser.backbone.module." + name.removeprefix("unet.")
    name = name.removeprefix("encoder.slot_attn.")
    stem, _, leaf = name.rpartition(".")
    return f"init.{INIT_KEYS[name]}" if name in INIT_KEYS else f"slot_module.{MODULE_KEYS[stem]}.{leaf}"


WAYS = [("merged", True), ("merged", False), ("separate", False)]


@pytest.mark.parametrize(("passes", "share_trunk"), WAYS)
def test_the_training_step_equals_the_published_code(model, recorded, passes, share_trunk, implementation):
    denoiser = model.decoder.denoiser
    denoiser.passes, denoiser.share_trunk = passes, share_trunk
    with backend(implementation):
        output, loss = replay(model, recorded)
        loss.backward()
    close = torch.testing.assert_close
    close(output.slots.vectors, recorded["out_slots"], atol=1e-5, rtol=0)
    close(output.slots.attn.mT, recorded["out_attn"].sum(dim=1), atol=1e-5, rtol=0)
    close(output.decoding.error(), recorded["out_error_pos"], atol=1e-5, rtol=0)
    close(output.decoding.contrast_error(), recorded["out_error_neg"], atol=1e-5, rtol=0)
    close(loss, recorded["out_loss"].mean(), atol=1e-5, rtol=0)

    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    expected = {official_name(name[5:]): value for name, value in recorded.items() if name.startswith("grad.")}
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        error = (gradients[name] - value.view_as(gradients[name])).norm()
        if name == "slot_module.norm_slots.bias":  # zero in exact arithmetic: a softmax over slots ignores what all slots share
            assert value.norm() < ROUNDING and gradients[name].norm() < ROUNDING
            continue
        assert error < 1e-4 * value.norm(), f"{name}: {error / value.norm():.2e}"


def test_the_null_prompt_equals_the_recorded_one(folder, recorded, model):
    ours = NullPrompt(str(folder / "tiny-stable-diffusion"))
    torch.testing.assert_close(ours()[None], recorded["null_embedding"], atol=1e-5, rtol=0)
    assert torch.equal(model.decoder.conditioner.registers()[None], recorded["null_embedding"])


def test_only_trained_tensors_and_registers_are_saved(model, folder):
    state = trainable_state_dict(model)
    official = {f"{part}.{name}" for part in ("encoder", "unet")
                for name in load_file(folder / "official-layout-checkpoint" / part / "diffusion_pytorch_model.safetensors")}
    official -= {"encoder.null_embedding", "encoder.slot_attn.pos.pe"}
    assert state.keys() == {official_name(name) for name in official} | {"decoder.conditioner.registers.table"}


def test_a_step_of_the_model_is_these_parts_in_this_order(model, recorded):
    """From a generator, the composed model gives what its parts give one by one."""
    batch, seeded = Batch((recorded["image"] + 1) / 2), lambda: torch.Generator().manual_seed(5)
    mismatch = Mismatch()
    composed = model.train()(batch, generator=seeded(), mismatch=mismatch)
    generator = seeded()
    noise = torch.randn(2, 5, 48, generator=generator).repeat(2, 1, 1)
    features, slots = model.encode(batch.image, noise=noise)
    contrast = swapped(slots, mismatch, generator)
    by_hand = model.decoder(slots, batch, features, generator=generator, contrast=contrast)
    for name in ("prediction", "target", "contrast"):
        torch.testing.assert_close(getattr(composed.decoding, name), getattr(by_hand, name), rtol=0, atol=0)


# the layout on disk


def test_our_export_is_the_official_checkpoint(model, folder, tmp_path):
    official = folder / "official-layout-checkpoint"
    config = yaml.safe_load((official / "config.yaml").read_text())
    settings = {key: config[key] for key in ("inference_steps", "guidance_scale", "contrastive_warmup")}
    export_coda(model, tmp_path, weights="tiny-stable-diffusion", grid=4, settings=settings)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config
    for part in ("encoder", "unet"):
        name = "diffusion_pytorch_model.safetensors"
        ours, theirs = load_file(tmp_path / part / name), load_file(official / part / name)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-6 if key.endswith("pos.pe") else 0)
        values, expected = (json.loads((place / part / "config.json").read_text()) for place in (tmp_path, official))
        ignored = {"_diffusers_version", "_name_or_path", "model_id"}
        assert values.keys() - ignored == expected.keys() - ignored
        assert all(values[key] == expected[key] for key in values.keys() - ignored)


def test_an_exported_model_is_imported_as_it_was(model, folder, recorded, tmp_path):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    export_coda(model, tmp_path / "ours", weights="tiny-stable-diffusion", grid=4)
    again = imported(folder, tmp_path / "ours")
    for name, value in trainable_state_dict(model).items():
        assert torch.equal(trainable_state_dict(again)[name], value), name


def test_learned_registers_are_exported_and_imported_as_they_were(model, folder, recorded, tmp_path):
    weights = str(folder / "tiny-stable-diffusion")
    model.decoder.conditioner = SlotTokens(LearnedRegisters(4, 32))
    export_coda(model, tmp_path / "ours", weights=weights, grid=4)
    state = load_file(tmp_path / "ours" / "encoder" / "diffusion_pytorch_model.safetensors")
    assert json.loads((tmp_path / "ours" / "encoder" / "config.json").read_text())["num_registers"] == 4
    torch.testing.assert_close(state["null_embedding"], recorded["null_embedding"], atol=1e-5, rtol=0)
    bank = imported(folder, tmp_path / "ours").decoder.conditioner.registers
    assert isinstance(bank, LearnedRegisters) and torch.equal(bank(), model.decoder.conditioner.registers())


def slots_with(**settings):
    return SlotAttention(40, 48, out_dim=32, mlp_dim=48, eps=1e-6, position=True, input_mlp=True, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slot_module": slots_with(eps_on="denominator")}, r"SlotAttention\(eps_on='denominator'\) has no place.*'weights'"),
        ({"slot_module": slots_with(gru_state="normalised")}, r"SlotAttention\(gru_state='normalised'\)"),
        ({"slot_module": slots_with(num_heads=2, scale="head")}, r"SlotAttention\(scale='head'\)"),
        ({"slot_module": slots_with(gradient="implicit")}, "slot module has no place"),
        ({"encoder": CNN(40, stride=4)}, "CNN, which is trained, has no place .*; use save_pretrained"),
    ],
)
def test_what_the_official_layout_cannot_hold_is_refused_before_anything_is_written(model, tmp_path, change, message):
    for name, part in change.items():
        setattr(model, name, part)
    with pytest.raises(CheckpointError, match=message):
        export_coda(model, tmp_path / "ours", weights="tiny-stable-diffusion", grid=4)
    assert not (tmp_path / "ours").exists()


def test_a_truncated_null_prompt_is_imported_saved_and_not_exported(folder, copied, tmp_path):
    model = imported(folder, with_sizes(copied, num_registers=-2))
    again = SlotAutoencoder.from_pretrained(model.save_pretrained(tmp_path / "hub"))
    assert torch.equal(again.decoder.conditioner.registers(), model.decoder.conditioner.registers())
    assert len(again.decoder.conditioner.registers()) == 77 - 5
    with pytest.raises(CheckpointError, match=r"NullPrompt\(skip=5\) has no place .* all tokens of the prompt"):
        export_coda(model, tmp_path / "ours", weights="tiny-stable-diffusion", grid=4)


def test_heads_share_their_scale_where_there_is_one(model, folder, tmp_path):
    model.slot_module = slots_with(scale="head")  # of one head, which is as wide as the slot
    export_coda(model, tmp_path / "ours", weights="tiny-stable-diffusion", grid=4)
    assert (tmp_path / "ours" / "config.yaml").is_file()


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder / "official-layout-checkpoint", tmp_path / "checkpoint", copy_function=shutil.copyfile)


def tampered(copied, part, change):
    path = copied / part / "diffusion_pytorch_model.safetensors"
    path.parent.chmod(0o755)
    state = load_file(path)
    change(state)
    save_file(state, path)
    return copied


KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", lambda state: state.pop(KEY), "1 tensors do not fit the trained part of the U-Net: .*mid_block"),
        ("unet", lambda state: state.update(stranger=torch.zeros(1)), "stranger .expected None"),
        ("unet", lambda state: state.update({KEY: torch.zeros(32, 64)}), r"found \(32, 64\)"),
        ("encoder", lambda state: state.pop("null_embedding"), "null_embedding .* is missing"),
        ("encoder", lambda state: state.update(null_embedding=torch.zeros(1, 77, 16)), "registers have width 16"),
        ("encoder", lambda state: state.update(stranger=torch.zeros(1)), "unknown key stranger"),
        ("encoder", lambda state: state.update(register_tokens=torch.zeros(1, 4, 32)), "unknown key register_tokens, which"),
        ("encoder", lambda state: state.update(negative_tokens=torch.zeros(1, 5, 32)), "unknown key negative_tokens"),
        ("encoder", lambda state: state.update(null_embedding_old=torch.zeros(1, 77, 32)), "unknown key null_embedding_old"),
        ("encoder", lambda state: state.update({"backbone.dinov2.cls_token": torch.zeros(1)}), "unknown key backbone.dinov2.cls_"),
    ],
)
def test_a_checkpoint_with_other_keys_is_refused(folder, copied, part, change, message):
    with pytest.raises(CheckpointError, match=message):
        imported(folder, tampered(copied, part, change))


def with_sizes(copied, **changes):
    """The checkpoint with other values in encoder/config.json; None leaves one out."""
    path = copied / "encoder" / "config.json"
    path.parent.chmod(0o755)
    sizes = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps({key: value for key, value in sizes.items() if value is not None}))
    return copied


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dino_requires_grad": True}, "its DINO was trained with it .dino_requires_grad.*whose backbone stayed frozen"),
        ({"num_registers": 0}, "a learned negative prompt and no registers"),
        ({"num_registers": 4}, r"1 tensors do not fit LearnedRegisters: table .expected \(4, 32\), found None"),
        ({"num_registers": None, "slot_size": None}, "config.json lacks num_registers, slot_size"),
    ],
)
def test_what_the_config_declares_must_be_there_and_fit_our_parts(folder, copied, changes, message):
    with pytest.raises(CheckpointError, match=message):
        imported(folder, with_sizes(copied, **changes))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"trainable_keys": [".attn1.to_k."]}, "attn1.to_k. are not cross-attention projections"),
        ({"training_unet": True}, "whole U-Net was trained"),
        ({"model_id": None}, "lacks model_id"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(folder, copied, line, message):
    config = {**yaml.safe_load((copied / "config.yaml").read_text()), **line}
    (copied / "config.yaml").unlink()
    (copied / "config.yaml").write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(CheckpointError, match=message):
        imported(folder, copied)


def test_a_config_that_would_build_objects_is_refused(folder, copied):
    (copied / "config.yaml").unlink()
    (copied / "config.yaml").write_text("model_id: !!python/object/apply:os.system [echo]\n")
    with pytest.raises(CheckpointError, match="is not YAML"):
        imported(folder, copied)


def test_the_encoder_that_the_config_names_is_built(folder):
    from ocl.models.importers import _encoder

    with torch.device("meta"):
        encoder = _encoder({"dino_id": "dinov2_vitb14", "dino_sample_size": 32}, folder)
    assert encoder.width == 768 and encoder.vit.image_size == 448
