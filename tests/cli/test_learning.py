"""The whole recipe on drawn scenes, from the small generator, encoder and slots that this repository ships."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ocl.cli.main import main
from ocl.train import checkpoint

pytest.importorskip("diffusers", reason='pip install "ocl[diffusion]" to train latent-diffusion decoders')

ROOT = Path(__file__).resolve().parents[2]
ENCODER = "weights/scenes_encoder/model.safetensors"


@pytest.mark.slow
def test_coda_on_plain_scenes_beats_segmenters_that_learn_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # configs name weights from there
    run = tmp_path / "coda"
    words = ["--config", "configs/coda/scenes.yaml", "--run", str(run), "--data.dataset.size", "2560", "--held_out.size", "96"]
    words += ["--training.start_from", ENCODER, "--training.start_parts", "[init, slot_module]"]
    words += ["--training.steps", "80", "--training.optimizer.lr", "2e-3", "--training.eval_every", "20"]
    assert main(["demo", *words]) == 0
    rows = json.loads((run / "scores.json").read_text())["tables"][0]["rows"]
    for score in ("FG-ARI[coda]", "mBO_i[coda]"):
        others = {name: scores[score] for name, scores in rows.items() if not name.startswith("slot masks")}
        assert len(others) == 15 and rows["slot masks"][score] > max(others.values()) + 0.02, score
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    errors = [line["eval/error"] for line in lines if "eval/error" in line]  # under the same noise each time
    assert errors[-1] < 0.98 * errors[0], "the generator learns to read the slots"
    before, after = load_file(ENCODER), load_file(checkpoint.latest(run) / checkpoint.MODEL)
    assert (before["slot_module.to_q.weight"] != after["slot_module.to_q.weight"]).any(), "and slots learn through it"
    assert not any(name.startswith("encoder.") for name in after)
