"""One training program (program.py) serves all tests of this folder, in this process and in others."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).with_name("program.py")
ROOT = PROGRAM.parents[2]


@pytest.fixture(scope="session")
def program():
    """program.py as a module: Squares, TinyModel, training(), train()."""
    spec = importlib.util.spec_from_file_location("training_program", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def start_program():
    """Start program.py in a process and a process group of its own; returns the Popen."""

    def start(run: Path, *arguments: str) -> subprocess.Popen:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, str(PROGRAM), str(run), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    return start


@pytest.fixture
def read_log():
    """The lines of a run's log without times and memory, which differ from run to run."""

    def read(run: Path) -> list[dict]:
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        times = ("samples_per_second", "data_wait", "memory_gib")
        return [{name: value for name, value in line.items() if name not in times} for line in lines]

    return read


@pytest.fixture
def tiny_model(program):
    """A fresh TinyModel, the same at every call."""

    def make() -> torch.nn.Module:
        torch.manual_seed(0)
        return program.TinyModel()

    return make


@pytest.fixture
def one_batch(program):
    """The first images of the tiny dataset as a Batch."""
    from ocl.data.sample import collate

    return lambda start=0, stop=4: collate([program.Squares()[index] for index in range(start, stop)])
