"""The latent-diffusion models through `ocl train` on drawn scenes, from a tiny pipeline folder."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ocl.cli import gallery
from ocl.cli.experiment import read_run
from ocl.cli.main import main
from ocl.data.decode import read_image
from ocl.train.checkpoint import latest, load_model
from ocl.types import Slots
from ocl.vis.grid import GAP

CODA = """
losses:
  - class_path: Reconstruction
  - {class_path: ContrastiveAlignment, init_args: {weight: 0.05, warmup_steps: 2}}
"""
SLOTADAPT = """
losses:
  - class_path: Reconstruction
  - {class_path: MaskGuidance, init_args: {start_step: 2}}
"""
ADAPTED = """
    decoder:
      class_path: LatentDiffusion
      init_args:
        weights: WEIGHTS
        denoiser: {class_path: AdaptedUNet, init_args: {weights: WEIGHTS, map_block: -1}}
        conditioner: PooledSlots
"""
TINY = """
model:
  class_path: NAME
  init_args:
    weights: WEIGHTS
    num_slots: 3
    slot_dim: 8
    encoder: {class_path: CNN, init_args: {width: 8, depth: 3, kernel: 3, stride: 4}}MORE
data: {class_path: Scenes, init_args: {image_size: 64}}
held_out: {class_path: Scenes, init_args: {image_size: 64, split: test, size: 6}}
training: {steps: 4, batch_size: 4, log_every: 1, eval_every: 4, checkpoint_every: 2}
"""


def config(tmp_path, tiny_pipeline, name):
    text = TINY.replace("NAME", name).replace("MORE", ADAPTED if name == "slotadapt" else "")
    text += {"coda": CODA, "slotadapt": SLOTADAPT, "stable_lsd": ""}[name]
    path = tmp_path / f"{name}.yaml"
    path.write_text(text.replace("WEIGHTS", str(tiny_pipeline("sd"))))
    return path


def lines_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["coda", "stable_lsd", "slotadapt"])
def test_it_trains_scores_and_saves_what_was_trained(tmp_path, tiny_pipeline, name):
    run = tmp_path / "run"
    assert main(["train", "--config", str(config(tmp_path, tiny_pipeline, name)), "--run", str(run)]) == 0
    lines = lines_of(run)
    assert lines[-1]["step"] == 4 and "eval/slots mBO_i[coda]" in lines[-1]
    assert ("eval/decoder mBO_i[coda]" in lines[-1]) == (name == "slotadapt")
    state = load_file(latest(run) / "model.safetensors")
    assert not any("autoencoder" in key or ".attn1." in key for key in state)
    assert ("decoder.conditioner.registers.table" in state) == (name == "coda")
    if name == "coda":
        contrast = [line["loss/ContrastiveAlignment"] for line in lines]
        assert contrast[:2] == [0, 0] and all(value < 0 for value in contrast[2:])
    if name == "slotadapt":
        guidance = [line["loss/MaskGuidance"] for line in lines]
        assert guidance[:2] == [0, 0] and all(value > 0 for value in guidance[2:])


def test_a_resumed_run_reaches_the_weights_of_an_uninterrupted_one(tmp_path, tiny_pipeline):
    words = ["train", "--config", str(config(tmp_path, tiny_pipeline, "coda"))]
    assert main([*words, "--run", str(tmp_path / "whole")]) == 0
    assert main([*words, "--run", str(tmp_path / "parts"), "--training.steps", "2"]) == 0
    assert main([*words, "--run", str(tmp_path / "parts"), "--resume"]) == 0
    whole, parts = (load_file(latest(tmp_path / name) / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_is_read_back_into_the_model(tmp_path, tiny_pipeline):
    run = tmp_path / "run"
    assert main(["train", "--config", str(config(tmp_path, tiny_pipeline, "coda")), "--run", str(run)]) == 0
    model = read_run(run, prog="ocl").model()
    load_model(run, model)
    stored = load_file(latest(run) / "model.safetensors")["decoder.conditioner.registers.table"]
    assert torch.equal(model.decoder.conditioner.registers(), stored)


def test_two_losses_that_ask_for_other_slots_are_refused(tmp_path, tiny_pipeline, capsys):
    path = config(tmp_path, tiny_pipeline, "coda")
    path.write_text(path.read_text() + "  - {class_path: ContrastiveAlignment, init_args: {weight: 0.1}}\n")
    assert main(["train", "--config", str(path), "--run", str(tmp_path / "run")]) == 2
    assert "two losses ask for slots of other images" in capsys.readouterr().err


# drawing


@pytest.fixture(scope="module")
def drawn_run(tmp_path_factory, tiny_pipeline):
    folder = tmp_path_factory.mktemp("drawn")
    assert main(["train", "--config", str(config(folder, tiny_pipeline, "coda")), "--run", str(folder / "run")]) == 0
    return folder / "run"


def draw(command, run, pictures, out, *words):
    return main([command, str(run), str(pictures), *words, "--out", str(out), "--steps", "2", "--device", "cpu"])


def pixels(path):
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_reconstructions_do_not_depend_on_the_batch(drawn_run, pictures, tmp_path):
    assert draw("reconstruct", drawn_run, pictures, tmp_path / "all", "--alone") == 0
    assert draw("reconstruct", drawn_run, pictures, tmp_path / "single", "--batch_size", "1") == 0
    for number in range(3):
        together, alone = (pixels(tmp_path / name / "images" / f"{number}.png") for name in ("all", "single"))
        assert abs(together - alone).max() <= 1
    assert len(list((tmp_path / "all" / "alone" / "0").glob("slot_*.png"))) == 3 and (tmp_path / "all" / "grid.png").is_file()


FASTER = [["--precision", "bf16"], ["--channels_last"], pytest.param(["--compile"], marks=pytest.mark.slow)]


@pytest.mark.parametrize("words", FASTER)
def test_faster_drawing_draws_the_same(drawn_run, pictures, tmp_path, words):
    assert draw("reconstruct", drawn_run, pictures, tmp_path / "plain") == 0
    assert draw("reconstruct", drawn_run, pictures, tmp_path / "fast", *words) == 0
    for number in range(3):
        plain, fast = (pixels(tmp_path / name / "images" / f"{number}.png") for name in ("plain", "fast"))
        assert abs(plain - fast).mean() < 3  # of 255


@pytest.mark.parametrize("recipe", ["columns", "random"])
def test_compositions_are_as_many_as_images(drawn_run, pictures, tmp_path, recipe):
    assert draw("compose", drawn_run, pictures, tmp_path, "--recipe", recipe, "--batch_size", "2") == 0
    assert len(list((tmp_path / "images").glob("*.png"))) == 3 and (tmp_path / "grid.png").is_file()


def test_an_image_that_is_left_over_is_mixed_with_those_before_it(drawn_run, pictures, tmp_path):
    for mix in ("2", "3"):  # of 3 images
        assert draw("compose", drawn_run, pictures, tmp_path / mix, "--mix", mix) == 0
    for number in range(3):
        two, three = (pixels(tmp_path / mix / "images" / f"{number:06d}.png") for mix in ("2", "3"))
        assert (two == three).all()


def test_an_image_alone_is_no_composition(drawn_run, pictures, tmp_path, capsys):
    assert draw("compose", drawn_run, pictures, tmp_path / "drawn", "--mix", "1") == 2
    assert "needs slots of 2 images or more, got --mix 1 and 3 in the folder" in capsys.readouterr().err
    shutil.copytree(pictures, tmp_path / "one", ignore=shutil.ignore_patterns("[12].png"))
    assert draw("compose", drawn_run, tmp_path / "one", tmp_path / "drawn") == 2
    assert "got --mix 32 and 1 in the folder" in capsys.readouterr().err
    assert not (tmp_path / "drawn").exists()


@pytest.mark.parametrize(
    "words",
    [["drop", "--slot", "1"], ["only"], ["swap", "--other", "1.png"], ["insert", "--other", "2.png"],
     ["move", "--offset", "8", "0"]],
)
def test_every_edit_draws_the_image_before_and_after(drawn_run, pictures, tmp_path, words):
    assert draw("edit", drawn_run, pictures, tmp_path, *words, "--image", "0.png") == 0
    (found,) = tmp_path.glob(f"0_{words[0]}_*.png")
    assert pixels(found).shape == (64 + 8, 4 * 68 + 4, 3)


@pytest.fixture
def namesakes(pictures, tmp_path):
    """0.png, 0.jpg and more/0.png."""
    from PIL import Image

    folder = tmp_path / "namesakes"
    (folder / "more").mkdir(parents=True)
    Image.open(pictures / "0.png").save(folder / "0.png")
    Image.open(pictures / "1.png").convert("RGB").save(folder / "0.jpg")
    Image.open(pictures / "2.png").save(folder / "more" / "0.png")
    return folder


def test_images_of_one_name_are_drawn_into_files_of_their_own(drawn_run, namesakes, tmp_path):
    assert draw("reconstruct", drawn_run, namesakes, tmp_path / "drawn", "--alone") == 0
    folder = tmp_path / "drawn"
    assert {str(path.relative_to(folder / "images")) for path in (folder / "images").rglob("*.png")} == {
        "0.png", "0_png.png", "more/0.png",
    }  # fmt: skip
    assert len(list((folder / "alone").rglob("slot_*.png"))) == 9


def test_every_edit_of_every_image_has_a_file_of_its_own(drawn_run, namesakes, tmp_path):
    edits = [["drop", "--image", name] for name in ("0.png", "0.jpg", "more/0.png")]
    edits += [["swap", "--image", "0.png", "--other", other] for other in ("0.jpg", "more/0.png")]
    edits += [["swap", "--image", "0.png", "--other", "0.jpg", "--other_slot", "1"]]
    edits += [["insert", "--image", "0.png", "--other", "0.jpg", "--other_slot", slot] for slot in "01"]
    edits += [["move", "--image", "0.png", "--offset", "8", right] for right in "04"]
    for number, words in enumerate(edits, start=1):
        assert draw("edit", drawn_run, namesakes, tmp_path / "edits", *words) == 0
        assert len(list((tmp_path / "edits").rglob("*.png"))) == number


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drop", "--image", "nine.png"], "holds no image nine.png; it holds 0.png"),
        (["drop", "--image", "0.png", "--slot", "7"], "has 3 slots, got index 7"),
        (["swap", "--image", "0.png"], "needs --other NAME"),
    ],
)
def test_an_edit_that_cannot_be_made_says_why(drawn_run, pictures, tmp_path, words, message, capsys):
    assert draw("edit", drawn_run, pictures, tmp_path, *words) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def silent_run(tmp_path, tiny_pipeline):
    """A run whose pipeline lost its text encoder after the training."""
    pipeline = shutil.copytree(tiny_pipeline("sd"), tmp_path / "pipeline")
    path = config(tmp_path, lambda kind: pipeline, "coda")
    assert main(["train", "--config", str(path), "--run", str(tmp_path / "run"), "--training.steps", "2"]) == 0
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(pipeline / part)
    return tmp_path / "run"


def test_stored_registers_spare_the_text_encoder(silent_run, pictures, tmp_path):
    assert draw("compose", silent_run, pictures, tmp_path / "drawn") == 0
    assert main(["evaluate", str(silent_run), "--no_baselines", "--device", "cpu"]) == 0
    assert main(["export", str(silent_run), str(tmp_path / "model")]) == 0
    assert main(["train", "--run", str(silent_run), "--resume", "--training.steps", "4"]) == 0
    assert lines_of(silent_run)[-1]["step"] == 4


def test_training_anew_asks_for_the_text_encoder(silent_run, tmp_path, capsys):
    assert main(["train", "--config", str(tmp_path / "coda.yaml"), "--run", str(tmp_path / "other")]) == 2
    assert f"{tmp_path / 'pipeline'} has no tokenizer" in capsys.readouterr().err


def test_evaluation_looks_into_the_decoder(drawn_run, tmp_path, capsys):
    words = ["--analysis", "--analysis_images", "2", "--analysis_timesteps", "2", "--analysis_steps", "1", "--no_baselines"]
    assert main(["evaluate", str(drawn_run), *words, "--out", str(tmp_path), "--device", "cpu"]) == 0
    content = json.loads((tmp_path / "analysis.json").read_text())
    assert content["images"] == ["scenes/plain/test/0", "scenes/plain/test/1"] and content["attention"]["num_registers"] == 77
    report = (tmp_path / "report.html").read_text()
    assert "Looking into the decoder" in report and "Attention on 77 registers" in report and "log signal-to-noise ratio" in report
    assert pixels(tmp_path / "analysis" / "drawings_0.png").shape == (2 * 68 + 4, 5 * 68 + 4, 3)
    assert "nats per image" in capsys.readouterr().out


def test_only_latent_diffusion_decoders_are_looked_into(tiny_run, tmp_path, capsys):
    assert main(["evaluate", str(tiny_run), "--analysis", "--out", str(tmp_path), "--device", "cpu"]) == 2
    assert "has a PatchMLP; an analysis looks into latent-diffusion decoders only" in capsys.readouterr().err


def test_a_model_that_draws_no_images_from_noise_is_refused(tiny_run, pictures, tmp_path, capsys):
    assert draw("reconstruct", tiny_run, pictures, tmp_path) == 2
    assert "has a PatchMLP; only latent-diffusion decoders draw" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["coda", "slotadapt"])
def test_a_pipeline_that_is_missing_is_named_however_deep_it_stands_in_the_config(tmp_path, tiny_pipeline, name, capsys):
    path = config(tmp_path, tiny_pipeline, name)
    path.write_text(path.read_text().replace(str(tiny_pipeline("sd")), str(tmp_path / "nowhere")))
    assert main(["train", "--config", str(path), "--run", str(tmp_path / "run")]) == 2
    assert f"CheckpointError: the pipeline folder {tmp_path / 'nowhere'} is missing" in capsys.readouterr().err


def test_the_demo_of_a_diffusion_decoder_draws_what_its_slots_hold(tmp_path, tiny_pipeline):
    run = tmp_path / "demo"
    assert main(["demo", "--config", str(config(tmp_path, tiny_pipeline, "coda")), "--run", str(run)]) == 0
    report = (run / "report.html").read_text()
    assert gallery.TITLE in report
    shapes = {name: read_image(run / f"{name}.png").shape for name in ("reconstructions", "compositions", "edits")}
    side = 64 + GAP
    assert shapes["reconstructions"][1:] == (6 * side + GAP, 6 * side + GAP)  # 6 images; itself, slots, drawn, and 3 slots alone
    assert shapes["compositions"][1:] == (2 * side + GAP, 6 * side + GAP) and shapes["edits"][1] == 3 * side + GAP


@pytest.mark.parametrize(("most", "slot"), [(0.2, 2), (0.35, 1), (0.05, 2)])
def test_the_object_that_is_removed_is_large_and_not_the_ground(most, slot):
    cells = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    attn = torch.nn.functional.one_hot(cells, 4).T[None].float()
    assert gallery.largest_object(Slots(torch.zeros(1, 4, 2), attn, (10, 10)), most=most) == slot
