"""Registers: the null prompt is what the pipeline's own text encoder gives, computed once and stored."""

import json
import shutil

import pytest
import torch

from ocl.decoders.diffusion import LearnedRegisters, NoRegisters, NullPrompt, SlotTokens
from ocl.encoders import CNN
from ocl.errors import CheckpointError, ConfigError, ShapeError
from ocl.models import coda
from ocl.nn.freezing import awaited, load_trainable_state_dict, restoring, trainable_state_dict
from ocl.types import Slots

TOKENS = {"sd": 77, "sd_v": 77, "sdxl": 77, "pixart": 1, "sana": 1}


def without_text(pipeline, tmp_path):
    """A copy of a pipeline without text encoders and tokenizers."""
    folder = shutil.copytree(pipeline, tmp_path / "silent")
    for part in [*folder.glob("text_encoder*"), *folder.glob("tokenizer*")]:
        shutil.rmtree(part)
    return folder


@pytest.mark.parametrize(("kind", "tokens"), TOKENS.items())
def test_number_and_width_follow_the_pipeline(tiny_pipeline, kind, tokens):
    bank = NullPrompt(str(tiny_pipeline(kind)))
    assert bank().shape == (tokens, 32) == (len(bank()), bank.width)


@pytest.mark.parametrize(("kind", "tokens"), TOKENS.items())
def test_shapes_are_known_without_weights(tiny_pipeline, kind, tokens):
    with torch.device("meta"):
        assert NullPrompt(str(tiny_pipeline(kind)))().shape == (tokens, 32)


def test_it_is_the_unconditional_prompt_of_the_pipeline(tiny_pipeline):
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tiny_pipeline("sd"), safety_checker=None, feature_extractor=None)
    expected, _ = pipeline.encode_prompt("", "cpu", 1, False)
    torch.testing.assert_close(NullPrompt(str(tiny_pipeline("sd")))(), expected[0])


def test_it_is_the_unconditional_prompt_of_an_xl_pipeline(tiny_pipeline):
    import diffusers

    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(tiny_pipeline("sdxl"), force_zeros_for_empty_prompt=False)
    expected, *_ = pipeline.encode_prompt("", device="cpu", do_classifier_free_guidance=False)
    torch.testing.assert_close(NullPrompt(str(tiny_pipeline("sdxl")))(), expected[0])


def test_first_tokens_can_be_left_out(tiny_pipeline):
    whole, rest = NullPrompt(str(tiny_pipeline("sd"))), NullPrompt(str(tiny_pipeline("sd")), skip=5)
    assert torch.equal(rest(), whole()[5:])
    with pytest.raises(ConfigError, match="77 tokens, got skip=77"):
        NullPrompt(str(tiny_pipeline("sd")), skip=77)


def test_it_is_stored_and_the_text_encoder_is_not_kept(tiny_pipeline):
    bank = NullPrompt(str(tiny_pipeline("sd")))
    assert trainable_state_dict(bank).keys() == {"table"} and list(bank.modules()) == [bank]
    assert not bank().requires_grad
    stored = NullPrompt.stored(bank())
    assert torch.equal(stored(), bank()) and stored.width == 32


def test_a_pipeline_without_a_text_encoder_says_what_to_do(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline("sd"), tmp_path / "pipeline")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder": [None, None]}))
    with pytest.raises(CheckpointError, match=r"no text_encoder, which the null .*LearnedRegisters.*or NoRegisters\(\) for none"):
        NullPrompt(str(folder))


def test_the_way_out_that_is_named_leaves_coda_without_registers(tiny_pipeline, tmp_path):
    folder = without_text(tiny_pipeline("sd"), tmp_path)
    model = coda(weights=str(folder), num_slots=3, slot_dim=8, encoder=CNN(8, stride=4), registers=NoRegisters())
    assert model.decoder.conditioner.registers is None


def test_a_pipeline_whose_text_encoder_was_deleted_names_the_folder(tiny_pipeline, tmp_path):
    folder = shutil.copytree(tiny_pipeline("sd"), tmp_path / "pipeline")
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(CheckpointError, match=r"no text_encoder .*is no folder"):
        NullPrompt(str(folder))


def test_learned_registers_need_at_least_one():
    assert LearnedRegisters(3, 8)().shape == (3, 8)
    with pytest.raises(ConfigError, match="for none pass NoRegisters"):
        LearnedRegisters(0, 8)


def test_slots_as_wide_as_their_registers_are_needed():
    slots = Slots(torch.randn(2, 3, 5), torch.full((2, 3, 4), 1 / 3), (2, 2))
    with pytest.raises(ShapeError, match="out_dim=8"):
        SlotTokens(LearnedRegisters(3, 8))(slots)


def test_tokens_that_a_checkpoint_brings_need_no_text_encoder(tiny_pipeline, tmp_path):
    folder = without_text(tiny_pipeline("sd"), tmp_path)
    expected = NullPrompt(str(tiny_pipeline("sd")), skip=3)
    with restoring():
        bank = NullPrompt(str(folder), skip=3)
    assert bank.width == 32 and trainable_state_dict(bank) == {} and awaited(bank) == {"table": (None, 32)}
    with pytest.raises(CheckpointError, match="NullPrompt waits for the tokens of a checkpoint; load one"):
        bank()
    load_trainable_state_dict(bank, trainable_state_dict(expected))
    assert torch.equal(bank(), expected()) and not awaited(bank)


@pytest.mark.parametrize(
    ("state", "message"),
    [({}, r"1 missing \(table\)"), ({"table": torch.zeros(77, 16)}, r"1 of another shape \(table\)")],
)
def test_a_checkpoint_without_fitting_tokens_is_refused(tiny_pipeline, state, message):
    with restoring():
        bank = NullPrompt(str(tiny_pipeline("sd")))
    with pytest.raises(CheckpointError, match=message):
        load_trainable_state_dict(bank, state)
    assert awaited(bank)


@pytest.mark.parametrize("kind", TOKENS)
def test_the_width_is_known_without_a_text_encoder(tiny_pipeline, tmp_path, kind):
    with restoring():
        assert NullPrompt(str(without_text(tiny_pipeline(kind), tmp_path))).width == 32
