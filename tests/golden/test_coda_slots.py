"""The published CODA slot encoder, read through our importer, gives the recorded slots and attention."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ocl.errors import CheckpointError
from ocl.models.importers import coda_slots
from ocl.types import Features

IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def dino_features(folder, image, side):
    """The recorded recipe with transformers alone: resize to side * 14 pixels, ImageNet statistics, patch tokens."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers to compare with recorded features")
    model = transformers.AutoModel.from_pretrained(folder / "tiny-dinov2").eval()
    size = side * model.config.patch_size
    image = F.interpolate((image + 1) / 2, size=(size, size), mode="bilinear", antialias=True)
    with torch.no_grad():
        return model(pixel_values=(image - IMAGENET_MEAN) / IMAGENET_STD).last_hidden_state[:, 1:]


@pytest.mark.parametrize("form", ["plain", "absorbed"])
def test_slots_and_attention_equal_the_published_code(folder, form):
    step = load_file(folder / "training_step.safetensors")
    sizes = json.loads((folder / "parameters.json").read_text())
    module, init = coda_slots(folder / "official-layout-checkpoint")
    module.form = form
    grid = (sizes["grid"], sizes["grid"])
    noise = step["draw0_randn"]
    noise = noise.repeat(len(step["image"]) // len(noise), 1, 1)
    slots = module(Features(dino_features(folder, step["image"], sizes["grid"]), grid), init(len(noise), noise=noise))
    torch.testing.assert_close(slots.vectors, step["out_slots"], atol=1e-5, rtol=0)
    torch.testing.assert_close(slots.attn.transpose(1, 2), step["out_attn"].sum(dim=1), atol=1e-5, rtol=0)


def tampered(folder, tmp_path, change):
    copy = tmp_path / "checkpoint"
    shutil.copytree(folder / "official-layout-checkpoint", copy, copy_function=shutil.copyfile)
    path = copy / "encoder" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("slot_attn.project_q.weight"), "to_q.weight"),
        (lambda state: state.update(stranger=torch.zeros(1)), "unknown key stranger"),
        (lambda state: state.update({"slot_attn.slot_mu": torch.zeros(1, 1, 3)}), "mean"),
        (lambda state: state.update({"slot_attn.pos.pe": torch.zeros(1, 4, 4, 4)}), "cell centres"),
    ],
)
def test_a_checkpoint_with_other_keys_is_refused(folder, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        coda_slots(tampered(folder, tmp_path, change))


def test_a_truncated_checkpoint_is_refused(folder, tmp_path):
    copy = tampered(folder, tmp_path, lambda state: None)
    path = copy / "encoder" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        coda_slots(copy)


def test_a_missing_checkpoint_names_the_folder_to_pass(tmp_path):
    with pytest.raises(CheckpointError, match="pass the folder that holds"):
        coda_slots(tmp_path)
