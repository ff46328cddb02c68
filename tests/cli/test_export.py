"""`ocl export`: what a run trained, for others."""

import json

import pytest
import torch
import yaml

from ocl.cli.experiment import read_run
from ocl.cli.main import main
from ocl.models import SlotAutoencoder
from ocl.models.exporters import export_coda
from ocl.train import load_model
from ocl.types import Batch

CODA = """
model:
  class_path: coda
  init_args:
    weights: WEIGHTS
    num_slots: 3
    slot_dim: 8
    encoder: {class_path: DINOv2, init_args: {weights: VIT, image_size: 56}}
data: {class_path: InMemory, init_args: {dataset: {class_path: Scenes, init_args: {image_size: 64, size: 8}}}}
held_out: {class_path: Scenes, init_args: {image_size: 64, split: test, size: 4}}
losses:
  - class_path: Reconstruction
  - {class_path: ContrastiveAlignment, init_args: {weight: 0.07, warmup_steps: 2}}
training: {steps: 2, batch_size: 2, log_every: 1, checkpoint_every: 2, ema: 0.5}
"""


@pytest.fixture(scope="module")
def coda_run(tmp_path_factory, tiny_pipeline, tiny_vit):
    folder = tmp_path_factory.mktemp("export")
    text = CODA.replace("WEIGHTS", str(tiny_pipeline("sd"))).replace("VIT", str(tiny_vit("dinov2")))
    (folder / "coda.yaml").write_text(text)
    assert main(["train", "--config", str(folder / "coda.yaml"), "--run", str(folder / "run"), "--device", "cpu"]) == 0
    return folder / "run"


def predictions(model):
    torch.manual_seed(0)
    batch, draws = Batch(torch.rand(2, 3, 64, 64)), [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return model(batch, noise=torch.randn(2, 3, 8), generator=draws).decoding.prediction


@pytest.mark.parametrize("words", [[], ["--no_ema"]])
def test_a_diffusion_run_is_exported_and_read_back(coda_run, tmp_path, words, capsys):
    assert main(["export", str(coda_run), str(tmp_path / "model"), *words]) == 0
    assert "model: config.json, model.safetensors, README.md" in capsys.readouterr().out
    expected = read_run(coda_run, prog="ocl").model()
    load_model(coda_run, expected, ema=not words)
    with torch.no_grad():
        assert torch.equal(predictions(SlotAutoencoder.from_pretrained(tmp_path / "model")), predictions(expected.eval()))


def test_the_card_has_what_the_run_knows(tiny_run, tmp_path):
    assert main(["evaluate", str(tiny_run), "--no_baselines", "--device", "cpu"]) == 0
    words = ["--license", "mit", "--name", "Tiny"]
    assert main(["export", str(tiny_run), str(tmp_path), *words]) == 0
    front, body = (tmp_path / "README.md").read_text().split("---\n")[1:]
    values = yaml.safe_load(front)
    assert values["license"] == "mit" and values["model-index"][0]["name"] == "Tiny"
    (result,) = values["model-index"][0]["results"]
    assert result["dataset"]["name"] == "Scenes, 6 images"
    scores = json.loads((tiny_run / "evaluation" / "scores.json").read_text())["tables"][0]["rows"]["decoder masks"]
    named = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert named["decoder masks mBO_i[coda]"] == pytest.approx(scores["mBO_i[coda]"], abs=1e-6)
    assert "Trained on Scenes (level plain, split train, image_size 64" in body
    assert "- Training: 4 steps, batches of 4, seed 0" in body and "ocl evaluate" not in values


def test_a_model_without_a_place_in_the_coda_layout_is_refused(coda_run, tiny_run, tmp_path, capsys):
    for run in (coda_run, tiny_run):  # weights of another ViT than the published ones; no diffusion decoder
        assert main(["export", str(run), str(tmp_path / "official"), "--layout", "coda"]) == 2
        assert "use --layout hub" in capsys.readouterr().err
    assert not (tmp_path / "official").exists()


def test_the_coda_layout_names_backbone_grid_and_contrast(coda_run, tmp_path):
    from ocl.cli.export import write_coda
    from ocl.models.importers import coda_model

    experiment = read_run(coda_run, prog="ocl")
    model = experiment.model()
    load_model(coda_run, model)
    model.encoder.made_with = {"image_size": 56}  # as a published backbone, which cannot be read here, would have it
    write_coda(model, experiment, tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (config["contrastive_weight"], config["contrastive_warmup"], config["contrastive_sampling_rate"]) == (0.07, 2, 0.5)
    assert config["encoder"]["dino_id"] == "dinov2_vitb14" and config["encoder"]["dino_sample_size"] == 4
    again = coda_model(tmp_path, encoder=model.encoder)
    with torch.no_grad():
        torch.testing.assert_close(predictions(again.eval()), predictions(model.eval()))


# folders in the hub's layout, in place of runs


@pytest.fixture(scope="module")
def hub_folder(coda_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    assert main(["export", str(coda_run), str(folder)]) == 0
    return folder


COMMANDS = {
    "evaluate": ["--no_baselines", "--data", "Scenes", "--data.image_size", "64", "--data.size", "2"],
    "segment": ["PHOTOS", "--image_size", "64"],
    "reconstruct": ["PHOTOS", "--image_size", "64", "--steps", "2"],
    "compose": ["PHOTOS", "--image_size", "64", "--steps", "2"],
    "edit": ["PHOTOS", "drop", "--image", "0.png", "--image_size", "64", "--steps", "2"],
}


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_in_the_hub_s_layout_is_used_like_its_run(coda_run, hub_folder, pictures, tmp_path, name):
    words = [word.replace("PHOTOS", str(pictures)) for word in COMMANDS[name]]
    for source, out in ((coda_run, "run"), (hub_folder, "hub")):
        assert main([name, str(source), *words, "--out", str(tmp_path / out), "--device", "cpu"]) == 0
    assert files_of(tmp_path / "hub") and files_of(tmp_path / "hub") == files_of(tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reconstruct", "HUB", "PHOTOS"], "names no image_size of data that it was trained on; pass --image_size"),
        (["evaluate", "HUB"], "has no held_out data in its config; pass --data"),
        (["evaluate", "HUB", "--no_ema"], "holds one set of weights"),
        (["evaluate", "PHOTOS"], "holds neither config.yaml nor config.json"),
    ],
)
def test_what_a_folder_does_not_say_is_asked_for(hub_folder, pictures, words, message, capsys):
    assert main([word.replace("HUB", str(hub_folder)).replace("PHOTOS", str(pictures)) for word in words]) == 2
    assert message in capsys.readouterr().err


def test_a_published_checkpoint_is_converted_and_drawn_with(coda_run, tiny_pipeline, tiny_vit, pictures, tmp_path, capsys):
    experiment = read_run(coda_run, prog="ocl")
    model = experiment.model()
    load_model(coda_run, model)
    export_coda(model, tmp_path / "official", weights="elsewhere/pipeline", grid=7)
    assert main(["reconstruct", str(tmp_path / "official"), str(pictures)]) == 2
    assert "is a published CODA checkpoint; run `ocl convert" in capsys.readouterr().err
    words = ["--weights", str(tiny_pipeline("sd")), "--encoder", "DINOv2", "--encoder.weights", str(tiny_vit("dinov2"))]
    assert main(["convert", str(tmp_path / "official"), str(tmp_path / "ours"), *words, "--encoder.image_size", "56"]) == 0
    words = ["--image_size", "64", "--steps", "2", "--device", "cpu"]
    assert main(["reconstruct", str(tmp_path / "ours"), str(pictures), *words]) == 0
    with torch.no_grad():
        again = SlotAutoencoder.from_pretrained(tmp_path / "ours")
        torch.testing.assert_close(predictions(again), predictions(model.eval()))


@pytest.mark.parametrize("words", [[], ["FOLDER", "--push", "owner/name"], ["--push", "owner/name", "--layout", "coda"]])
def test_one_target_is_asked_for(tiny_run, tmp_path, words, capsys):
    assert main(["export", str(tiny_run), *(word.replace("FOLDER", str(tmp_path)) for word in words)]) == 2
    assert "writes one thing" in capsys.readouterr().err


def test_nothing_is_pushed_offline(tiny_run, monkeypatch, capsys):
    monkeypatch.setenv("OCL_OFFLINE", "1")
    assert main(["export", str(tiny_run), "--push", "owner/name"]) == 2
    assert "owner/name cannot be written while OCL_OFFLINE" in capsys.readouterr().err
