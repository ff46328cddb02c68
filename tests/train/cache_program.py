"""Writes a cache in child processes that are killed, and then to its end.

    python cache_program.py CONFIG OUT --kill-after 1 2      each child is killed a moment after it wrote so many shards
    python cache_program.py CONFIG OUT --kill-at 1 5         each child is killed at its n-th file operation
"""

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # what a child would import lazily: here once
from safetensors.torch import save_file

import ocl.train.files
from ocl.cli.main import main
from ocl.train import precompute

sys.path.append(str(Path(__file__).parents[1]))  # tests
from kills import counted_down

GONE = os.WEXITED | os.WNOHANG | os.WNOWAIT


def kill_at_operation(number):
    counted = counted_down(number)
    ocl.train.files.save_file = counted(save_file)
    precompute.sync, os.replace = counted(precompute.sync), counted(os.replace)


def shards(folder):
    return len([*folder.glob("shard-*")])


def in_child(words, folder, *, num_shards=None, operation=None):
    before = shards(folder)
    child = os.fork()
    if child == 0:
        if operation is not None:
            kill_at_operation(operation)
        os._exit(main(words))
    if num_shards is not None:
        while shards(folder) < before + num_shards and os.waitid(os.P_PID, child, GONE) is None:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else f"exit {os.waitstatus_to_exitcode(status)}", flush=True)


parser = argparse.ArgumentParser()
parser.add_argument("config")
parser.add_argument("out", type=Path)
parser.add_argument("--kill-after", type=int, nargs="*", default=[])
parser.add_argument("--kill-at", type=int, nargs="*", default=[])
known = parser.parse_args()
torch.set_num_threads(1)
precompute.SHARD_BYTES = 20_000  # two samples each
words = ["cache", known.config, "--out", str(known.out), "--batch_size", "2", "--device", "cpu"]
main([*words, "--estimate"])  # everything is imported, so that a kill hits the writing
for num_shards in known.kill_after:
    in_child(words, known.out, num_shards=num_shards)
for operation in known.kill_at:
    in_child(words, known.out, operation=operation)
assert main(words) == 0
