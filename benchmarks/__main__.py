"""Run every benchmark and write benchmarks/results/<hardware>/<name>.json and the table benchmarks/results/README.md.

    python -m benchmarks [--quick] [--only NAME ...] [--device cpu]

Each benchmark is a program of its own that checks its results before it reports a speed; this one adds hardware, commit
and versions. `ops` is the command `ocl bench ops`, which keeps its results itself and has more options. `--table` only writes
tables and plots again from the results that lie there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import tables
from benchmarks.machine import HERE, RESULTS, environment, hardware

PROGRAMS = {
    "scenes_speed": ("data/scenes_speed.py", False),
    "segmentation_throughput": ("metrics/segmentation_throughput.py", False),
    "absorbed_slots": ("training/absorbed_slots.py", True),
    "coda_step": ("training/coda_step.py", True),
    "sampling": ("training/sampling.py", True),
    "weak_scaling": ("training/weak_scaling.py", False),
}  # name -> program, and whether it takes --device
NAMES = [*PROGRAMS, "ops"]
SURROUNDINGS = {**os.environ, "PYTHONPATH": str(HERE.parent)}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="small settings; printed, not kept")
    options.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    options.add_argument("--device", default="cpu")
    options.add_argument("--table", action="store_true", help="only write tables and plots from kept results")
    known = options.parse_args()
    if not known.table:
        for name in known.only:
            (run_ops if name == "ops" else run)(name, quick=known.quick, device=known.device)
    if not known.quick:
        for path in RESULTS.glob(f"*/{tables.OPS}"):
            tables.write(path.parent)
        print(tables.write_readme())
    return 0


def run_ops(name: str, *, quick: bool, device: str) -> None:
    print(f"== {name}", flush=True)
    words = ["bench", "ops", "--device", device, *(["--quick"] if quick else [])]
    done = subprocess.run([sys.executable, "-m", "ocl.cli.main", *words], cwd=HERE.parent, env=SURROUNDINGS)
    if done.returncode:
        raise SystemExit(done.returncode)  # it has said why


def run(name: str, *, quick: bool, device: str) -> None:
    """One benchmark; its output is kept unless it is a quick one. Benchmarks of CPU code are left out on another device."""
    program, takes_device = PROGRAMS[name]
    if device != "cpu" and not takes_device:
        print(f"{name}: runs on the CPU only, left out")
        return
    words = [*(["--quick"] if quick else []), *(["--device", device] if takes_device else [])]
    command = [sys.executable, str(HERE / program), *words]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        print(f"== {name}", flush=True)
        subprocess.run([*command, "--out", str(out)], check=True, cwd=HERE.parent, env=SURROUNDINGS)
        result = json.loads(out.read_text())
    if quick:
        return
    shown = " ".join(["python", f"benchmarks/{program}", *words])
    kept = RESULTS / hardware(device) / f"{name}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"command": shown, "environment": environment(device), **result}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
