"""Run every benchmark and write benchmarks/results/<hardware>/<name>.json and the table benchmarks/results/README.md.

    python -m benchmarks [--quick] [--only NAME ...] [--device cpu]

Each benchmark is a program of its own that checks its results before it reports a speed; this one adds hardware, commit
and versions. `--table` only writes the table again from the results that lie there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PROGRAMS = {
    "scenes_speed": ("data/scenes_speed.py", False),
    "segmentation_throughput": ("metrics/segmentation_throughput.py", False),
    "absorbed_slots": ("training/absorbed_slots.py", True),
}  # name -> program, and whether it takes --device


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="small settings; printed, not kept")
    options.add_argument("--only", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    options.add_argument("--device", default="cpu")
    options.add_argument("--table", action="store_true", help="only write the table from kept results")
    known = options.parse_args()
    if not known.table:
        for name in known.only:
            run(name, quick=known.quick, device=known.device)
    if not known.quick:
        (RESULTS / "README.md").write_text(table())
        print(RESULTS / "README.md")
    return 0


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
        here = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        subprocess.run([*command, "--out", str(out)], check=True, cwd=HERE.parent, env=here)
        result = json.loads(out.read_text())
    if quick:
        return
    shown = " ".join(["python", f"benchmarks/{program}", *words])
    kept = RESULTS / hardware(device) / f"{name}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"command": shown, "environment": environment(device), **result}, indent=1) + "\n")


def hardware(device: str) -> str:
    """A folder name for this machine: its GPU, or its CPU and number of cores."""
    name = torch.cuda.get_device_name() if device != "cpu" else f"{cpu()}-{os.cpu_count()}-cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment(device: str) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    return {
        "hardware": hardware(device), "cpu": cpu(), "cores": os.cpu_count(), "commit": commit or "unknown",
        "torch": torch.__version__, "python": platform.python_version(), "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }  # fmt: skip


def table() -> str:
    """Every kept result as Markdown."""
    parts = ["# Results\n", "Written by `python -m benchmarks`; each ratio was measured in one run.\n"]
    for path in sorted(RESULTS.glob("*/*.json")):
        result = json.loads(path.read_text())
        made = result["environment"]
        rows = result["rows"]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        parts += [
            f"## {path.stem}, {made['hardware']}\n",
            f"`{result['command']}`, commit {made['commit']}, torch {made['torch']}, {made['date']}.\n",
            "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns),
            *("| " + " | ".join(_cell(row.get(name)) for name in columns) + " |" for row in rows),
            "",
        ]
    parts += ["Not measured on a GPU: no benchmark above has run on one yet; `make bench-gpu` runs those that can.", ""]
    return "\n".join(parts)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
