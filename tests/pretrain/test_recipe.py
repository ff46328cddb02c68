"""A generator of scenes from nothing, at the smallest sizes there are: what it learns is tested where it is used."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from ocl.cli.main import main
from ocl.errors import CheckpointError, ConfigError
from ocl.train import Optimizer, Schedule, Training

pytest.importorskip("diffusers", reason='pip install "ocl[diffusion]" to test generators of scenes')
from ocl.decoders import LatentDiffusion
from ocl.decoders.diffusion import NullPrompt, SlotTokens
from ocl.nn.draws import normal
from ocl.pretrain import Recipe, Sizes, pretrain
from ocl.pretrain.loop import fit_stage
from ocl.pretrain.quality import caption_gain, draw_captions, reconstructed
from ocl.pretrain.recipe import draw
from ocl.types import Batch, Features, Slots

SIZES = Sizes(
    autoencoder_channels=(8, 8, 16), denoiser_channels=(16, 16), text_dim=16, text_layers=1, text_length=40, heads=2
)
STAGE = Training(
    steps=2, batch_size=4, optimizer=Optimizer(lr=1e-3), schedule=Schedule(kind="constant", warmup_steps=0), log_every=1,
    checkpoint_every=100,
)
RECIPE = Recipe(levels=("plain", "textured"), scenes=6, sizes=SIZES, autoencoder=STAGE, denoiser=replace(STAGE, ema=0.9))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    assert pretrain(RECIPE, folder) == folder / "pipeline"
    return folder


def test_the_folder_is_a_pipeline_that_models_decode_with(run):
    weights = str(run / "pipeline")
    registers = NullPrompt(weights)
    assert registers().shape == (40, 16)
    decoder = LatentDiffusion(weights, conditioner=SlotTokens(registers))
    slots = Slots(torch.randn(2, 3, 16), torch.full((2, 3, 4), 1 / 3), (2, 2))
    found = decoder(slots, Batch(torch.rand(2, 3, 64, 64)), Features(torch.zeros(2, 4, 1), (2, 2)))
    assert found.prediction.shape == (2, 4, 16, 16) and found.error().isfinite().all()


def test_latents_have_unit_variance_over_the_scenes(run):
    decoder = LatentDiffusion(str(run / "pipeline"))
    (images,) = draw(RECIPE.levels, 6, image_size=64).pick(range(6))
    latents = decoder.autoencoder.encode(images, torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert latents.var().item() == pytest.approx(1, rel=0.1)


def test_diffusers_draws_pictures_of_captions_with_the_folder(run):
    pictures = draw_captions(run / "pipeline", ["a small red matte disc on a plain background"] * 2, steps=2)
    assert pictures.shape == (2, 3, 64, 64) and not torch.equal(pictures[0], pictures[1])


def test_scores_compare_captions_under_the_same_noise(run):
    unseen = draw(("plain",), 6, image_size=64, split="test")
    found = caption_gain(run / "pipeline", unseen, draws=1)
    assert set(found) == {"pixels", "right caption", "wrong caption", "no caption"}
    same = caption_gain(run / "pipeline", replace(unseen, captions=("",) * 6), draws=1)
    assert same["right caption"] == same["no caption"] == pytest.approx(found["no caption"])
    assert reconstructed(run / "pipeline", unseen.pick([0])[0]).shape == (1, 3, 64, 64)


def test_weights_are_kept_in_half_precision_and_trained_in_full(run):
    assert load_file(run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == torch.float16
    trained = load_file(run / "denoiser" / "checkpoints" / "step-00000002" / "model.safetensors")
    assert trained["unet.conv_in.weight"].dtype == torch.float32


def test_a_finished_folder_is_not_written_over(run):
    with pytest.raises(CheckpointError, match="exists already and is not overwritten"):
        pretrain(RECIPE, run)


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x, generator):
        return (self.weight * x + 0.1 * normal([len(x), 3], generator, device=x.device)).square().mean()


def test_a_stage_that_was_stopped_ends_where_an_unbroken_one_does(tmp_path):
    data = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    whole, first, second = Line(), Line(), Line()
    options = {"length": 10, "device": "cpu"}

    def pick(indices):
        return (data[list(indices)] + 0.1 * torch.randn(len(indices), 3),)

    fit_stage(whole, pick, training=replace(STAGE, steps=7, ema=0.9), run=tmp_path / "whole", **options)
    fit_stage(first, pick, training=replace(STAGE, steps=3, ema=0.9), run=tmp_path / "parts", **options)
    fit_stage(second, pick, training=replace(STAGE, steps=7, ema=0.9), run=tmp_path / "parts", **options)
    assert torch.equal(whole.weight, second.weight) and not torch.equal(first.weight, second.weight)


def test_the_command_writes_scores_and_a_picture_and_refuses_another_recipe(tmp_path, capsys):
    words = ["pretrain", "scenes", "--run", str(tmp_path / "run"), "--device", "cpu", "--scenes", "2"]
    words += ["--sizes.autoencoder_channels", "[8,8,8]", "--sizes.denoiser_channels", "[16]", "--sizes.text_dim", "8"]
    for stage in ("autoencoder", "denoiser"):
        words += [f"--{stage}.steps", "1", f"--{stage}.batch_size", "2"]
    assert main(words) == 0
    assert set(json.loads((tmp_path / "run" / "report.json").read_text())) >= {"pixels", "right caption"}
    assert (tmp_path / "run" / "preview.png").stat().st_size > 1000
    assert main([*words, "--kl_weight", "0.1"]) == 2
    assert "started with another recipe" in capsys.readouterr().err
    recipe = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(recipe.replace("kl_weight: 1.0e-06\n", ""))  # of a version with fewer options
    assert "kl_weight" not in (tmp_path / "run" / "config.yaml").read_text()
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sizes(image_size=72), "divisible by 16"),
        (lambda: Sizes(denoiser_channels=(20,)), "denoiser_channels must be multiples of 16"),
        (lambda: Sizes(autoencoder_channels=()), "autoencoder_channels must be multiples of 8"),
        (lambda: Sizes(text_dim=30), "text_dim must be divisible by heads"),
        (lambda: Sizes(prediction="sample"), "epsilon or v_prediction"),
        (lambda: Recipe(levels=("plain", "plain")), "each level once"),
        (lambda: Recipe(scenes=0), "at least the number of levels"),
        (lambda: Recipe(drop_rate=1.0), r"drop_rate in \[0, 1\)"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
