"""The commands of docs/scale.md: torchrun with restarts, deepspeed, and Slurm's variables, each with two processes over gloo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ocl.train.checkpoint import latest

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 900
MEETING = 20_000 + os.getpid() % 9_000  # a port; tests may open no socket to ask for a free one
TINY = """
model:
  class_path: slot_attention
  init_args:
    num_slots: 3
    slot_dim: 8
    encoder: {class_path: CNN, init_args: {width: 8, depth: 3, kernel: 3, stride: 8}}
    decoder: {class_path: PatchMLP, init_args: {slot_dim: 8, patch: 8, hidden_dim: 16, depth: 2}}
data: {class_path: Scenes, init_args: {image_size: 64}}
held_out: {class_path: Scenes, init_args: {image_size: 64, split: test, size: 6}}
training: {steps: 40, batch_size: 4, log_every: 1, eval_every: 40, checkpoint_every: 5}
engine: {class_path: DeepSpeed, init_args: {config: CONFIG, timeout: 120}}
"""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The command line of `ocl train` for a run folder."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY.replace("CONFIG", str(ROOT / "configs/deepspeed/zero2.json")))
    return lambda run: ["train", "--config", str(path), "--run", str(run), "--device", "cpu", "--resume"]


def start(command, **more):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    surroundings = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=surroundings, start_new_session=True, **pipes)


def finish(process):
    out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, out
    return out


def lines_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def torchrun(words, *more):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *more, "-m", "--"]
    return [*launcher, "ocl.cli.main", *words]


@pytest.fixture(scope="module")
def undisturbed(needs_deepspeed, words, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert "step-00000040: 40 steps, 160 samples" in finish(start(torchrun(words(run))))
    return run


def workers(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "ocl.cli.main" in Path(f"/proc/{child}/cmdline").read_text()]


def test_torchrun_starts_again_after_a_process_was_killed(undisturbed, words, tmp_path):
    process = start(torchrun(words(tmp_path / "run"), "--max-restarts", "2"))
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit and not (tmp_path / "run/checkpoints/step-00000010").exists():
        time.sleep(0.02)
    os.kill(workers(process.pid)[1], signal.SIGKILL)
    out = finish(process)
    assert "resumed from" in out and "step-00000040: 40 steps, 160 samples" in out
    assert [line["loss"] for line in lines_of(tmp_path / "run")] == [line["loss"] for line in lines_of(undisturbed)]


def node(words, *, is_host, **more):
    """The torchrun of one of two machines, either of which may be missing."""
    patience = f"is_host={is_host},last_call_timeout=5,keep_alive_interval=1"
    meeting = ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{MEETING}", "--rdzv_conf", patience]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--max-restarts", "3", *meeting, "-m", "--"]
    return start([*launcher, "ocl.cli.main", *words], **more)


def wait_for(condition):
    limit = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def newest(run):
    found = latest(run)
    return -1 if found is None else int(found.name[5:])


def kill_node(node):
    for process in (node.pid, *workers(node.pid)):
        os.kill(process, signal.SIGKILL)


def test_a_node_that_stays_dead_leaves_the_run_to_the_others(undisturbed, words, tmp_path):
    run = tmp_path / "run"
    nodes = [node(words(run), is_host=is_host) for is_host in (True, False)]
    wait_for(lambda: newest(run) >= 5)
    os.kill(workers(nodes[1].pid)[0], signal.SIGKILL)  # the nodes see this at different times, and both start again
    steps = newest(run)
    wait_for(lambda: newest(run) >= steps + 10)
    kill_node(nodes[1])
    out = finish(nodes[0])
    assert "slowest_rank" in lines_of(run)[0] and "slowest_rank" not in lines_of(run)[-1]  # told on several processes
    assert out.count("resumed from") >= 2 and "step-00000040: 40 steps, 160 samples" in out
    assert [line["loss"] for line in lines_of(run)] == pytest.approx([line["loss"] for line in lines_of(undisturbed)], rel=1e-4)


def test_a_node_that_comes_back_is_taken_in_again(undisturbed, words, tmp_path):
    run, own_store = tmp_path / "run", {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    nodes = [node(words(run), is_host=is_host, **own_store) for is_host in (True, False)]
    wait_for(lambda: newest(run) >= 5)
    kill_node(nodes[1])
    back = node(words(run), is_host=False, **own_store)
    assert "resumed from" in finish(nodes[0])
    finish(back)
    assert "slowest_rank" in lines_of(run)[-1]  # told on several processes
    assert [line["loss"] for line in lines_of(run)] == pytest.approx([line["loss"] for line in lines_of(undisturbed)], rel=1e-4)


def test_a_job_that_is_told_to_end_saves_and_goes_on_later(undisturbed, words, tmp_path):
    process = start(torchrun(words(tmp_path / "run")))
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit and not (tmp_path / "run/checkpoints/step-00000005").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=SECONDS)
    assert "SIGTERM: stopped after step" in out
    finish(start(torchrun(words(tmp_path / "run"))))
    assert [line["loss"] for line in lines_of(tmp_path / "run")] == [line["loss"] for line in lines_of(undisturbed)]


def test_the_deepspeed_launcher(undisturbed, words, tmp_path):
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--no_local_rank", "--module"]
    finish(start([*launcher, "ocl.cli.main", *words(tmp_path / "run")]))
    assert [line["loss"] for line in lines_of(tmp_path / "run")] == [line["loss"] for line in lines_of(undisturbed)]


def test_the_variables_of_slurm(undisturbed, words, tmp_path):
    job = {"SLURM_NTASKS": "2", "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURM_JOB_ID": str(os.getpid())}
    command = [sys.executable, "-m", "ocl.cli.main", *words(tmp_path / "run")]
    tasks = [start(command, **job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in (0, 1)]
    for task in tasks:
        finish(task)
    assert [line["loss"] for line in lines_of(tmp_path / "run")] == [line["loss"] for line in lines_of(undisturbed)]
