"""`ocl cache` and training from it: the same steps as without, nothing frozen is read, and nothing stale or partial is used."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from ocl.cli import experiment as experiments
from ocl.cli.cache import open_cache
from ocl.cli.main import main
from ocl.data.cache import Cache, shard_path
from ocl.data.loader import batches
from ocl.errors import DataError
from ocl.interfaces import Encoder
from ocl.train.staleness import check_state
from ocl.types import Step

PROGRAM = Path(__file__).parents[1] / "train" / "cache_program.py"
CONFIG = """
model:
  class_path: coda
  init_args:
    weights: PIPELINE
    num_slots: 3
    slot_dim: 8
    encoder: {class_path: ViT, init_args: {weights: VIT, image_size: 24}}
data: {class_path: ImageFolder, init_args: {root: PHOTOS, image_size: 32}}
losses:
  - class_path: Reconstruction
  - {class_path: ContrastiveAlignment, init_args: {weight: 0.05, warmup_steps: 1}}
training: {steps: 3, batch_size: 4, log_every: 1, checkpoint_every: 3, flip: 0.5}
"""
# storage -> what a loss and a gradient may differ by, relative to the largest; 8 bits keep a token to one part in 254
CLOSE = {"fp32": 2e-5, "fp16": 3e-3, "bf16": 3e-2, "int8": 5e-2}


@pytest.fixture(scope="module")
def photos_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for number in range(10):
        coarse = torch.rand(1, 3, 5, 6, generator=generator)
        pixels = (torch.nn.functional.interpolate(coarse, (40, 48), mode="bicubic")[0].clamp(0, 1) * 255).byte()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_pipeline, tiny_vit, photos_folder):
    text = CONFIG.replace("PIPELINE", str(tiny_pipeline("sd"))).replace("VIT", str(tiny_vit("dinov2")))
    path = tmp_path_factory.mktemp("config") / "coda.yaml"
    path.write_text(text.replace("PHOTOS", str(photos_folder)))
    return path


@pytest.fixture(scope="module")
def cached(tmp_path_factory, config):
    """storage -> a cache of the config's data."""
    root = tmp_path_factory.mktemp("caches")

    def make(storage="fp16"):
        folder = root / storage
        if not folder.exists():
            assert main(["cache", str(config), "--out", str(folder), "--storage", storage, "--device", "cpu"]) == 0
        return folder

    return make


def read(config, *words):
    return experiments.read(["--config", str(config), *words], prog="ocl")


def steps(experiment, *, cached):
    """Losses, gradients and model of three passes with and without the cache, which draw the same random numbers."""
    training, data = experiment.training, experiment.data()
    cache = open_cache(experiment, data) if cached else None
    model, losses = experiment.model(postpone=cached).train(), experiment.losses()
    stream = batches(data, batch_size=4, seed=0, flip=training.flip, cache=cache)
    found = []
    for index, batch in enumerate(islice(stream, 3)):
        asked = losses[1].mismatch(index)
        output = model(batch, generator=torch.Generator().manual_seed(index), mismatch=asked)
        loss = torch.stack([loss(Step(batch, output, index)) for loss in losses]).sum()
        loss.backward()
        found.append(loss.detach())
    return found, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}, model


@pytest.fixture(scope="module")
def without(config):
    return steps(read(config), cached=False)


@pytest.mark.parametrize("storage", CLOSE)
def test_steps_from_a_cache_equal_steps_without_one(config, cached, without, storage):
    losses, gradients, model = steps(read(config, "--training.cache", str(cached(storage))), cached=True)
    assert not model.encoder.backbone.is_read and not model.decoder.autoencoder.model.is_read
    for ours, theirs in zip(losses, without[0], strict=True):
        assert abs(ours - theirs) <= CLOSE[storage] * abs(theirs)
    assert gradients.keys() == without[1].keys() and len(gradients) > 10
    largest = max(value.norm() for value in without[1].values())
    for name, value in gradients.items():
        assert (value - without[1][name]).norm() <= CLOSE[storage] * (without[1][name].norm() + 1e-3 * largest), name


def test_training_from_a_cache_reaches_the_weights_of_training_without(config, cached, tmp_path):
    from safetensors.torch import load_file

    from ocl.train.checkpoint import latest

    for name, words in {"with": ["--training.cache", str(cached("fp32"))], "without": []}.items():
        assert main(["train", "--config", str(config), "--run", str(tmp_path / name), "--device", "cpu", *words]) == 0
    found = {name: load_file(latest(tmp_path / name) / "model.safetensors") for name in ("with", "without")}
    assert found["with"].keys() == found["without"].keys()
    for name, value in found["with"].items():  # Adam divides by the gradient's size: 3 steps move a weight by 3 rates at most
        assert (value - found["without"][name]).abs().max() < 1e-4, name


def test_mirrored_images_have_entries_of_their_own_whatever_the_number_of_workers(config, cached):
    experiment = read(config)
    data, model = experiment.data(), experiment.model()
    options = {"batch_size": 5, "seed": 1, "flip": 0.5, "cache": Cache(cached("fp32"))}
    plain = list(islice(batches(data, **options), 2))
    for batch, other in zip(plain, islice(batches(data, workers=1, **options), 2), strict=True):
        assert torch.equal(batch.features.tokens, other.features.tokens) and torch.equal(batch.moments.mean, other.moments.mean)
        torch.testing.assert_close(batch.features.tokens, model.encoder(batch.image).tokens, atol=1e-5, rtol=1e-4)
        moments = model.decoder.autoencoder.moments(batch.image)
        torch.testing.assert_close(batch.moments.mean, moments.mean, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(batch.moments.std, moments.std, atol=1e-5, rtol=1e-4)


# what is refused, before any weight is loaded


def changed_photo(folder, tmp_path):
    copied = Path(shutil.copytree(folder, tmp_path / "photos"))
    Image.new("RGB", (48, 40), "red").save(copied / "0.png")
    return copied


def changed_vae(pipeline, tmp_path):
    copied = Path(shutil.copytree(pipeline, tmp_path / "pipeline"))
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return copied


def test_a_copy_of_the_data_elsewhere_is_the_same_data(config, cached, photos_folder, tmp_path):
    copied = shutil.copytree(photos_folder, tmp_path / "copy")
    experiment = read(config, "--training.cache", str(cached()), "--data.root", str(copied))
    assert open_cache(experiment, experiment.data()) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tmp, photos, vit, pipe: ["--data.image_size", "48"], r"data.config.init_args.image_size: 32 -> 48"),
        (lambda tmp, photos, vit, pipe: ["--data.resize", "stretch"], r"data.config.init_args.resize: crop -> stretch"),
        (lambda tmp, photos, vit, pipe: ["--data.root", str(changed_photo(photos, tmp))], r"data.images.0: 3x32x32 \w+ -> 3x32x32"),
        (lambda tmp, photos, vit, pipe: ["--model.encoder.image_size", "32"], r"features.settings..image_size: 24 -> 32"),
        (lambda tmp, photos, vit, pipe: ["--model.encoder.weights", str(vit("dino"))], r"features.weights.backbone/config.json"),
        (lambda tmp, photos, vit, pipe: ["--model.encoder.trainable", "true"], r"not fit this model: the encoder ViT is trained"),
        (lambda tmp, photos, vit, pipe: ["--model.weights", str(changed_vae(pipe("sd"), tmp))],
         r"latents.weights.model/diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_stale_cache_is_refused_by_name_of_what_changed(
    config, cached, photos_folder, tiny_vit, tiny_pipeline, tmp_path, capsys, change, message
):
    words = change(tmp_path, photos_folder, tiny_vit, tiny_pipeline)
    folder = cached()
    run = ["--run", str(tmp_path / "run"), "--training.cache", str(folder)]
    assert main(["train", "--config", str(config), *run, *words]) == 2 and not (tmp_path / "run").exists()
    error = capsys.readouterr().err
    assert re.search(message, error) and "--training.cache null" in error


def test_another_list_of_images_is_refused(config, cached, photos_folder, tmp_path):
    copied = Path(shutil.copytree(photos_folder, tmp_path / "copy"))
    (copied / "9.png").rename(copied / "99.png")
    experiment = read(config, "--training.cache", str(cached()), "--data.root", str(copied))
    with pytest.raises(DataError, match=r"data\.names: "):
        open_cache(experiment, experiment.data())


def test_nothing_is_loaded_before_a_stale_cache_is_refused(config, cached, tiny_vit, tmp_path):
    broken = Path(shutil.copytree(tiny_vit("dinov2"), tmp_path / "vit"))
    (broken / "model.safetensors").write_bytes(b"not weights at all")
    experiment = read(config, "--training.cache", str(cached()), "--model.encoder.weights", str(broken))
    with pytest.raises(DataError, match=r"features.weights.backbone/model.safetensors"):
        open_cache(experiment, experiment.data())


def test_an_image_that_changed_where_no_probe_looked_is_found_when_it_is_read(config, cached, photos_folder, tmp_path):
    copied = Path(shutil.copytree(photos_folder, tmp_path / "copy"))
    experiment = read(config, "--training.cache", str(cached()), "--data.root", str(copied))
    data = experiment.data()
    cache = open_cache(experiment, data)
    probed = set(cache.fingerprint["data"]["images"])
    index = next(number for number in range(10) if str(number) not in probed)
    Image.new("RGB", (48, 40), "red").save(copied / f"{index}.png")
    with pytest.raises(DataError, match=f"sample {index} is another image than the one in the cache"):
        list(islice(batches(data, batch_size=5, seed=0, cache=cache), 2))


class OwnEncoder(Encoder):
    """An encoder of a user whose frozen weights lie in no file."""

    def __init__(self, shift):
        super().__init__()
        self.width = 4
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, image):
        raise NotImplementedError


def test_weights_that_lie_in_no_file_are_compared_once_the_model_is_made(config, cached):
    from ocl.train import precompute

    cache = Cache(cached())
    model = read(config).model()
    check_state(cache, model)
    cache.fingerprint[precompute.STATE]["features"] = precompute.state_of(precompute.Recipe(OwnEncoder(1.0), None))["features"]
    model.encoder = OwnEncoder(1.0)
    check_state(cache, model)
    model.encoder = OwnEncoder(2.0)
    with pytest.raises(DataError, match=r"stale \(features: "):
        check_state(cache, model)


def test_a_cache_without_mirrored_images_is_refused_where_some_are_mirrored(config, tmp_path):
    words = ["--training.flip", "0"]
    assert main(["cache", str(config), "--out", str(tmp_path), "--device", "cpu", "--parts", "latents", *words]) == 0
    plain = read(config, "--training.cache", str(tmp_path), *words)
    assert open_cache(plain, plain.data()).layout.orientations == 1
    mirrored = read(config, "--training.cache", str(tmp_path))
    with pytest.raises(DataError, match=r"training\.flip is 0.5, but the cache .* holds no mirrored images"):
        open_cache(mirrored, mirrored.data())


def test_a_missing_cache_says_how_to_write_one(config, tmp_path):
    experiment = read(config, "--training.cache", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"nowhere holds no cache .* write one with `ocl cache --config CONFIG --out"):
        open_cache(experiment, experiment.data())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.encoder", "CNN"], "features cannot be cached: the encoder CNN is trained"),
        (["--data", "Scenes", "--data.image_size", "64"], "Scenes is endless and cannot be cached; give it a size"),
        (["--data", "Scenes", "--data.image_size", "64", "--data.size", "1000000000"], "the cache needs .* GiB free"),
    ],
)
def test_what_cannot_be_cached_is_refused_with_a_reason(config, tmp_path, capsys, words, message):
    parts = ["--parts", "features", "latents"]
    assert main(["cache", str(config), "--out", str(tmp_path / "out"), "--device", "cpu", *parts, *words]) == 2
    assert re.search(message, capsys.readouterr().err) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_several_processes_do_not_write_one_cache(config, tmp_path, capsys, monkeypatch, variable):
    monkeypatch.setenv(variable, "2")
    assert main(["cache", str(config), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "2 processes were started, but ocl cache is one; start one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_estimate_writes_nothing(config, tmp_path, capsys):
    assert main(["cache", str(config), "--out", str(tmp_path / "out"), "--estimate", "--device", "cpu"]) == 0
    assert re.search(r"10 images, each also mirrored: tokens \[9, 32\].* fp16, 0.0\d+ MiB an image", capsys.readouterr().out)
    assert not (tmp_path / "out").exists()


def test_the_estimated_size_is_the_size_on_disk(cached):
    folder = cached("int8")
    layout = Cache(folder).layout
    written = sum(path.stat().st_size for path in folder.glob("shard-*"))
    assert layout.total_bytes <= written < layout.total_bytes + 2000 * layout.num_shards


# kills and full disks


def entries(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    run_program(config, folder)
    return folder


def run_program(config, folder, *words):
    root = PROGRAM.parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), str(config), str(folder), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kills_at_file_operations_change_nothing(config, undisturbed, tmp_path):
    out = run_program(config, tmp_path, "--kill-at", 1, 1, 2, 3, 4, 5, 6, 6, 7)
    assert out.count("killed") >= 8
    assert entries(tmp_path) == entries(undisturbed) and len(entries(tmp_path)) > 3


def test_kills_at_random_moments_change_nothing(config, undisturbed, tmp_path):
    out = run_program(config, tmp_path, "--kill-after", 1, 1, 1, 1)
    assert out.count("killed") >= 1  # the others may come when all is written: a busy machine tells late of a shard
    assert entries(tmp_path) == entries(undisturbed)


def test_a_cache_with_a_missing_shard_is_not_read_and_a_half_written_one_is_not_looked_at(undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "copy"))
    last = shard_path(folder, Cache(folder).layout.num_shards - 1)
    content = last.read_bytes()
    last.unlink()
    (folder / f".writing-{last.name}").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"is not complete: 1 of \d+ shards are missing .* goes on where it stopped"):
        Cache(folder)


def test_a_truncated_shard_names_its_file(undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "copy"))
    path = shard_path(folder, 0)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"shard-00000.safetensors cannot be read .* remove it and run the same"):
        Cache(folder).features([(0, False)])


def test_a_damaged_index_is_an_error(undisturbed, tmp_path):
    folder = Path(shutil.copytree(undisturbed, tmp_path / "copy"))
    found = json.loads((folder / "index.json").read_text())
    del found["layout"]["grid"]
    (folder / "index.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match=r"index\.json is damaged \(KeyError: 'grid'"):
        Cache(folder)


def test_a_full_disk_leaves_complete_shards_and_says_so(config, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert main(["cache", str(config), "--out", str(tmp_path), "--device", "cpu"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search("shard-00000.safetensors could not be written .*run the same command again", capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json"]


def test_a_folder_that_holds_another_cache_is_not_mixed_with(config, undisturbed, capsys):
    before = entries(undisturbed)
    assert main(["cache", str(config), "--out", str(undisturbed), "--data.resize", "pad", "--device", "cpu"]) == 2
    assert "holds a cache of something else (data.config.init_args.resize: crop -> pad" in capsys.readouterr().err
    assert entries(undisturbed) == before
