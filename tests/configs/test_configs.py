"""Every shipped config parses, builds on the meta device, and says in its header how it was made."""

from pathlib import Path

import pytest
import torch

from ocl.cli import experiment as experiments
from ocl.cli.pretrain import read_recipe
from ocl.pretrain import parts

FOLDER = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted((FOLDER / "pretrain").glob("*.yaml"))
CONFIGS = sorted(set(FOLDER.glob("*/*.yaml")) - set(RECIPES))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_builds(path):
    model = experiments.read(["--config", str(path)], prog="ocl").model(device="meta")
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_header_names_source_command_and_score(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"configs/{path.parent.name}/{path.name}" in header and "Command:" in header
    assert "Hardware:" in header and "score" in header


def test_each_latent_diffusion_model_has_a_config_for_every_dataset():
    names = {f"{path.parent.name}/{path.stem}" for path in CONFIGS}
    datasets = ("scenes", "voc", "coco", "movi_c", "movi_e")
    assert names >= {f"{model}/{data}" for model in ("coda", "stable_lsd", "slotadapt") for data in datasets}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_a_generator_builds_its_parts(path):
    recipe = read_recipe(["--config", str(path)])[0]
    with torch.device("meta"):
        unet, vae = parts.denoiser(recipe.sizes), parts.autoencoder(recipe.sizes)
    assert unet.config.cross_attention_dim == recipe.sizes.text_dim and vae.config.sample_size == recipe.sizes.image_size
    assert f"configs/pretrain/{path.name}" in path.read_text() and "Hardware:" in path.read_text()


ABLATION = sorted((FOLDER / "coda" / "ablation").glob("*.yaml"))
TRAINED = {  # row -> (registers, trained parameters of the denoiser, contrastive term, its gradient stopped)
    "frozen": (0, 0, False, None),
    "registers": (77, 0, False, None),
    "cross_attention": (0, 31_572_160, False, None),
    "contrastive": (0, 0, True, True),
    "registers_cross_attention": (77, 31_572_160, False, None),
    "no_stop_gradient": (77, 31_572_160, True, False),
    "coda": (77, 31_572_160, True, True),
}


@pytest.mark.parametrize("dataset", ["voc", "movi_e"])
@pytest.mark.parametrize("path", ABLATION, ids=lambda path: path.stem)
def test_an_ablation_row_changes_what_its_name_says(path, dataset):
    experiment = experiments.read(["--config", str(FOLDER / "coda" / f"{dataset}.yaml"), "--config", str(path)], prog="ocl")
    model, losses = experiment.model(device="meta"), experiment.losses()
    bank = model.decoder.conditioner.registers
    trained = sum(value.numel() for value in model.decoder.denoiser.parameters() if value.requires_grad)
    asked = [loss.mismatch(10**6) for loss in losses if loss.mismatch(10**6) is not None]
    found = (0 if bank is None else len(bank()), trained, bool(asked), asked[0].stop_gradient if asked else None)
    assert found == TRAINED[path.stem] and model.init.num_slots == {"voc": 6, "movi_e": 24}[dataset]


def test_every_row_of_the_published_ablation_is_there():
    assert {path.stem for path in ABLATION} == TRAINED.keys()


@pytest.mark.parametrize("path", ABLATION, ids=lambda path: path.stem)
def test_an_ablation_header_names_source_command_and_published_score(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "table 5" in header and f"configs/coda/ablation/{path.name}" in header and "Published score on VOC" in header
