"""`ocl plan`: what it prints for a small model, and what it refuses."""

import importlib.util
import re
from pathlib import Path

import pytest

from ocl.cli import experiment as experiments
from ocl.cli.main import main
from ocl.cli.plan import costs, repeated
from ocl.train import deepspeed_config

ROOT = Path(__file__).resolve().parents[2]

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
    assert "Training refuses" not in out
    setting = r"ZeRO stage 0 \(--engine DeepSpeed --engine.config (\S+)\)"
    found = re.search(rf"Recommended: {setting}; 2 images per GPU fit, up to (\d+)", out)
    assert deepspeed_config.read(ROOT / found[1])["zero_optimization"]["stage"] == 0
    assert int(found[2]) % 2 == 0, "pairs must be in one process"
    assert re.search(r"Cache: features [\d.]+ MiB, latents [\d.]+ MiB an image in fp16, [\d.]+ GiB for 1000 images", out)


def test_it_says_that_nothing_fits(config, capsys):
    assert main(["plan", str(config), "--memory", "0.001"]) == 0
    assert "Nothing fits into 1 x 0.001 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "--gpus must be 1 or more, got 0"),
        (["--batch", "0"], "--batch must be 1 or more, got 0"),
        (["--batch", "-3"], "--batch must be 1 or more, got -3"),
        (["--image_size", "0"], "--image_size must be 1 or more, got 0"),
        (["--memory", "0"], "--memory must be a positive number, got 0"),
        (["--tflops", "nan"], "--tflops must be a positive number, got nan"),
        (["--denoiser", "flux"], "--denoiser knows sd3-medium, got 'flux'"),
        (["--data", "ImageFolder", "--data.root", "photos", "--data.image_size", "null"], "pass --image_size N"),
    ],
)
def test_bad_input_is_refused(config, capsys, words, message):
    assert main(["plan", str(config), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason", "counted"),
    [
        (["--gpus", "3"], "training.batch_size=8 cannot be divided among 3 processes", "4 images per GPU, training.batch_size=12."),
        (["--gpus", "8"], "batch_size=8 on 8 processes; choose a multiple of 16", "2 images per GPU, training.batch_size=16."),
        (["--gpus", "4", "--batch", "3"], "training.batch_size=12 on 4 processes; choose a multiple of 8", "3 images per GPU"),
    ],
)
def test_it_says_what_training_would_refuse(config, capsys, words, reason, counted):
    assert main(["plan", str(config), *words]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Training refuses this batch: ")]
    assert reason in line and counted in line


def test_checkpointing_repeats_less_than_the_passes_forward(config):
    experiment = experiments.read(["--config", str(config)], prog="test")
    model = experiment.model(device="meta")
    parts, _, _ = costs(experiment, model, 64, None, cached=False)
    forward = parts[-1].forward + parts[-1].contrast
    assert 0.5 * forward < repeated(experiment, model, 64, parts) <= forward


def test_time_to_compute_holds_what_checkpointing_repeats(config, capsys):
    def milliseconds(*words):
        assert main(["plan", str(config), "--gpus", "2", "--tflops", "1e-3", "--batch", "64", *words]) == 0
        out = capsys.readouterr().out
        (row,) = [line for line in out.splitlines() if re.match(r"\W+2\W+128\W", line)][:1]
        return float(re.split(r"[^\d.]+", row.strip("│ "))[5]), "activation checkpointing" in out

    (plain, without), (longer, checkpointing) = milliseconds(), milliseconds("--memory", "0.15")
    assert (without, checkpointing) == (False, True)
    assert 1.1 * plain < longer < 1.5 * plain


def test_the_table_of_the_docs_is_the_one_that_its_command_prints():
    spec = importlib.util.spec_from_file_location("plan_table", ROOT / "docs/plan_table.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    lines = [line for line in (ROOT / "docs/plan.md").read_text().splitlines() if line.startswith("| ")]
    lines = lines[lines.index("| " + " | ".join(table.COLUMNS) + " |") + 1 :]
    assert [line.split(" | ")[0][2:] for line in lines] == [table.label(*row) for row in table.rows()]
    assert table.row(ROOT / "configs/slot_attention/scenes_cpu.yaml") in lines
