"""Whatever happens to one of the processes, the run ends with a reason, starts again, and loses nothing that was accepted."""

import json
import random

import pytest
from safetensors.torch import load_file

from ocl.train import checkpoint

TRAINING = {"ema": 0.9, "steps": 24, "checkpoint_every": 4}
TWO = {"model": "slots", "size": 2, "zero": {"stage": 2}, "training": TRAINING}
KILLS = [
    {"rank": 1, "after": 6},
    {"rank": "all", "after": 3, "wait": 0.01},
    {"rank": 0, "operation": 5},
    {"rank": 1, "operation": 2},
    {"rank": 0, "after": 5},
    {"rank": 0, "operation": 12},
]
TROUBLE = {"steps": 12, "checkpoint_every": 4, "log_every": 2}
PLAN = [
    {**TWO, "name": "undisturbed"},
    {**TWO, "name": "killed", "kills": KILLS},
    {**TWO, "name": "stopped", "training": {**TRAINING, "steps": 5000}, "only_kills": True,
     "kills": [{"rank": 1, "after": 6, "signal": "SIGTERM"}]},
    {**TWO, "name": "nan", "training": TROUBLE, "trouble": {"rank": 1, "nan_at": 9}},
    {**TWO, "name": "full", "training": TROUBLE, "trouble": {"rank": 1, "file_limit": 6000}},
    {**TWO, "name": "full-background", "training": {**TROUBLE, "write_in_background": True},
     "trouble": {"rank": 1, "file_limit": 6000}},
    {**TWO, "name": "hung", "training": {**TROUBLE, "workers": 1, "data_timeout": 2}, "trouble": {"hangs": True}},
]  # fmt: skip


@pytest.fixture(scope="module")
def outcome(carry_out):
    return carry_out(PLAN)


def said(outcome, name, rank):
    return (outcome[0][name] / f"output-{rank}").read_text()


def ends_of(outcome, name):
    return dict(outcome[1])[name]


def assert_same_end(folder, other, steps=24):
    ours, theirs = checkpoint.latest(folder), checkpoint.latest(other)
    assert ours.name == theirs.name == f"step-{steps:08d}"
    for name in checkpoint.load(theirs).files:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    told = [[json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] for run in (folder, other)]
    assert told[0] == told[1] == list(range(1, steps + 1))
    assert [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_kills_of_one_process_of_all_and_inside_a_checkpoint_change_nothing(outcome):
    ends = ends_of(outcome, "killed")
    assert len(ends) == len(KILLS) + 1 and ends[-1] == ["exit 0", "exit 0"]
    assert all("killed" in how for how in ends[:-1])
    assert_same_end(outcome[0]["killed"], outcome[0]["undisturbed"])


def test_a_process_that_is_left_says_that_another_one_is_gone(outcome):
    assert ends_of(outcome, "killed")[0] == ["exit 1", "killed"]
    assert "ProcessError: process 0 of 2 lost another one" in said(outcome, "killed", 0)
    assert "torchrun --max-restarts" in said(outcome, "killed", 0)


def test_a_signal_to_one_process_saves_and_stops_all(outcome):
    assert ends_of(outcome, "stopped") == [["exit 0", "exit 0"]]
    step = checkpoint.load(checkpoint.latest(outcome[0]["stopped"])).step
    assert 5 < step < 5000
    for rank in (0, 1):
        assert f"rank {rank} ended at {step} by SIGTERM" in said(outcome, "stopped", rank)


def test_a_loss_that_is_not_finite_in_one_process_ends_all_and_names_its_samples(outcome):
    assert ends_of(outcome, "nan") == [["exit 1", "exit 1"]]
    for rank in (0, 1):
        text = said(outcome, "nan", rank)
        assert "RangeError: training expects a finite loss and gradient, but at step 9 the loss (nan)" in text
        assert "on samples [square-" in text and "step-00000008, which is intact" in text
    weights = load_file(checkpoint.latest(outcome[0]["nan"]) / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("name", ["full", "full-background"])
def test_a_disk_that_is_full_for_one_process_ends_all(outcome, name):
    assert ends_of(outcome, name) == [["exit 1", "exit 1"]]
    for rank in (0, 1):
        assert "CheckpointError" in said(outcome, name, rank) and "File too large" in said(outcome, name, rank)
    assert [path.name for path in checkpoint.complete(outcome[0][name])] == ["step-00000000"]
    assert checkpoint.load(checkpoint.latest(outcome[0][name])).step == 0


def test_a_data_worker_that_hangs_ends_the_run_with_a_reason(outcome):
    assert ends_of(outcome, "hung") == [["exit 1", "exit 1"]]
    both = said(outcome, "hung", 0) + said(outcome, "hung", 1)
    assert "DataError: the 1 worker processes that read Squares gave no batch for 2 s" in both
    assert "raise training.data_timeout" in both


@pytest.mark.slow
def test_a_process_that_answers_no_more_ends_the_others_with_a_reason(carry_out):
    hanging = {"timeout": 5, "only_kills": True, "kills": [{"rank": 1, "after": 6, "signal": "SIGSTOP"}]}
    outcome = carry_out([{**TWO, "name": "stopped", "training": {**TRAINING, "steps": 5000}, **hanging}])
    assert ends_of(outcome, "stopped") == [["exit 1", "killed"]]  # the stopped one is killed by who started it, as launchers do
    assert "ProcessError: process 0 of 2 got no answer from another one in engine.timeout" in said(outcome, "stopped", 0)
    assert 4 <= checkpoint.load(checkpoint.latest(outcome[0]["stopped"])).step < 5000


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "stage", "background"), [(0, 2, False), (1, 3, False), (2, 1, True)])
def test_many_kills_at_random_moments_change_nothing(carry_out, seed, stage, background):
    draw = random.Random(seed)
    kills = [
        {"rank": draw.choice([0, 1, "all"]), "after": draw.randint(0, 8), "wait": draw.uniform(0, 0.05)} if draw.random() < 0.6
        else {"rank": 0, "operation": draw.randint(1, 15)}
        for _ in range(24)
    ]  # fmt: skip
    training = {**TRAINING, "steps": 200, "write_in_background": background}
    base = {**TWO, "zero": {"stage": stage}, "training": training}
    folders, ends = carry_out([{**base, "name": "undisturbed"}, {**base, "name": "killed", "kills": kills}])
    assert sum("killed" in how for how in dict(ends)["killed"]) >= 20
    assert_same_end(folders["killed"], folders["undisturbed"], steps=200)
