"""The whole recipe on drawn scenes, from the small generator, encoder and slots that this repository ships."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ocl.cli.experiment import read
from ocl.cli.main import main
from ocl.data import Scenes
from ocl.train import checkpoint
from ocl.types import Batch, Slots

pytest.importorskip("diffusers", reason='pip install "ocl[diffusion]" to train latent-diffusion decoders')

ROOT = Path(__file__).resolve().parents[2]
ENCODER = "weights/scenes_encoder/model.safetensors"


def denoising_errors(model):
    """Held-out error under an image's own slots and under those of the next image; all draws are the same each time."""
    scenes = Scenes("plain", "test", image_size=64, size=64)
    images = torch.stack([scenes[index].image for index in range(64)]) / 255
    batch, generator = Batch(images), torch.Generator().manual_seed(0)
    noise = torch.randn(64, model.init.num_slots, model.init.slot_dim, generator=generator)
    with torch.no_grad():
        features, slots = model.eval().encode(images, noise=noise)
        other = Slots(slots.vectors.roll(1, dims=0), slots.attn.roll(1, dims=0), slots.grid)
        decoding = model.decoder(slots, batch, features, contrast=other, draws=model.decoder.draw(batch, generator))
    return decoding.error().mean().item(), decoding.contrast_error().mean().item()


@pytest.mark.slow
def test_coda_on_plain_scenes_learns_to_read_slots_and_keeps_them_better_than_segmenters_that_learn_nothing(tmp_path, monkeypatch):
    """The slots it starts from are shipped and good; what is learnt here is what they say of their image."""
    monkeypatch.chdir(ROOT)  # configs name weights from there
    run = tmp_path / "coda"
    words = ["--config", "configs/coda/scenes.yaml", "--data.dataset.size", "2560", "--held_out.size", "96"]
    words += ["--training.start_from", ENCODER, "--training.start_parts", "[init, slot_module]"]
    words += ["--training.steps", "80", "--training.optimizer.lr", "2e-3", "--training.eval_every", "20"]
    experiment = read(words, prog="ocl demo")
    start, learnt = experiment.model(), experiment.model()
    checkpoint.fill(start, Path(ENCODER), ["init", "slot_module"])
    assert main(["demo", *words, "--run", str(run)]) == 0
    checkpoint.load_model(run, learnt)

    (own_before, other_before), (own, other) = denoising_errors(start), denoising_errors(learnt)
    print(f"own slots {own_before:.4f} -> {own:.4f}, slots of the next image {other_before:.4f} -> {other:.4f}")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    errors = [line["eval/error"] for line in lines if "eval/error" in line]  # under the same noise each time
    assert own < 0.99 * own_before and errors[-1] < 0.98 * errors[0], "the generator learns to read the slots"
    assert abs(other_before - own_before) < 0.001 * own_before, "which said nothing to it"
    assert other - own > 0.02 * own, "and now say something of their own image"
    before, after = start.slot_module.state_dict(), learnt.slot_module.state_dict()
    assert (before["to_q.weight"] != after["to_q.weight"]).any(), "and slots learn through it"

    rows = json.loads((run / "scores.json").read_text())["tables"][0]["rows"]
    for score in ("FG-ARI[coda]", "mBO_i[coda]"):
        others = {name: scores[score] for name, scores in rows.items() if not name.startswith("slot masks")}
        assert len(others) == 15 and rows["slot masks"][score] > max(others.values()) + 0.02, score
    assert not any(name.startswith("encoder.") for name in load_file(checkpoint.latest(run) / checkpoint.MODEL))
