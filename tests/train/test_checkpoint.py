"""A checkpoint is whole, or an error that says what is wrong with it; writing one never harms those before it."""

import errno
import json
import os
import resource
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ocl.errors import CheckpointError
from ocl.train import LocalEngine, Training, checkpoint, load_model
from ocl.train.checkpoint import Snapshot
from ocl.train.files import read_tensors, write_tensors
from ocl.train.saver import Saver
from ocl.train.world import World


@pytest.fixture(scope="module")
def finished(tmp_path_factory, program):
    run = tmp_path_factory.mktemp("finished")
    (run / "config.yaml").write_text("seed: 3\n")
    program.train(run, program.training(steps=10))
    return run


@pytest.fixture
def trained(tmp_path, finished):
    """A finished run of ten steps, with checkpoints at 5 and 10, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "run")


def save(run, step, keep=2, size=10):
    snapshot = Snapshot({"model.safetensors": {"value": torch.full((size,), float(step))}}, {})
    engine = SimpleNamespace(world=World(), snapshot=lambda copy: snapshot)
    saver = Saver(engine, Training(keep_checkpoints=keep, seed=0), run, None)
    saver.save(step, step * 4)
    return saver.last


def test_a_checkpoint_holds_what_the_design_says(trained):
    found = checkpoint.load(checkpoint.latest(trained))
    assert (found.step, found.samples, found.seed) == (10, 80, 3)
    names = {path.name for path in found.path.iterdir()}
    assert names == {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json", "config.yaml"}
    assert set(found.files) == names - {"state.json"}
    assert (found.path / "config.yaml").read_text() == "seed: 3\n"


def test_optimizer_state_is_kept_by_parameter_name(trained):
    moments = load_file(checkpoint.latest(trained) / "optimizer.safetensors")
    assert moments["project.weight.exp_avg"].shape == (16, 16)
    assert moments["mean.step"].item() == 10
    assert not any(name.startswith("frozen") for name in moments)


def test_rotation_keeps_the_newest(tmp_path):
    for step in (0, 5, 10, 15):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoint.complete(tmp_path)] == ["step-00000010", "step-00000015"]


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step)
    assert checkpoint.latest(tmp_path).name == "step-100000000"


def test_a_saved_step_is_never_overwritten(tmp_path):
    path = save(tmp_path, 5)
    before = (path / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="exists already and is not overwritten"):
        save(tmp_path, 5, size=20)
    assert (path / "model.safetensors").read_bytes() == before


def test_leftovers_of_killed_writes_are_cleaned(tmp_path):
    path = save(tmp_path, 5)
    for name in (".writing-step-00000010", ".deleting-step-00000000"):
        shutil.copytree(path, path.with_name(name))
    assert checkpoint.latest(tmp_path) == path
    checkpoint.clean(tmp_path)
    assert [entry.name for entry in path.parent.iterdir()] == ["step-00000005"]


def damage_missing(path):
    path.unlink()


def damage_empty(path):
    path.write_bytes(b"")


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


def damage_flipped(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = [
    (damage_missing, "is missing"),
    (damage_empty, "but holds 0"),
    (damage_truncated, "must hold .* bytes, but holds"),
    (damage_flipped, "its SHA-256 is not the one in state.json"),
]


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "config.yaml"])
@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_file_stops_a_resume_and_names_the_way_out(trained, program, name, damage, message):
    newest = checkpoint.latest(trained)
    damage(newest / name)
    with pytest.raises(CheckpointError, match=message) as error:
        program.train(trained, program.training(steps=20))
    assert name in str(error.value)
    assert "remove step-00000010 to go on from step-00000005" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "files": []}', "\x00\xff"])
def test_a_damaged_state_is_named(trained, text):
    newest = checkpoint.latest(trained)
    (newest / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        checkpoint.load(newest)


def test_a_missing_state_is_named(trained):
    newest = checkpoint.latest(trained)
    (newest / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read \(No such file"):
        checkpoint.load(newest)


def test_a_checkpoint_of_a_later_format_is_refused(trained):
    path = checkpoint.latest(trained) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="has format 2, but this version reads format 1"):
        checkpoint.load(path.parent)


def test_removing_a_damaged_checkpoint_resumes_from_the_one_before(trained, program, tmp_path):
    program.train(tmp_path / "other", program.training(steps=10))
    shutil.rmtree(checkpoint.latest(trained))
    program.train(trained, program.training(steps=10))
    for name in ("model.safetensors", "optimizer.safetensors"):
        other = checkpoint.latest(tmp_path / "other") / name
        assert (checkpoint.latest(trained) / name).read_bytes() == other.read_bytes()


def test_load_model_takes_the_average_or_the_last_weights(trained, tiny_model):
    newest = checkpoint.latest(trained)
    for ema, name in ((True, "ema.safetensors"), (False, "model.safetensors")):
        model = tiny_model()
        assert load_model(trained, model, ema=ema).step == 10
        stored = load_file(newest / name)
        assert torch.equal(model.project.weight, stored["project.weight"])
        assert torch.equal(model.norm.running_mean, stored["norm.running_mean"])
    assert load_model(newest.with_name("step-00000005"), tiny_model()).step == 5


def test_load_model_needs_no_optimizer_files(trained, tiny_model):
    (checkpoint.latest(trained) / "optimizer.safetensors").unlink()
    assert load_model(trained, tiny_model()).step == 10


def test_load_model_refuses_damaged_weights(trained, tiny_model):
    damage_flipped(checkpoint.latest(trained) / "ema.safetensors")
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_model(trained, tiny_model())


def test_a_folder_without_checkpoints_is_named(tmp_path, tiny_model):
    with pytest.raises(CheckpointError, match="holds no checkpoint; pass a folder that `ocl train` wrote"):
        load_model(tmp_path, tiny_model())


def test_a_checkpoint_of_another_model_names_keys_and_changes_nothing(trained, tiny_model):
    model = tiny_model()
    model.project = nn.Linear(16, 5)
    model.extra = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="does not fit this model") as error:
        load_model(trained, model)
    for word in ("project.weight", "extra.bias", "config.yaml"):
        assert word in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_tensors_of_any_layout_and_shared_memory_come_back(tmp_path):
    shared = torch.randn(4, 6)
    tensors = {
        "half": shared[:2], "whole": shared, "turned": shared.T, "scalar": torch.tensor(3), "none": torch.zeros(0, 2),
        "bf16": shared.bfloat16(), "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }  # fmt: skip
    write_tensors(tmp_path / "t.safetensors", tensors)
    read = read_tensors(tmp_path / "t.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


def test_an_optimizer_state_of_another_model_is_refused(tmp_path, program, tiny_model):
    engine = LocalEngine(tiny_model(), Training())
    write_tensors(tmp_path / "model.safetensors", {k: v for k, v in tiny_model().state_dict().items() if "frozen" not in k})
    write_tensors(tmp_path / "optimizer.safetensors", {"project.weight.exp_avg": torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match=r"project.weight.exp_avg \[3, 3\] fits no trained parameter"):
        engine.load(tmp_path, {"scaler": {}})


def assert_intact_and_stopped(run, previous, error):
    assert "training stopped, the last complete checkpoint is step-00000005; free some space and resume" in str(error.value)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [previous.name]
    assert checkpoint.load(previous).step == 5


@pytest.mark.parametrize("function", ["save_file", "json"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch, function):
    previous = save(tmp_path, 5)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if function == "save_file":
        monkeypatch.setattr("ocl.train.files.save_file", full)
    else:
        monkeypatch.setattr("ocl.train.checkpoint.write_json", full)
    with pytest.raises(CheckpointError, match="No space left on device") as error:
        save(tmp_path, 10)
    assert_intact_and_stopped(tmp_path, previous, error)


def test_a_file_size_limit_leaves_nothing_half_written(tmp_path):
    previous = save(tmp_path, 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(CheckpointError, match="File too large") as error:
            save(tmp_path, 10, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_intact_and_stopped(tmp_path, previous, error)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs; runs as root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_training_on_a_disk_that_fills_up_stops_and_resumes_when_there_is_space(small_disk, tmp_path, program):
    options = program.training(steps=200, checkpoint_every=10)
    with pytest.raises(CheckpointError, match=r"could not be written .*No space left on device.*free some space and resume"):
        program.train(small_disk, options)
    newest = checkpoint.latest(small_disk)
    assert 0 < checkpoint.load(newest).step < 200
    shutil.copytree(small_disk, tmp_path / "run")
    program.train(tmp_path / "run", options)
    program.train(tmp_path / "other", options)
    ours, theirs = (checkpoint.latest(tmp_path / name) / "model.safetensors" for name in ("run", "other"))
    assert ours.read_bytes() == theirs.read_bytes()
