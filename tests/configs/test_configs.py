"""Every shipped config parses, builds on the meta device, and says in its header how it was made."""

from pathlib import Path

import pytest

from ocl.cli import experiment as experiments

FOLDER = Path(__file__).resolve().parents[2] / "configs"
CONFIGS = sorted(FOLDER.glob("*/*.yaml"))


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


def test_there_are_configs():
    assert len(CONFIGS) >= 4


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
