"""Pipelines, checkpoints and weights that do not fit: each error names the place, the rule, what came and the way out."""

import json
import shutil

import pytest
import torch

from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion import NullPrompt
from ocl.encoders import CNN
from ocl.errors import CheckpointError, RangeError, ShapeError
from ocl.models import coda
from ocl.nn.freezing import load_trainable_state_dict, trainable_state_dict
from ocl.slots import SlotAttention
from ocl.types import Batch

PARTS = ["unet", "vae", "scheduler", "text_encoder", "tokenizer"]


@pytest.fixture
def pipeline(tiny_pipeline, tmp_path):
    return shutil.copytree(tiny_pipeline("sd"), tmp_path / "pipeline")


def small(folder, **parts):
    torch.manual_seed(0)
    return coda(weights=str(folder), num_slots=3, slot_dim=8, encoder=CNN(8, stride=4), **parts)


@pytest.mark.parametrize("part", PARTS)
def test_a_component_whose_folder_is_missing_is_named(pipeline, part):
    shutil.rmtree(pipeline / part)
    with pytest.raises(CheckpointError, match=rf"the pipeline {pipeline} has no {part} \(.*{part} is no folder\); pass a complete"):
        small(pipeline)


@pytest.mark.parametrize("part", [part for part in PARTS if part not in ("scheduler", "tokenizer")])
def test_a_component_that_the_index_does_not_name_is_named(pipeline, part):
    index = json.loads((pipeline / "model_index.json").read_text())
    del index[part]
    (pipeline / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"the pipeline {pipeline} has no {part}"):
        small(pipeline)


@pytest.mark.parametrize("part", ["vae", "unet", "scheduler"])
def test_a_component_without_its_config_names_the_file(pipeline, part):
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    (pipeline / part / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{part}/{name} cannot be read .*copy the pipeline folder again"):
        small(pipeline)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_a_component_with_damaged_weights_is_named(pipeline, part):
    (path,) = (pipeline / part).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=rf"the {part} of {pipeline} cannot be loaded \(.*\); copy that folder again"):
        small(pipeline)


def test_a_decoder_without_registers_needs_no_prompt_encoder(pipeline):
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(pipeline / part)
    assert LatentDiffusion(str(pipeline)).slot_dim == 32
    with pytest.raises(CheckpointError, match=r"has no text_encoder|has no tokenizer"):
        NullPrompt(str(pipeline))


def test_slots_of_another_width_than_the_conditioning_are_refused_when_the_model_is_made(tiny_pipeline):
    with pytest.raises(ShapeError, match=r"decoder.slot_dim = slot_module.out_dim, got 32 and 8"):
        small(tiny_pipeline("sd"), slot_module=SlotAttention(8, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("decoder.conditioner.registers.table"), r"1 missing \(decoder.conditioner.registers.table\)"),
        (lambda state: state.pop(next(name for name in state if name.endswith("attn2.to_k.weight"))), r"1 missing .*attn2.to_k"),
        (lambda state: state.update({"decoder.denoiser.backbone.module.conv_in.bias": torch.zeros(16)}), r"1 unknown .*conv_in"),
        (lambda state: state.update({"decoder.conditioner.registers.table": torch.zeros(5, 32)}), r"1 of another shape .*table"),
    ],
)
def test_a_checkpoint_with_other_keys_is_refused_and_changes_nothing(tiny_pipeline, change, message):
    model = small(tiny_pipeline("sd"))
    before = {name: value.clone() for name, value in trainable_state_dict(model).items()}
    state = {name: value + 1 for name, value in before.items()}
    change(state)
    with pytest.raises(CheckpointError, match=rf"weights do not fit SlotAutoencoder: {message}"):
        load_trainable_state_dict(model, state)
    assert all(torch.equal(before[name], value) for name, value in trainable_state_dict(model).items())


def loud(model):
    """The same autoencoder with activations of a size that half precision does not hold, as in Stable Diffusion XL."""
    with torch.no_grad():
        model.decoder.autoencoder.model.module.encoder.conv_in.weight.mul_(1e6)
    return model


def image():
    torch.manual_seed(1)
    return torch.rand(2, 3, 16, 16)


def test_latents_that_overflow_in_half_precision_are_reported_with_the_way_out(tiny_pipeline):
    decoder = loud(small(tiny_pipeline("sd"))).decoder
    noise = torch.randn(2, 4, 8, 8)
    assert decoder.autoencoder.encode(image(), noise).isfinite().all()
    decoder.autoencoder.half()
    with pytest.raises(RangeError, match=r"latents of the images hold NaN or infinite values; run the autoencoder in float32"):
        decoder.autoencoder.encode(image(), noise)


def test_training_in_fp16_keeps_the_autoencoder_in_its_own_precision(tiny_pipeline):
    model = loud(small(tiny_pipeline("sd")))
    with torch.autocast("cpu", dtype=torch.float16):
        output = model(Batch(image()), generator=torch.Generator().manual_seed(0))
    assert output.decoding.target.isfinite().all() and output.decoding.error().isfinite().all()
