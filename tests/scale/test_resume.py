"""A checkpoint belongs to no number of processes, stage or engine: whoever reads it takes the identical next step."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from ocl.decoders import PatchMLP
from ocl.encoders import CNN
from ocl.errors import CheckpointError
from ocl.models import slot_attention
from ocl.train import checkpoint, load_model
from ocl.train.moments import Moments

BASE = {"model": "slots", "training": {"ema": 0.9, "keep_checkpoints": 9, "checkpoint_every": 4, "steps": 12}}
FIRST = {**BASE, "training": {**BASE["training"], "steps": 4}}
THEN = {**BASE, "training": {**BASE["training"], "steps": 8}}
WAYS = [(size, stage) for size in (1, 2) for stage in range(4)] + [(0, 0)]


def on(base, name, size, stage=0):
    return {**base, "name": name, "size": size, "zero": {"stage": stage}}


CHAIN = [
    on(BASE, "undisturbed", 0),
    on(BASE, "two", 2, 2),
    on(FIRST, "changing", 2, 2), on(THEN, "changing", 1, 3), on(BASE, "changing", 2, 1),
    on(FIRST, "back", 0), on(THEN, "back", 2, 3), on(BASE, "back", 0),
    on(FIRST, "same", 2, 2), on(BASE, "same", 2, 2),
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(carry_out_all):
    return carry_out_all(CHAIN)


def losses_of(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


def state_of(run, step=12):
    folder = run / f"checkpoints/step-{step:08d}"
    moments, weights = Moments(folder), load_file(folder / "model.safetensors")
    whole = {key: moments.whole(key, weights.get(key.rpartition(".")[0], torch.empty(())).shape) for key in moments.names}
    return {**weights, **{f"ema {name}": value for name, value in load_file(folder / "ema.safetensors").items()}, **whole}


@pytest.mark.parametrize("name", ["two", "changing", "back", "same"])
def test_a_run_that_changes_processes_stages_and_engines_is_the_same_run(runs, name):
    ours, theirs = losses_of(runs[name]), losses_of(runs["undisturbed"])
    assert ours.keys() == theirs.keys() == set(range(1, 13))
    torch.testing.assert_close(torch.tensor([*ours.values()]), torch.tensor([*theirs.values()]), rtol=1e-5, atol=1e-7)
    found, wanted = state_of(runs[name]), state_of(runs["undisturbed"])
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key].view_as(value), value, rtol=1e-3, atol=2e-5, msg=key)


def test_resuming_with_the_same_processes_changes_no_bit(runs):
    found, wanted = state_of(runs["same"]), state_of(runs["two"])
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_a_checkpoint_of_two_processes_is_a_normal_run_folder(runs):
    parts = {"encoder": CNN(8, stride=4), "decoder": PatchMLP(8, image_size=16, patch=4, hidden_dim=16)}
    model = slot_attention(num_slots=3, slot_dim=8, image_size=16, **parts)
    assert load_model(runs["two"], model).step == 12
    average = load_file(runs["two"] / "checkpoints/step-00000012/ema.safetensors")
    assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"])
def test_a_missing_or_damaged_part_is_named(runs, tmp_path, name):
    run = shutil.copytree(runs["two"], tmp_path / "run")
    path = run / "checkpoints/step-00000012" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=f"{name} is damaged.*go on from step-00000008"):
        checkpoint.load(path.parent)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoint.load(path.parent)


def test_a_part_that_was_never_written_is_missed(runs, tmp_path):
    folder = shutil.copytree(runs["two"] / "checkpoints/step-00000012", tmp_path / "step")
    (folder / "optimizer-00002-of-00002.safetensors").unlink()
    shapes = {name: value.shape for name, value in load_file(folder / "model.safetensors").items()}
    moments = Moments(folder)
    with pytest.raises(CheckpointError, match="go on from an older checkpoint"):
        for name, shape in shapes.items():
            moments.piece(f"{name}.exp_avg", 0, shape.numel())


@pytest.mark.slow
@pytest.mark.parametrize("before", WAYS)
def test_every_pair_of_ways(carry_out_all, runs, before):
    plan = []
    for size, stage in WAYS:
        name = f"{before[0]}-{before[1]}-{size}-{stage}"
        plan += [on(FIRST, name, *before), on(THEN, name, size, stage)]
    found, theirs = carry_out_all(plan), losses_of(runs["undisturbed"])
    for name, run in found.items():
        ours = losses_of(run)
        assert all(abs(ours[step] - theirs[step]) < 1e-6 for step in range(1, 9)), name
