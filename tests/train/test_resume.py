"""A run that is killed at any moment, resumed and killed again ends with the very bits of a run that was left alone."""

import os
import random
import signal
import time
from itertools import chain

import pytest

from ocl.train.checkpoint import complete, latest

SECONDS = 60  # far more than any of these runs takes


def finish(process):
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return out


def consumed(run):
    """Keys of the samples behind the final weights: what a resumed run repeats had been lost with the kill."""
    keys, batch_size = [], 4
    for line in (run / "keys.txt").read_text().splitlines():
        if line.startswith("start "):
            del keys[int(line.split()[1]) // batch_size :]
        else:
            keys.append(line.split())
    return list(chain.from_iterable(keys))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, start_program):
    run = tmp_path_factory.mktemp("undisturbed")
    finish(start_program(run))
    return run


@pytest.fixture
def assert_same_run(undisturbed, read_log):
    def check(run):
        ours, theirs = latest(run), latest(undisturbed)
        assert ours.name == theirs.name == "step-00000060"
        for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"):
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
        assert consumed(run) == consumed(undisturbed)
        assert read_log(run) == read_log(undisturbed)
        assert [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")] == []

    return check


def test_an_undisturbed_run_consumes_every_sample_once_per_epoch(undisturbed):
    keys = consumed(undisturbed)
    assert len(keys) == 60 * 4 * 2
    for first in range(0, len(keys) - 50, 50):
        assert len(set(keys[first : first + 50])) == 50


def test_kills_at_random_moments_change_nothing(tmp_path, start_program, assert_same_run):
    draw = random.Random(0)
    out = finish(start_program(tmp_path, "--kill-after", *[str(draw.randint(0, 20)) for _ in range(8)]))
    assert out.count("killed") >= 6
    assert_same_run(tmp_path)


def test_kills_inside_a_checkpoint_change_nothing(tmp_path, start_program, assert_same_run):
    """One checkpoint is 10 operations and its rotation 5: these numbers hit each kind, in the first and in later ones."""
    out = finish(start_program(tmp_path, "--kill-at", "1", "2", "4", "9", "10", "12", "14", "21", "24", "27"))
    assert out.count("killed") == 10
    assert_same_run(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_many_kills_at_random_moments_change_nothing(tmp_path, start_program, assert_same_run, seed):
    draw = random.Random(seed + 1)
    out = finish(start_program(tmp_path, "--kill-after", *[str(draw.randint(0, 12)) for _ in range(25)]))
    assert out.count("killed") >= 20  # a checkpoint comes every 10 batches, so that 25 kills do not get to batch 120
    assert_same_run(tmp_path)


@pytest.mark.slow
def test_a_kill_at_every_operation_of_three_checkpoints_changes_nothing(tmp_path, start_program, assert_same_run):
    finish(start_program(tmp_path, "--kill-at", *map(str, range(1, 40))))
    assert_same_run(tmp_path)


def test_a_signal_finishes_the_step_and_saves(tmp_path, start_program):
    process = start_program(tmp_path, "--steps", "60")
    limit = time.monotonic() + SECONDS
    while len(complete(tmp_path)) < 2 and time.monotonic() < limit:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    out = finish(process)
    assert "SIGTERM: stopped after step" in out
    stopped_at = int(latest(tmp_path).name[5:])
    assert f"ended at {stopped_at} by SIGTERM" in out
    assert 0 < stopped_at < 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_process_group_stops_the_run_and_not_its_data_workers(tmp_path, start_program, number):
    process = start_program(tmp_path, "--workers", "2", "--steps", "100000")
    limit = time.monotonic() + SECONDS
    while len(complete(tmp_path)) < 2 and time.monotonic() < limit:
        time.sleep(0.005)
    os.killpg(process.pid, number)
    out = finish(process)
    stopped_at = int(latest(tmp_path).name[5:])
    assert f"ended at {stopped_at} by {number.name}" in out and 0 < stopped_at < 100000
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left behind


def test_a_run_that_is_finished_does_nothing_more(tmp_path, program):
    options = program.training(steps=6)
    first = program.train(tmp_path, options)
    before = latest(tmp_path).stat().st_mtime_ns
    assert program.train(tmp_path, options) == first
    assert latest(tmp_path).stat().st_mtime_ns == before


def test_more_steps_can_be_added_to_a_constant_schedule(tmp_path, program):
    from ocl.train import Schedule

    constant = Schedule()
    program.train(tmp_path / "two", program.training(steps=6, schedule=constant))
    program.train(tmp_path / "two", program.training(steps=12, schedule=constant))
    program.train(tmp_path / "one", program.training(steps=12, schedule=constant))
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (latest(tmp_path / "two") / name).read_bytes() == (latest(tmp_path / "one") / name).read_bytes()
