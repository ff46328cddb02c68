"""`ocl plan`: what it prints for a small model, and what it refuses."""

import re

import pytest

from ocl.cli.main import main

CONFIG = """
model:
  class_path: coda
  init_args:
    weights: PIPELINE
    num_slots: 3
    slot_dim: 8
    encoder: {class_path: ViT, init_args: {weights: VIT, image_size: 24}}
data: {class_path: Scenes, init_args: {image_size: 64, size: 1000}}
losses:
  - class_path: Reconstruction
  - {class_path: ContrastiveAlignment, init_args: {weight: 0.05}}
training: {batch_size: 8}
"""


@pytest.fixture
def config(tmp_path, tiny_pipeline, tiny_vit):
    path = tmp_path / "coda.yaml"
    path.write_text(CONFIG.replace("PIPELINE", str(tiny_pipeline("sd"))).replace("VIT", str(tiny_vit("dinov2"))))
    return path


def test_it_names_parts_stages_traffic_and_a_recommendation(config, capsys):
    assert main(["plan", str(config), "--gpus", "4", "--memory", "1"]) == 0
    out = capsys.readouterr().out
    for part in ("encoder (cacheable)", "autoencoder (cacheable)", "slots", "denoiser", "total from a cache"):
        assert part in out
    assert re.search(r"activations of 2\b", out) and "4096" in out
    assert "Recommended: ZeRO stage 0; 2 images per GPU fit" in out
    assert re.search(r"Cache: features [\d.]+ MiB, latents [\d.]+ MiB an image in fp16, [\d.]+ GiB for 1000 images", out)


def test_it_says_that_nothing_fits(config, capsys):
    assert main(["plan", str(config), "--memory", "0.001"]) == 0
    assert "Nothing fits into 1 x 0.001 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "needs --gpus of at least 1"),
        (["--denoiser", "flux"], "--denoiser knows sd3-medium, got 'flux'"),
        (["--data", "ImageFolder", "--data.root", "photos", "--data.image_size", "null"], "pass --image_size N"),
    ],
)
def test_bad_input_is_refused(config, capsys, words, message):
    assert main(["plan", str(config), *words]) == 2
    assert message in capsys.readouterr().err
