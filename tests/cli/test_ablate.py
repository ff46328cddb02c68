"""`ocl ablate`: every row is trained and scored once, and the table says at which budget."""

import json
from pathlib import Path

import pytest

from ocl.cli.main import main

ROWS = Path(__file__).resolve().parents[2] / "configs" / "coda" / "ablation"
TINY = """
model:
  class_path: coda
  init_args:
    weights: WEIGHTS
    num_slots: 3
    slot_dim: 8
    encoder: {class_path: CNN, init_args: {width: 8, depth: 3, kernel: 3, stride: 4}}
data: {class_path: Scenes, init_args: {image_size: 64}}
held_out: {class_path: Scenes, init_args: {image_size: 64, split: test, size: 4}}
losses:
  - class_path: Reconstruction
  - {class_path: ContrastiveAlignment, init_args: {weight: 0.05, warmup_steps: 1}}
training: {steps: 2, batch_size: 2, log_every: 1, checkpoint_every: 1}
"""


@pytest.fixture
def coda_config(tmp_path, tiny_pipeline):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.replace("WEIGHTS", str(tiny_pipeline("sd"))))
    return path


def ablate(config, run, *words, rows=(ROWS,)):
    return main(["ablate", str(config), "--rows", *map(str, rows), "--run", str(run), "--device", "cpu", *words])


def state(run):
    """What each row has written, with the time of its last change."""
    files = [*run.glob("*/log.jsonl"), *run.glob("*/ablation.json"), *run.glob("*/checkpoints/*/model.safetensors")]
    return {path: path.stat().st_mtime_ns for path in files}


BUDGET = "Budget per row: 2 steps, 4 images seen, training seed 0. Scored on 4 held-out images; higher is better."


def test_rows_are_trained_and_scored_once_and_listed_with_their_budget(coda_config, tmp_path, capsys):
    run, rows = tmp_path / "ablation", [ROWS / "frozen.yaml", ROWS / "no_stop_gradient.yaml"]
    assert ablate(coda_config, run, rows=rows) == 0
    assert BUDGET in " ".join(capsys.readouterr().out.split()) and BUDGET in (run / "ablation.md").read_text()
    frozen, loud = (json.loads((run / row.stem / "log.jsonl").read_text().splitlines()[-1]) for row in rows)
    assert "loss/ContrastiveAlignment" not in frozen and loud["loss/ContrastiveAlignment"] < 0
    before = state(run)
    assert len(before) == 2 * 4
    assert ablate(coda_config, run, rows=rows) == 0 and state(run) == before


def test_a_row_that_cannot_begin_with_the_weights_is_named(coda_config, tmp_path, capsys):
    assert ablate(coda_config, tmp_path / "first", rows=[ROWS / "coda.yaml"]) == 0
    (start,) = (tmp_path / "first" / "coda" / "checkpoints").glob("*2/model.safetensors")
    rows = [ROWS / "frozen.yaml"]
    assert ablate(coda_config, tmp_path / "second", "--training.start_from", str(start), rows=rows) == 2
    assert "row frozen: " in (said := " ".join(capsys.readouterr().err.split())) and "--training.start_parts" in said
    parts = ["--training.start_from", str(start), "--training.start_parts", "[init, slot_module]"]
    assert ablate(coda_config, tmp_path / "second", *parts, rows=rows) == 0


@pytest.mark.slow
def test_every_row_of_the_paper_is_trained_scored_and_listed(coda_config, tmp_path):
    run = tmp_path / "ablation"
    assert ablate(coda_config, run) == 0
    names = {"frozen", "registers", "cross_attention", "contrastive", "registers_cross_attention", "no_stop_gradient", "coda"}
    content = json.loads((run / "ablation.json").read_text())
    assert content["rows"].keys() == names == content["tables"][0]["rows"].keys()
    assert all(0 <= row["scores"]["slots"]["mBO_i[coda]"] <= 1 for row in content["rows"].values())
    text = (run / "ablation.md").read_text()
    assert BUDGET in text and "| frozen |" in text and "mBO_i[coda]" in text and "ocl ablate" in text


def test_a_stopped_ablation_goes_on_and_longer_rows_go_on_training(coda_config, tmp_path):
    run, row = tmp_path / "ablation", ROWS / "frozen.yaml"
    assert ablate(coda_config, run, "--training.steps", "1", rows=[row]) == 0
    assert ablate(coda_config, run, rows=[row]) == 0
    content = json.loads((run / "ablation.json").read_text())
    assert content["rows"]["frozen"]["steps"] == 2
    assert [json.loads(line)["step"] for line in (run / "frozen" / "log.jsonl").read_text().splitlines()] == [1, 2]


def test_another_scoring_scores_again_and_trains_nothing(coda_config, tmp_path):
    run, row = tmp_path / "ablation", ROWS / "coda.yaml"
    assert ablate(coda_config, run, rows=[row]) == 0
    log = (run / "coda" / "log.jsonl").read_text()
    assert ablate(coda_config, run, "--protocol", "spot", "--limit", "2", rows=[row]) == 0
    content = json.loads((run / "ablation.json").read_text())["rows"]["coda"]
    assert content["images"] == 2 and "mBO_i[spot]" in content["scores"]["slots"]
    assert (run / "coda" / "log.jsonl").read_text() == log


def test_a_finished_row_of_another_config_is_refused(coda_config, tmp_path, capsys):
    run, row = tmp_path / "ablation", ROWS / "coda.yaml"
    assert ablate(coda_config, run, rows=[row]) == 0
    assert ablate(coda_config, run, "--training.optimizer.lr", "0.5", rows=[row]) == 2
    assert "was started with another config: training.optimizer.lr" in capsys.readouterr().err


def test_a_row_that_breaks_down_is_listed_and_the_others_go_on(coda_config, tmp_path, capsys):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a_wild.yaml").write_text("training: {clip: null, optimizer: {lr: 1.0e+30}}\n")
    (tmp_path / "rows" / "b_plain.yaml").write_text("{}\n")
    run = tmp_path / "ablation"
    assert ablate(coda_config, run, rows=[tmp_path / "rows" / "a_wild.yaml"]) == 0
    assert "No row could be scored" in capsys.readouterr().out
    assert ablate(coda_config, run, rows=[tmp_path / "rows"]) == 0
    rows = json.loads((run / "ablation.json").read_text())["rows"]
    assert "finite" in rows["a_wild"]["failed"] and rows["b_plain"]["scores"]["slots"]
    assert "| a_wild | - |" in (run / "ablation.md").read_text() and "a_wild broke down" in capsys.readouterr().out


def test_rows_without_files_or_of_one_name_and_configs_without_held_out_images_are_refused(coda_config, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert ablate(coda_config, tmp_path / "run", rows=[tmp_path / "empty"]) == 2
    assert "holds 0 YAML files" in capsys.readouterr().err
    assert ablate(coda_config, tmp_path / "run", rows=[ROWS / "coda.yaml", ROWS]) == 2
    assert "holds 8 YAML files of 7 names" in capsys.readouterr().err
    assert ablate(coda_config, tmp_path / "run", "--held_out", "null", rows=[ROWS / "coda.yaml"]) == 2
    assert "has no held_out data to score" in capsys.readouterr().err
