"""Real processes over gloo: a plan of runs (program.py) is carried out once, its folders are looked at by many tests."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("program.py")
ROOT = PROGRAM.parents[2]
SECONDS = 1200  # for a whole plan on a slow and busy core; a single run that says nothing is killed much earlier


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


@pytest.fixture(scope="session")
def needs_deepspeed():
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip('deepspeed is not installed; run: DS_BUILD_OPS=0 pip install --no-build-isolation "ocl[deepspeed]"')


@pytest.fixture(scope="session")
def carry_out(needs_deepspeed, tiny_pipeline, tmp_path_factory):
    """Carry out a list of runs, each named by "name"; returns name -> run folder and name -> how its processes ended."""

    def run(plan, folder=None):
        folder = folder or tmp_path_factory.mktemp("scale")
        specs = [{"weights": str(tiny_pipeline("sd")), **spec, "run": str(folder / spec["name"])} for spec in plan]
        path = folder / "plan.json"
        path.write_text(json.dumps(specs))
        done = subprocess.run(
            [sys.executable, str(PROGRAM), str(path)], env=environment(), capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stderr
        ends = [json.loads(line)["ends"] for line in done.stdout.splitlines() if line.startswith("{")]
        return {spec["name"]: folder / spec["name"] for spec in plan}, [
            (spec["name"], each) for spec, each in zip(plan, ends, strict=True)
        ]

    return run


@pytest.fixture(scope="session")
def carry_out_all(carry_out):
    """The same for runs that must all end well."""

    def run(plan, folder=None):
        folders, ends = carry_out(plan, folder)
        for name, each in ends:
            outputs = "".join(path.read_text()[-2000:] for path in sorted(folders[name].glob("output-*")))
            assert {how for start in each for how in start} == {"exit 0"}, f"{name}: {each}\n{outputs}"
        return folders

    return run
