"""Every command, end to end on a tiny run: what it writes, what it prints, and how it refuses."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from ocl.cli.main import COMMANDS, main
from ocl.train import checkpoint


def test_training_writes_config_log_panels_and_checkpoints(tiny_run):
    assert yaml.safe_load((tiny_run / "config.yaml").read_text())["model"]["init_args"]["num_slots"] == 3
    lines = [json.loads(line) for line in (tiny_run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert "eval/slots FG-ARI[coda]" in lines[-1]
    assert np.asarray(Image.open(tiny_run / "panels" / "step-00000004.png")).std() > 0
    assert checkpoint.load(checkpoint.latest(tiny_run)).samples == 16
    assert list((tiny_run / "tensorboard").iterdir())


def test_resuming_with_more_steps_goes_on(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert main(["train", "--run", str(run), "--resume", "--training.steps", "6"]) == 0
    assert checkpoint.load(checkpoint.latest(run)).step == 6


def test_a_run_is_not_overwritten_without_being_asked(tiny_config, tiny_run, capsys):
    assert main(["train", "--config", str(tiny_config), "--run", str(tiny_run)]) == 2
    assert "--resume" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_another_config(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert main(["train", "--run", str(run), "--resume", "--training.batch_size", "5"]) == 2
    assert "training.batch_size" in capsys.readouterr().err


def test_a_run_of_a_version_with_fewer_options_is_resumed(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["training"]["start_parts"], config["training"]["optimizer"]["rates"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--run", str(run), "--resume", "--training.steps", "6"]) == 0


def test_training_can_start_from_the_weights_of_another_run(tiny_config, tiny_run, tmp_path):
    weights = checkpoint.latest(tiny_run) / checkpoint.MODEL
    words = ["train", "--config", str(tiny_config), "--run", str(tmp_path / "run"), "--training.start_from", str(weights)]
    assert main([*words, "--training.optimizer.lr", "1e-12"]) == 0
    old, new = load_file(weights), load_file(checkpoint.latest(tmp_path / "run") / checkpoint.MODEL)
    for name in old:
        torch.testing.assert_close(new[name], old[name], atol=1e-6, rtol=0)


SLOTS = "{feature_dim: 8, slot_dim: 8, out_dim: 10, mlp_dim: 16, input_mlp: true}"
WIDER = ["--model.slot_module", f"{{class_path: SlotAttention, init_args: {SLOTS}}}", "--model.decoder.init_args.slot_dim", "10"]


def test_training_can_take_some_parts_of_another_model(tiny_config, tiny_run, tmp_path):
    weights = checkpoint.latest(tiny_run) / checkpoint.MODEL
    words = ["train", "--config", str(tiny_config), "--run", str(tmp_path / "run"), "--training.start_from", str(weights)]
    words += ["--training.start_parts", "[init, slot_module]", "--training.optimizer.lr", "1e-12"]
    assert main([*words, *WIDER]) == 0
    old, new = load_file(weights), load_file(checkpoint.latest(tmp_path / "run") / checkpoint.MODEL)
    for name in old:
        same = new[name].shape == old[name].shape and torch.allclose(new[name], old[name], atol=1e-6, rtol=0)
        assert same == name.startswith(("init.", "slot_module.")), name
    assert "slot_module.output.1.weight" in new


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--training.start_parts", "[slots]"], "training.start_from"),
        (["--training.start_from", "WEIGHTS", "--training.start_parts", "[slots]"], "slot_module"),
        (["--training.start_from", "WEIGHTS", "--training.start_parts", "[decoder]", *WIDER], "decoder."),
    ],
    ids=["parts of nothing", "a part that is not there", "a part of another shape"],
)
def test_parts_that_do_not_fit_are_told(words, told, tiny_config, tiny_run, tmp_path, capsys):
    weights = str(checkpoint.latest(tiny_run) / checkpoint.MODEL)
    words = [weights if word == "WEIGHTS" else word for word in words]
    assert main(["train", "--config", str(tiny_config), "--run", str(tmp_path / "run"), *words]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_resumes_without_the_weights_it_started_from(tiny_config, tiny_run, tmp_path):
    weights = shutil.copyfile(checkpoint.latest(tiny_run) / checkpoint.MODEL, tmp_path / "weights.safetensors")
    words = ["train", "--run", str(tmp_path / "run")]
    assert main([*words, "--config", str(tiny_config), "--training.start_from", str(weights)]) == 0
    weights.unlink()
    assert main([*words, "--resume", "--training.steps", "6"]) == 0


def test_evaluation_prints_a_table_and_writes_report_scores_and_images(tiny_run, tmp_path, capsys):
    assert main(["evaluate", str(tiny_run), "--protocol", "coda", "spot", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("protocol coda", "protocol spot", "mBO_i", "colour k-means, 7"))
    report = (tmp_path / "report.html").read_text()
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert "FG-ARI[coda]" in report and "data:image/png" in report
    assert {table["title"] for table in scores["tables"]} == {f"Scores under the protocol {name}" for name in ("coda", "spot")}
    rows = [json.loads(line) for line in (tmp_path / "images.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"scenes/plain/test/{index}" for index in range(6)]


@pytest.mark.parametrize(("kind", "folder"), [("VOCInstances", "voc_photos"), ("COCOInstances", "coco_photos")])
def test_evaluation_reads_real_photographs(tiny_run, photos, tmp_path, capsys, kind, folder):
    words = ["--data", kind, "--data.root", str(photos / folder), "--data.image_size", "64", "--out", str(tmp_path)]
    assert main(["evaluate", str(tiny_run), *words]) == 0
    assert "mBO_c" in capsys.readouterr().out
    assert "mBO_c[coda]" in (tmp_path / "report.html").read_text()
    assert len((tmp_path / "images.jsonl").read_text().splitlines()) == 3


def test_segmenting_a_folder_writes_masks_of_the_size_of_each_image(tiny_run, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("wide", (90, 40)), ("tall", (30, 80))):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"")
    assert main(["segment", str(tiny_run), str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "broken.jpg" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["segment", str(tiny_run), str(folder), "--out", str(tmp_path / "out"), "--skip_broken"]) == 0
    assert "2 images segmented, 1 skipped" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "masks" / "wide.png").size == (90, 40)
    assert Image.open(tmp_path / "out" / "masks" / "tall.png").size == (30, 80)


def test_segmenting_real_photographs(tiny_run, photos, tmp_path):
    assert main(["segment", str(tiny_run), str(photos / "voc_photos" / "JPEGImages"), "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 3


def test_describe_shows_config_parameters_and_kernels(tiny_run, capsys):
    assert main(["describe", str(tiny_run)]) == 0
    printed = capsys.readouterr().out
    assert "num_slots: 3" in printed and "slot_module" in printed and "label_contingency" in printed


def test_data_preview_and_check(tmp_path, capsys):
    picture = tmp_path / "scenes.png"
    words = ["--data", "Scenes", "--data.level", "textured", "--data.size", "5"]
    assert main(["data", "preview", *words, "--out", str(picture), "--limit", "4"]) == 0
    assert Image.open(picture).size[0] > 4 * 64
    assert main(["data", "check", *words]) == 0
    assert "images   5\n" in capsys.readouterr().out


def test_demo_looks_at_the_photographs_before_it_trains(tiny_config, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    assert main(["demo", "--config", str(tiny_config), "--run", str(tmp_path / "demo"), "--photos", str(folder)]) == 2
    assert "holds no image" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_results_are_not_written_into_a_checkpoint(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    newest = checkpoint.latest(run)
    before = sorted(newest.iterdir())
    assert main(["evaluate", str(newest), "--limit", "2", "--no_baselines"]) == 0
    assert sorted(newest.iterdir()) == before
    assert (run / "evaluation" / newest.name / "report.html").is_file()


def test_a_run_folder_that_cannot_be_made_is_an_error_not_a_traceback(tiny_config, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", "--config", str(tiny_config), "--run", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


def test_demo_trains_scores_and_segments_photographs(tiny_config, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (50, 40), (200, 30, 30)).save(folder / "red.png")
    run = tmp_path / "demo"
    assert main(["demo", "--config", str(tiny_config), "--run", str(run), "--photos", str(folder)]) == 0
    assert "best baseline" in capsys.readouterr().out
    assert "red.png" in (run / "report.html").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: ocl {name}" in capsys.readouterr().out


def test_unknown_commands_are_refused(capsys):
    assert main(["trian"]) == 2
    assert "train" in capsys.readouterr().err


def test_the_command_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "ocl.cli.main", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.1.0"
